"""No client, no computing: clients that are killed, that leave, or that never read an answer."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sinkscope.web.runs.store import Run
from sinkscope.web.server.presence import GRACE_SECONDS, Presence
from tests.web.conftest import Site, start_site
from tests.web.scripted import ScriptedEngine, fake_handle
from tests.web.synthetic import make_pair

# Seconds after which nothing may run for a client that is gone: far below the half minute without
# `Presence`, far above a pause of a busy machine. `benchmarks load` measures 2 s.
WITHIN = 10.0
CLIENT = """
import sys
from gradio_client import Client, handle_file
client = Client(sys.argv[1], verbose=False)
jobs = [client.submit(image=handle_file(sys.argv[2]), prompt="endless", api_name="/generate")
        for _ in range(int(sys.argv[3]))]
print("submitted", flush=True)
for job in jobs:
    job.result()
"""


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = start_site(
        tmp_path_factory.mktemp("cache"),
        ScriptedEngine(),
        handle=fake_handle(),
        example=Run(make_pair(), kind="example"),
    )
    yield made
    made.engine.release()
    made.app.blocks.close(verbose=False)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.new("RGB", (60, 40), "teal").save(path)
    return path


def until(true: Callable[[], bool], seconds: float = 20) -> float:
    """How long it took until something was true."""
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < seconds, "it did not happen"
        time.sleep(0.02)
    return time.monotonic() - begun


def client_of(site: Site, picture: Path, count: int = 1) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, site.url, str(picture), str(count)],
        stdout=subprocess.PIPE,
        text=True,
    )


def post(url: str, **body: Any) -> Any:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def function_of(site: Site, name: str) -> int:
    (found,) = (i for i, fn in site.app.blocks.fns.items() if fn.api_name == name)
    return found


def uploaded(site: Site, picture: Path) -> dict[str, Any]:
    from gradio_client import Client, handle_file

    client = Client(site.url, verbose=False)
    path = client.endpoints[0]._upload_file(handle_file(str(picture)), 0)["path"]
    client.close()
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def join(site: Site, picture: Path, session: str) -> Any:
    """Ask for an endless answer in a session that has no stream yet."""
    index = function_of(site, "generate")
    data = [component.value for component in site.app.blocks.fns[index].inputs]
    data[:2] = [uploaded(site, picture), "endless"]
    url = f"{site.url}gradio_api/queue/join"
    return post(url, fn_index=index, data=data, session_hash=session)


def test_the_runs_of_a_killed_client_end(left: Site, picture: Path) -> None:
    runner, engine = left.app.handlers.runner, left.engine
    engine.hold()
    client = client_of(left, picture, 2)
    try:
        until(lambda: len(runner.under_way) == 2, 60)
        assert engine.begun.wait(20)
        time.sleep(2 * GRACE_SECONDS)  # somebody is there, so they go on
        assert len(runner.under_way) == 2 and runner.line.length == 1
    finally:
        client.kill()
        client.wait()
    took = until(lambda: not runner.under_way)
    assert took < WITHIN, took
    assert engine.ended.is_set() and runner.computing == 0


def test_an_event_that_nobody_reads_ends(
    left: Site, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its picture takes longer than the grace, so that no computing has begun."""
    runner, engine = left.app.handlers.runner, left.engine
    found: list[float] = []  # when each of its questions began

    def gone(session: str, since: float, there: Any = runner.deserted) -> bool:
        if session == "nobody":
            found.append(since)
        return bool(there(session, since))

    monkeypatch.setattr(runner, "deserted", gone)
    engine.hold()
    join(left, picture, "nobody")
    until(lambda: bool(found) and not runner.under_way, 60)
    assert time.monotonic() - found[0] < WITHIN


def test_a_caller_who_leaves_the_line_is_out_of_it(left: Site, picture: Path) -> None:
    runner, engine = left.app.handlers.runner, left.engine
    engine.hold()
    with client_of(left, picture) as first:
        until(lambda: runner.computing == 1, 60)
        with client_of(left, picture) as second:
            until(lambda: runner.line.length == 1, 60)
            second.kill()
        took = until(lambda: runner.line.length == 0)
        assert took < WITHIN, took
        assert runner.computing == 1  # the other one's run goes on
        first.kill()
    until(lambda: not runner.under_way)


def test_a_page_that_loses_one_stream_keeps_its_run(left: Site, picture: Path) -> None:
    runner, engine = left.app.handlers.runner, left.engine
    engine.hold()
    api = f"{left.url}gradio_api"
    beat = urllib.request.urlopen(f"{api}/heartbeat/page", timeout=30)
    asked = join(left, picture, "page")
    assert asked["event_id"] and engine.begun.wait(20)
    stream = urllib.request.urlopen(f"{api}/queue/data?session_hash=page", timeout=30)
    stream.close()
    time.sleep(2 * GRACE_SECONDS)
    assert runner.computing == 1
    beat.close()
    assert until(lambda: not runner.under_way) < WITHIN


def called(site: Site, picture: Path, session: str) -> str:
    """Begin an endless answer through the plain API; the event's id."""
    index = function_of(site, "generate")
    data = [component.value for component in site.app.blocks.fns[index].inputs]
    data[:2] = [uploaded(site, picture), "endless"]
    url = f"{site.url}gradio_api/call/generate"
    return str(post(url, data=data, session_hash=session)["event_id"])


@pytest.mark.parametrize("way", ["cancel", "close"])
def test_an_event_that_is_not_wanted_any_more_ends(left: Site, picture: Path, way: str) -> None:
    """Although its session is still connected, as a second stream shows."""
    runner, engine = left.app.handlers.runner, left.engine
    engine.hold()
    api, session = f"{left.url}gradio_api", f"{way}-event"
    with urllib.request.urlopen(f"{api}/heartbeat/{session}", timeout=60):
        event = called(left, picture, session)
        stream = urllib.request.urlopen(f"{api}/call/generate/{event}", timeout=60)
        assert engine.begun.wait(20)
        time.sleep(2 * GRACE_SECONDS)
        assert runner.computing == 1
        begun = time.monotonic()
        if way == "cancel":
            index = function_of(left, "generate")
            post(f"{api}/cancel", session_hash=session, fn_index=index, event_id=event)
        else:
            stream.close()
        until(lambda: not runner.under_way)
        assert time.monotonic() - begun < WITHIN
        assert engine.ended.is_set()
        stream.close()
        # The session's next question is another one.
        engine.hold()
        again = called(left, picture, session)
        with urllib.request.urlopen(f"{api}/call/generate/{again}", timeout=60) as stream:
            assert engine.begun.wait(20)
            engine.release()
            assert b"event: complete" in stream.read()
        engine.hold()


def test_presence_counts_streams_and_waits_a_moment() -> None:
    now = [100.0]
    presence = Presence(1.0, lambda: now[0])
    assert not presence.gone("a", 99.5) and presence.gone("a", 98.0)
    presence.enter("a")
    presence.enter("a")
    presence.leave("a")
    assert not presence.gone("a", 0.0) and presence.sessions == 1  # the other stream is there
    presence.leave("a")
    assert not presence.gone("a", 0.0)  # it may come back
    now[0] += 0.9
    assert not presence.gone("a", 0.0)
    presence.enter("a")
    now[0] += 5
    assert not presence.gone("a", 0.0)  # it came back
    presence.leave("a")
    now[0] += 1.1
    assert presence.gone("a", 0.0) and not presence.gone("a", now[0])
    assert presence.gone("b", 0.0) and presence.sessions == 0
