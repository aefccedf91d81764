"""No bare 500, no server that runs but does not answer; and what `/health` reports about both."""

from __future__ import annotations

import asyncio
import errno
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from sinkscope.jobs.runner import Runner
from sinkscope.web import health as health_module
from sinkscope.web.health import Health, Watchdog
from sinkscope.web.runs.loaded_model import LoadedModel, LoadState
from sinkscope.web.runs.store import Run, RunStore
from sinkscope.web.server.errors import FAULT, FULL, UNKNOWN, UNWRITABLE, SpokenErrors, answer_to
from tests.loops import finished
from tests.web.conftest import Site, start_site
from tests.web.scripted import ScriptedEngine, fake_handle
from tests.web.synthetic import make_pair


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = start_site(
        tmp_path_factory.mktemp("cache"),
        ScriptedEngine(),
        handle=fake_handle(),
        example=Run(make_pair(), kind="example"),
    )
    yield made
    made.app.blocks.close(verbose=False)


def ask(site: Site, path: str, body: Any = None) -> tuple[int, Any]:
    """Status and JSON of an answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{site.url}{path}", data, {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        text = error.read()
        assert text and b"Internal Server Error" not in text, (path, body, text)
        return error.code, json.loads(text)


SERVER = "gradio_api/component_server"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("gradio_api/queue/join", {"fn_index": 99999, "data": [], "session_hash": "s"}),
        ("gradio_api/queue/join", {"fn_index": -1, "data": [], "session_hash": "s"}),
        ("gradio_api/queue/join", {"data": [], "session_hash": "s"}),
        ("gradio_api/run/nothing", {"data": []}),
        ("gradio_api/run/stop", {"data": [1, 2, 3], "fn_index": 10**9}),
        ("gradio_api/call/nothing", {"data": []}),
        (SERVER, {"session_hash": "s", "component_id": 99999, "fn_name": "x", "data": {}}),
        (SERVER, {"session_hash": "s", "component_id": 1, "fn_name": "x", "data": {}}),
        (SERVER, {"session_hash": 7, "component_id": "1", "fn_name": None, "data": {}}),
        (SERVER, {}),
        (SERVER, []),
        (SERVER, "text"),
        ("gradio_api/cancel", {"session_hash": "s", "fn_index": 1, "event_id": "none"}),
        ("gradio_api/reset", {"event_id": "none"}),
        ("gradio_api/nothing", None),
        ("gradio_api/file=/nothing/there", None),
        ("config?deep_link=none", None),
    ],
)
def test_what_is_unknown_is_said(broken: Site, path: str, body: Any) -> None:
    status, said = ask(broken, path, body)
    assert status < 500, (status, said)
    if status >= 400:
        assert said.get("detail") or said.get("error")


def answer(app: Any) -> list[Any]:
    """The messages that an app sends through `SpokenErrors`."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": "/x", "headers": []}
    finished(SpokenErrors(app)(scope, receive, send))
    return sent


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyError("s"), 404, UNKNOWN),
        (OSError(errno.ENOSPC, "No space left on device", "/secret"), 507, FULL),
        (PermissionError(errno.EACCES, "Permission denied", "/secret"), 503, UNWRITABLE),
        (ZeroDivisionError("secret"), 500, FAULT),
        (SystemExit(3), 500, FAULT),
        (KeyboardInterrupt(), 500, FAULT),
    ],
)
def test_what_escapes_becomes_a_sentence(error: BaseException, status: int, said: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise error

    sent = answer(app)
    assert sent[0]["status"] == status
    assert json.loads(sent[1]["body"]) == {"detail": said, "error": said}
    if isinstance(error, Exception):
        assert answer_to(error) == (status, said)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b'{"error": "There is no such run."}', 422, "There is no such run."),
        (b'{"error": null}', 500, FAULT),
        (b"Internal Server Error", 500, FAULT),
    ],
)
def test_what_gradio_answers_with_500_keeps_the_words_of_a_refusal(
    body: bytes, status: int, said: str
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": body[:5], "more_body": True})
        await send({"type": "http.response.body", "body": body[5:]})

    sent = answer(app)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[0]["status"] == status and json.loads(sent[1]["body"])["error"] == said


def test_a_full_temporary_folder_is_said(broken: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*given: Any, **named: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", "/secret/place")

    monkeypatch.setattr("gradio.routes.upload_fn", full)
    form = (
        b'--b\r\ncontent-disposition: form-data; name="files"; filename="a.png"\r\n\r\nx\r\n--b--'
    )
    request = urllib.request.Request(
        f"{broken.url}gradio_api/upload", form, {"content-type": "multipart/form-data; boundary=b"}
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=30)
    assert caught.value.code == 507
    assert json.load(caught.value)["detail"] == FULL


@pytest.mark.parametrize("ending", [SystemExit(3), KeyboardInterrupt()])
def test_an_exit_in_a_function_of_the_page_leaves_the_server(
    broken: Site, ending: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradio_client import Client

    def ends(*given: Any, **named: Any) -> Any:
        raise ending

    client = Client(broken.url, verbose=False)
    monkeypatch.setattr(broken.app.handlers.runner, "stop", ends)  # without the queue
    monkeypatch.setattr("sinkscope.web.api.endpoints.find_run", ends)  # through it
    with pytest.raises(Exception, match=r"inside SinkScope|went wrong|None"):
        client.submit(run="none", api_name="/map").result(timeout=30)
    with pytest.raises(Exception):  # noqa: B017  (its client has no words for it)
        client.submit(api_name="/stop").result(timeout=30)
    client.close()
    status, said = ask(broken, "health")
    assert (status, said["status"]) == (200, "ok")


def test_health(broken: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    time.sleep(2 * health_module.BEAT_SECONDS)
    status, said = ask(broken, "health")
    assert (status, said["status"], said["dead"]) == (200, "ok", [])
    assert said["model"] == {"phase": "ready", "ready": True}
    assert said["queue"] == {"computing": 0, "waiting": 0}
    assert said["memory"]["process_bytes"] > 10**7 and said["memory"]["runs_bytes"] > 0
    monkeypatch.setattr(type(broken.app.handlers.runner), "stuck", ("a job (x) does not end",))
    assert ask(broken, "health")[0] == 503


def test_a_dead_queue_is_seen(broken: Site) -> None:
    """Gradio's task is found by its name; if the name changes, this test fails, not the
    watchdog."""
    app = broken.app
    health = Health(app.loaded, app.handlers.runner, app.handlers.store)

    async def look() -> None:
        async def start_processing() -> None:
            await asyncio.sleep(0.3)

        start_processing.__qualname__ = health_module.QUEUE_TASK
        task = asyncio.ensure_future(start_processing())
        watch = asyncio.ensure_future(health.watch_loop())
        await asyncio.sleep(0.1)
        assert health.queue_seen and health.dead() == ()
        await task
        await asyncio.sleep(health_module.BEAT_SECONDS + 0.2)
        watch.cancel()

    finished(look())
    assert health.dead() == ("the queue of events is not served any more",)
    from gradio.queueing import Queue

    assert Queue.start_processing.__qualname__ == health_module.QUEUE_TASK


def test_the_watchdog_ends_a_process_whose_loop_is_dead(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RunStore(tmp_path, 1)
    loaded = SimpleNamespace(state=LoadState())
    health = Health(loaded, Runner(1), store)  # type: ignore[arg-type]
    ended = threading.Event()
    for ends in (False, True):
        dog = Watchdog(health, ends, every=0.02, end=ended.set)
        dog.start()
        time.sleep(0.1)
        assert not ended.is_set()
        health.beat = time.monotonic() - health_module.SILENT_SECONDS - 1
        assert ended.wait(0.3) == ends
        dog.close()
        health.beat = 0.0


def test_an_exit_while_a_model_loads_is_a_failure() -> None:
    def load(*given: Any, **named: Any) -> Any:
        raise SystemExit(3)

    loaded = LoadedModel(load)
    from sinkscope.config import ModelSettings

    loaded.load(ModelSettings())
    until = time.monotonic() + 10
    while loaded.state.phase == "loading" and time.monotonic() < until:
        time.sleep(0.01)
    assert loaded.state.phase == "failed"
