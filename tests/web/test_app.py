"""Flags and settings of a start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import app

ROOT = Path(app.__file__).parent


def test_flags_over_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('[model]\nmodel = "somewhere"\ndtype = "bfloat16"\n[app]\nport = 1234\n')
    settings = app.parse(["--settings", str(file), "--port", "0", "--device", "cpu"])
    assert (settings.model.model, settings.model.dtype, settings.model.device) == (
        "somewhere",
        "bfloat16",
        "cpu",
    )
    assert settings.app.port == 0 and settings.app.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--host", "0.0.0.0"], "needs auth"),
        (["--port", "99999"], "port is 99999"),
        (["--auth", "nopassword"], "user:password, both not empty"),
        (["--device", "tpu"], "device is 'tpu'"),
        (["--settings", "/nowhere.toml"], "cannot be read"),
        (["--min-pixels", "10", "--max-pixels", "5"], "min_pixels is 10"),
    ],
)
def test_mistakes_are_named(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        app.parse(flags)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_the_password_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SINKSCOPE_AUTH", "me:secret")
    assert app.parse(["--host", "0.0.0.0"]).app.auth == "me:secret"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, app\n"
        "try: app.parse(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'gradio', 'transformers', 'numpy')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--model" in done.stdout
