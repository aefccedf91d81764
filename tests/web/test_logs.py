"""The app's log: ids of requests, and nothing that users wrote."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sinkscope.config import AppSettings
from sinkscope.web.server.logs import JsonLines, path_shown, start_logging
from tests.web.conftest import Site, start_site
from tests.web.scripted import ScriptedEngine, fake_handle
from tests.web.test_access import ask
from tests.web.test_limits import upload

SECRET = "what-nobody-else-may-read"


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """The log of a start with `--log json`."""
    root, ours = logging.getLogger(), logging.getLogger("sinkscope")
    before = root.handlers[:], root.level, ours.level
    start_logging(AppSettings(log="json"))
    stream = io.StringIO()
    root.handlers[0].setStream(stream)  # type: ignore[attr-defined]
    yield stream
    root.handlers[:], root.level = before[0], before[1]
    ours.setLevel(before[2])


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = start_site(tmp_path / "cache", ScriptedEngine(), handle=fake_handle(), token=None)
    yield made
    made.app.blocks.close(verbose=False)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def lines_of(stream: io.StringIO, path: str) -> list[dict[str, Any]]:
    """The lines of a path; a line is written after its answer has been sent."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if found := [one for one in lines(stream) if one.get("path") == path]:
            return found
        time.sleep(0.05)
    return []


def test_each_request_is_one_line_with_its_id(site: Site, written: io.StringIO) -> None:
    _, headers, _ = ask(site, f"/config?token={SECRET}")
    (line,) = lines_of(written, "/config")
    assert line["request"] == headers["x-request-id"] and len(line["request"]) == 16
    assert (line["method"], line["status"]) == ("GET", 200)
    assert line["sent"] > 1000 and line["ms"] > 0
    assert upload(site, 2)[0] == 200
    assert ask(site, f"/gradio_api/heartbeat/{SECRET}", "POST", SECRET)[0] == 400
    assert lines_of(written, "/gradio_api/heartbeat/...")
    assert SECRET not in written.getvalue()


def test_prompts_and_failures_on_them_are_not_written(
    site: Site, written: io.StringIO, tmp_path: Path
) -> None:
    from gradio_client import Client, handle_file

    Image.new("RGB", (60, 40)).save(tmp_path / f"{SECRET}.png")
    photo = handle_file(str(tmp_path / f"{SECRET}.png"))
    client = Client(site.url, verbose=False)
    client.predict(image=photo, prompt=f"Is it {SECRET}?", api_name="/generate")

    def fails(handle: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        raise KeyError(inputs.prompt)

    site.app.handlers.engine = type(site.app.handlers.engine)(fails, fails)
    with pytest.raises(Exception, match="Something went wrong"):
        client.predict(image=photo, prompt=f"Is it {SECRET}?", api_name="/generate")
    client.close()
    assert SECRET not in written.getvalue()
    (failure,) = [one for one in lines(written) if one.get("error") == "KeyError"]
    assert failure["message"] == "a run failed" and failure["level"] == "error"
    assert any(place.endswith(" fails") for place in failure["at"])
    # The id of the request that caused it, although a task of the queue answers.
    asked = [one["request"] for one in lines(written) if "path" in one]
    assert failure["request"] in asked


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/gradio_api/file=/tmp/a/photo.png", "/gradio_api/file=..."),
        ("/gradio_api/heartbeat/abc", "/gradio_api/heartbeat/..."),
        ("/gradio_api/call/generate/0123", "/gradio_api/call/generate"),
        ("/config", "/config"),
        ("/" + "x" * 500, "/" + "x" * 99),
        ("/\n{}", "/\n{}"),
    ],
)
def test_paths_without_what_names_somebody(path: str, shown: str) -> None:
    assert path_shown(path) == shown


def test_a_line_is_one_line_whatever_it_says() -> None:
    record = logging.LogRecord("other", 30, "", 0, "first\nsecond", None, None)
    said = JsonLines().format(record)
    assert "\n" not in said and json.loads(said)["message"] == "first"
