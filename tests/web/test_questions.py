"""Quick questions are answered before Gradio sees them; all others are answered as before."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from sinkscope.web.explore.quick_questions import PATHS, QUICK, QuickQuestions
from sinkscope.web.runs.job_values import UNFORESEEN
from sinkscope.web.runs.store import Run
from sinkscope.web.runs.value_cache import RunValueCache
from tests.loops import finished
from tests.web.conftest import Site
from tests.web.synthetic import make_trace

INSPECTOR = 63


class _Handlers:
    """Records the request and its thread."""

    def __init__(self) -> None:
        self.component = SimpleNamespace(_id=INSPECTOR)
        self.threads: list[str] = []

    def opened(self, ask: Any) -> dict[str, Any] | None:
        self.threads.append(threading.current_thread().name)
        return {"ready": ask} if ask == "ready" else None

    def open_run(self, ask: Any) -> dict[str, Any]:
        self.threads.append(threading.current_thread().name)
        return {"open_run": ask}

    def token_maps(self, ask: Any) -> dict[str, Any]:
        if ask == "fail":
            raise KeyError(ask)
        return {"token_maps": ask}

    def forget_run(self, ask: Any) -> dict[str, Any]:
        raise AssertionError("is Gradio's matter")


async def _echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await PlainTextResponse(b"gradio " + body)(scope, receive, send)


@pytest.fixture
def handlers() -> _Handlers:
    return _Handlers()


@pytest.fixture
def client(handlers: _Handlers) -> TestClient:
    return TestClient(QuickQuestions(_echo, handlers))  # type: ignore[arg-type]


def _body(name: Any = "token_maps", where: Any = INSPECTOR, data: Any = "x") -> dict[str, Any]:
    return {"component_id": where, "fn_name": name, "data": data, "session_hash": "s"}


@pytest.mark.parametrize("path", PATHS)
def test_a_quick_question(client: TestClient, path: str) -> None:
    answer = client.post(path, json=_body())
    assert answer.json() == {"token_maps": "x"}
    assert answer.headers["content-type"] == "application/json"


def test_what_lies_ready_takes_no_thread(client: TestClient, handlers: _Handlers) -> None:
    assert client.post(PATHS[0], json=_body("open_run", data="ready")).json() == {"ready": "ready"}
    (loop,) = handlers.threads
    assert client.post(PATHS[0], json=_body("open_run", data="other")).json() == {
        "open_run": "other"
    }
    assert "worker" not in loop
    assert "worker" in handlers.threads[-1]


def test_a_fault_is_a_sentence(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    answer = client.post(PATHS[0], json=_body(data="fail"))
    assert (answer.status_code, answer.json()) == (200, {"error": UNFORESEEN})
    assert "token_maps failed" in caplog.text


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(_body("forget_run")),
        json.dumps(_body("__init__")),
        json.dumps(_body(["token_maps"])),
        json.dumps(_body({"a": 1})),
        json.dumps(_body(where=64)),
        json.dumps(_body(where=str(INSPECTOR))),
        json.dumps(_body(where=None)),
        json.dumps([_body()]),
        "[" * 100_000,
        "{",
        "",
        "\udcff",
    ],
)
def test_everything_else_reaches_gradio_as_it_was(client: TestClient, body: str) -> None:
    sent = body.encode(errors="surrogateescape")
    assert client.post(PATHS[0], content=sent).content == b"gradio " + sent


def test_a_body_in_pieces_reaches_gradio_whole(handlers: _Handlers) -> None:
    whole = json.dumps(_body()).encode()
    pieces = [whole[:10], whole[10:]]
    sent: list[bytes] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    scope = {"type": "http", "method": "POST", "path": PATHS[0], "headers": []}
    finished(QuickQuestions(_echo, handlers)(scope, receive, send))  # type: ignore[arg-type]
    assert b"".join(sent) == b"gradio " + whole


def test_other_requests_reach_gradio(client: TestClient) -> None:
    whole = json.dumps(_body()).encode()
    assert client.post("/gradio_api/other", content=whole).content == b"gradio " + whole
    assert client.put(PATHS[0], content=whole).content == b"gradio " + whole


def test_true_is_no_component(handlers: _Handlers) -> None:
    handlers.component._id = 1
    client = TestClient(QuickQuestions(_echo, handlers))  # type: ignore[arg-type]
    assert client.post(PATHS[0], json=_body(where=True)).content.startswith(b"gradio ")


def test_of_the_app_itself(site: Site) -> None:
    """The same answers as the handlers', for a run, for none, and for nonsense."""
    handlers = site.app.handlers
    assert handlers.component is not None
    assert all(callable(getattr(handlers, name)) for name in QUICK)
    where, run = handlers.component._id, handlers.component.value["run"]
    maps = {"run": run, "variant": "baseline", "start": 0, "stop": 1, "whole": True}
    for name, ask in (
        ("open_run", {"run": run}),
        ("open_run", {"run": "x" * 22}),
        ("open_run", None),
        ("token_maps", maps),
        ("token_maps", {**maps, "stop": 10**6}),
        ("tokens_since", {"run": run}),
    ):
        answer = httpx.post(f"{site.url.rstrip('/')}{PATHS[0]}", json=_body(name, where, ask))
        assert (answer.status_code, answer.json()) == (200, getattr(handlers, name)(ask))


def test_a_deleted_run_is_not_opened_from_what_lies_ready(site: Site) -> None:
    handlers = site.app.handlers
    run = Run({"baseline": make_trace()})
    handlers.store.put(run)
    assert handlers.opened({"run": run.id}) is None  # not made yet
    value = handlers.open_run({"run": run.id})
    assert handlers.opened({"run": run.id}) == value
    # As if another thread trims the folder: the event loop must not wait for that.
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with handlers.store._lock:
            held.set()
            release.wait(30)

    other = threading.Thread(target=hold)
    other.start()
    assert held.wait(30) and handlers.opened({"run": run.id}) is None
    release.set()
    other.join()
    assert handlers.opened({"run": run.id}) == value
    handlers.forget_run({"run": run.id})
    assert handlers.opened({"run": run.id}) is None
    assert isinstance(handlers._shown, RunValueCache)
    for nonsense in (None, 5, "x", {"run": 5}, {"run": ["a"]}):
        assert handlers.opened(nonsense) is None
