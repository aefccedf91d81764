"""Flags and settings of a start."""

from __future__ import annotations

import gzip
import inspect
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from sinkscope import app
from sinkscope.config import AppSettings, Settings
from sinkscope.web.launch import launch
from sinkscope.web.page import App, build_app
from sinkscope.web.runs.store import Run
from tests.web.scripted import fake_handle
from tests.web.synthetic import make_trace

ROOT = Path(app.__file__).resolve().parent


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


def test_port_0_is_a_free_port_and_the_address_is_the_real_one(tmp_path: Path) -> None:
    settings = Settings(app=AppSettings(port=0, cache_dir=str(tmp_path)))
    example = Run({"baseline": make_trace()}, kind="example")
    made = build_app(settings, handle=fake_handle(), example=example, examples=[])
    address = launch(made, wait=False)
    try:
        assert urllib.parse.urlsplit(address).port not in (None, 0, 7860)
        with urllib.request.urlopen(address, timeout=20) as page:
            assert page.status == 200 and page.headers["content-encoding"] is None
            plain = page.read()
        asked = urllib.request.Request(address, headers={"accept-encoding": "gzip"})
        with urllib.request.urlopen(asked, timeout=20) as page:
            assert page.headers["content-encoding"] == "gzip"
            assert "content-security-policy" in page.headers
            sent = page.read()
        assert gzip.decompress(sent)[:200] == plain[:200]
        # All our files are in it, and about 60 kB from Gradio.
        assert len(sent) < 150_000
    finally:
        made.blocks.close(verbose=False)


def test_a_busy_machine_does_not_end_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradio gives up if its own request for the page takes more than 3 seconds."""
    monkeypatch.setattr("gradio.networking.url_ok", lambda *_: False)
    settings = Settings(app=AppSettings(port=0, cache_dir=str(tmp_path)))
    made = build_app(settings, fake_handle(), example=Run({"baseline": make_trace()}), examples=[])
    try:
        with urllib.request.urlopen(launch(made, wait=False), timeout=30) as page:
            assert page.status == 200
    finally:
        made.blocks.close(verbose=False)


def test_the_functions_of_events_take_the_values_that_the_page_names(tmp_path: Path) -> None:
    settings = Settings(app=AppSettings(cache_dir=str(tmp_path)))
    made = build_app(settings, fake_handle(), example=Run({"baseline": make_trace()}), examples=[])
    checked = 0
    for event in made.blocks.fns.values():
        named = [name for name in event.input_parameter_names or [] if name is not None]
        if event.fn is None or len(named) < len(event.inputs):
            continue
        signature = inspect.signature(event.fn)
        values = {
            name: object()
            for name, one in signature.parameters.items()
            if "Request" in str(one.annotation) or "EventData" in str(one.annotation)
        }
        signature.bind(**values, **dict.fromkeys(named))
        checked += bool(named)
    assert checked > 20
    made.blocks.close(verbose=False)


def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        command = [sys.executable, "app.py", "--port", str(port), "--cache-dir", str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"Port {port} of 127.0.0.1 is in use; choose another with --port (0 takes any free one).\n"
    )


def test_an_address_of_another_machine_is_named() -> None:
    settings = AppSettings(host="192.0.2.1", auth="me:secret")
    with pytest.raises(OSError) as error:
        launch(App(None, None, None, Settings(app=settings), None), wait=False)  # type: ignore[arg-type]
    words = app.unopened(settings, error.value)
    assert words.startswith("The page cannot be opened on 192.0.2.1, port 7860: ")
    assert "\n" not in words


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from sinkscope import app\n"
        "try: app.parse(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'gradio', 'transformers', 'numpy')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--model" in done.stdout
