"""A start by command: the printed link, https, logs; and its end by a signal."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sinkscope import app
from sinkscope.config import AppSettings
from sinkscope.setting.serving import NO_TOKEN
from sinkscope.web.health import Watchdog
from sinkscope.web.launch import check_tls
from sinkscope.web.runs.store import open_run
from sinkscope.web.shutdown import end
from tests.web.conftest import start_site
from tests.web.scripted import ScriptedEngine, fake_handle

ROOT = Path(app.__file__).resolve().parent


def started(tmp_path: Path, *flags: str, **environment: str) -> tuple[Any, str]:
    """`app.py` on a free port; the process and the link it printed."""
    command = [sys.executable, "app.py", "--port", "0", "--cache-dir", str(tmp_path), *flags]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "GRADIO_TEMP_DIR": str(tmp_path / "temp"), **environment},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("SinkScope listens on "), process.communicate()[1]
    return process, line.split()[-1]


def test_a_start_prints_a_link_with_a_token_and_ends_on_sigterm(tmp_path: Path) -> None:
    process, link = started(tmp_path, "--log", "json")
    try:
        hit = re.fullmatch(r"(http://127\.0\.0\.1:\d+)/\?token=([\w-]{43})", link)
        assert hit is not None
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{hit[1]}/config", timeout=20)
        assert refused.value.code == 401
        bearer = {"authorization": f"Bearer {hit[2]}"}
        asked = urllib.request.Request(f"{hit[1]}/config", headers=bearer)
        with urllib.request.urlopen(asked, timeout=20) as answer:
            assert answer.status == 200
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=30)[1]
        assert time.monotonic() - begun < 12
        assert process.returncode == 0
        said = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
        assert {"/config"} <= {line.get("path") for line in said}
        assert hit[2] not in errors
        assert any(line.get("message") == "ended" for line in said)
    finally:
        process.kill()


def test_the_end_keeps_the_part_of_what_runs(tmp_path: Path) -> None:
    from gradio_client import Client, handle_file

    engine = ScriptedEngine()
    site = start_site(tmp_path / "cache", engine, handle=fake_handle())
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    engine.hold()
    client = Client(site.url, verbose=False)
    client.submit(handle_file(str(tmp_path / "a.png")), "endless", api_name="/generate")
    assert engine.begun.wait(20)
    engine.let(3)
    time.sleep(0.5)
    thread = threading.Thread(target=end, args=(site.app,))
    begun = time.monotonic()
    thread.start()
    thread.join(20)
    assert not thread.is_alive() and time.monotonic() - begun < 10
    (folder,) = (tmp_path / "cache" / "runs").iterdir()
    trace = open_run(folder).first
    assert trace.finish_reason == "stopped" and len(trace.tokens) == 3


def pem(folder: Path) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl on this machine to make a certificate with")
    cert, key = folder / "cert.pem", folder / "key.pem"
    made = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout"
    alternative = ["-addext", "subjectAltName=IP:127.0.0.1"]
    command = [*made.split(), str(key), "-out", str(cert), *alternative]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


def test_the_page_is_served_by_https(tmp_path: Path) -> None:
    cert, key = pem(tmp_path)
    page = {"tls_cert": str(cert), "tls_key": str(key)}
    token = "a-token-of-the-tests_0123456789"
    engine = ScriptedEngine()
    site = start_site(tmp_path / "cache", engine, handle=fake_handle(), page=page, token=token)
    try:
        assert site.url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(cert))
        link = f"{site.url}?token={token}"
        with urllib.request.urlopen(link, timeout=20, context=trusted) as answer:
            assert "Secure" in answer.headers["set-cookie"]
    finally:
        site.app.blocks.close(verbose=False)


def test_files_of_tls_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tls_key is None; allowed: a file"):
        AppSettings(tls_cert="x")
    missing = str(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"tls_cert cannot be read: No such file"):
        check_tls(AppSettings(tls_cert=missing, tls_key=missing))
    (tmp_path / "odd").write_text("no key")
    odd = str(tmp_path / "odd")
    with pytest.raises(ValueError, match="not a certificate with its key"):
        check_tls(AppSettings(tls_cert=odd, tls_key=odd))
    with pytest.raises(ValueError, match="tls_cert and tls_key are not a certificate"):
        start_site(
            tmp_path / "cache",
            ScriptedEngine(),
            handle=fake_handle(),
            page={"tls_cert": odd, "tls_key": odd},
        )


@pytest.mark.parametrize("ends", [False, True])
def test_a_start_has_a_watchdog_as_its_setting_says(
    ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(
        "sinkscope.web.launch.Watchdog", partial(Watchdog, every=0.05, end=ended.set)
    )
    page = {"exit_on_dead_worker": ends}
    site = start_site(tmp_path / "cache", ScriptedEngine(), handle=fake_handle(), page=page)
    try:
        assert not ended.wait(0.3)
        runner = type(site.app.handlers.runner)
        monkeypatch.setattr(runner, "stuck", ("a job (x) does not end",))
        assert ended.wait(10 if ends else 0.5) == ends
    finally:
        site.app.blocks.close(verbose=False)


# --- where settings come from ---------------------------------------------------------------------


def test_flags_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('[app]\nport = 1\nstreams = 9\nread_only = true\n[model]\ndevice = "cpu"\n')
    said = {
        "SINKSCOPE_PORT": "2", "SINKSCOPE_STREAMS": "8", "SINKSCOPE_SETTINGS": str(file),
        "SINKSCOPE_GENERATION_LAYERS": "1-3", "SINKSCOPE_HOST": "",
    }  # fmt: skip
    start = app.resolve(["--port", "3"], said)
    page = start.settings.app
    assert (page.port, page.streams, page.read_only, page.host) == (3, 8, True, "127.0.0.1")
    assert start.settings.generation.layers == (1, 2, 3)
    sources = {line.split()[0]: line.split()[-1] for line in start.lines}
    assert sources["app.streams"] == "SINKSCOPE_STREAMS" and sources["app.port"] == "--port"
    assert sources["app.read_only"] == str(file) == sources["model.device"]
    assert sources["app.host"] == sources["images.max_bytes"] == "default"


def test_secrets_are_masked_where_settings_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    word = "a-token-of-the-tests_0123456789"
    app.main(["--token", word, "--print-settings"])
    said = capsys.readouterr().out
    assert word not in said and "(set, not shown)" in said and "flag --token" in said
    start = app.resolve(["--host", "0.0.0.0"], {"SINKSCOPE_AUTH": f"me:{word}"})
    assert word not in "\n".join(start.lines)
    assert "SINKSCOPE_AUTH" in "\n".join(start.lines)


def test_no_token_is_a_flag() -> None:
    assert app.resolve(["--no-token"], {}).settings.app.token == NO_TOKEN
    assert app.resolve([], {"SINKSCOPE_TOKEN": "none"}).settings.app.token == NO_TOKEN


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"SINKSCOPE_PORT": "x"}, "SINKSCOPE_PORT is 'x'; allowed: a whole number"),
        ({"SINKSCOPE_READ_ONLY": "maybe"}, "SINKSCOPE_READ_ONLY is 'maybe'; allowed: true or"),
        ({"SINKSCOPE_PROT": "1"}, "SINKSCOPE_PROT is in the environment and no setting"),
        ({"SINKSCOPE_PORT": "99999"}, "port is 99999"),
        ({"SINKSCOPE_SETTINGS": "/nowhere.toml"}, "cannot be read"),
    ],
)
def test_mistakes_of_the_environment_are_named(
    variables: dict[str, str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        app.resolve([], variables)
    assert words in capsys.readouterr().err
