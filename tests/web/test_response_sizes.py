"""Sizes of the page, sessions and files as sent, compared with plain Gradio."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from gradio.state_holder import SessionState
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from sinkscope.web.server import compress
from sinkscope.web.server.compress import CompressedPage
from sinkscope.web.server.kept_files import MOST_BYTES, PREFIX, KeptFiles
from sinkscope.web.server.sessions import (
    UNREAD_SECONDS,
    LightSession,
    LightSessions,
    forget_closed_sessions,
    use_light_sessions,
)

HASH = "ab" * 32


class _App:
    """Says who asks, and counts."""

    def __init__(self, **headers: str) -> None:
        self.asked, self.headers, self.status = 0, headers, 200

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked += 1
        text = f"{scope['path']} for {Headers(scope=scope)['host']} " * 200
        await PlainTextResponse(text, self.status, self.headers)(scope, receive, send)


# --- the page -------------------------------------------------------------------------------------


def test_the_page_is_made_once_for_each_address() -> None:
    app = _App()
    client = TestClient(CompressedPage(app, kept=True))
    for _ in range(3):
        for path, host in (("/", "a"), ("/", "b"), ("/config", "a")):
            answer = client.get(path, headers={"host": host})
            assert answer.text.startswith(f"{path} for {host} ")
            assert answer.headers["content-encoding"] == "gzip"
            assert answer.headers["vary"] == "Accept-Encoding"
        assert not client.head("/", headers={"host": "a"}).content
    assert app.asked == 3


@pytest.mark.parametrize(
    ("path", "headers", "method"),
    [
        ("/", {"accept-encoding": "identity"}, "GET"),
        ("/?deep_link=x", {}, "GET"),
        ("/", {}, "POST"),
        ("/other", {}, "GET"),
    ],
)
def test_what_may_differ_is_asked_for_each_time(
    path: str, headers: dict[str, str], method: str
) -> None:
    app = _App()
    client = TestClient(CompressedPage(app, kept=True))
    for _ in range(2):
        client.request(method, path, headers=headers)
    assert app.asked == 2


def test_no_page_is_kept_where_people_log_in_or_that_is_no_page() -> None:
    closed, cookie, failing = _App(), _App(**{"set-cookie": "who=1"}), _App()
    failing.status = 503
    for app, kept in ((closed, False), (cookie, True), (failing, True)):
        client = TestClient(CompressedPage(app, kept=kept))
        answers = [client.get("/") for _ in range(2)]
        assert app.asked == 2
        assert {one.status_code for one in answers} == {app.status}
        assert answers[0].text == answers[1].text


def test_pages_of_many_addresses_do_not_stay() -> None:
    app = _App()
    client = TestClient(CompressedPage(app, kept=True))
    for number in range(2 * compress.MOST):
        client.get("/", headers={"x-forwarded-host": str(number)})
    page = client.app
    assert isinstance(page, CompressedPage)
    assert len(page._pages) == compress.MOST


# --- sessions -------------------------------------------------------------------------------------


@pytest.fixture
def blocks() -> gr.Blocks:
    with gr.Blocks() as made:
        gr.Textbox("first", elem_id="text")
        gr.State({"kept": []})
        gr.HTML("second")
    made.config = made.get_config_file()
    return made


def _described(session: SessionState) -> str:
    return json.dumps(sorted(session.components, key=lambda c: c["id"]), default=str)


def test_a_light_session_says_what_gradios_own_does(blocks: gr.Blocks) -> None:
    light, own = LightSession(blocks), SessionState(blocks)
    text = next(k for k, v in blocks.blocks.items() if isinstance(v, gr.Textbox))
    for session in (light, own):
        session[text] = gr.Textbox("changed", render=False)
        session._update_config(text)
    assert _described(light) == _described(own)
    assert "changed" in _described(light)
    assert light[text] is not blocks.blocks[text]
    assert "changed" not in _described(LightSession(blocks))  # nobody else's


def test_a_session_keeps_no_values_and_no_descriptions(blocks: gr.Blocks) -> None:
    light = LightSession(blocks)
    for key in blocks.blocks:
        light._update_value_in_config(key, "x" * 1000)
        light._update_config(key)
    state = next(k for k, v in blocks.blocks.items() if isinstance(v, gr.State))
    light[state] = {"kept": ["mine"]}
    assert light[state] == {"kept": ["mine"]}
    assert not light.config_values
    assert list(light.blocks_config.blocks) == list(blocks.default_config.blocks)
    own = light.blocks_config.blocks, light.blocks_config.fns
    assert all(not table.maps[0] for table in own)  # type: ignore[attr-defined]


def test_sessions_are_apart_and_limited(blocks: gr.Blocks) -> None:
    sessions = LightSessions()
    blocks.state_session_capacity = 2
    sessions.set_blocks(blocks)
    state = next(k for k, v in blocks.blocks.items() if isinstance(v, gr.State))
    sessions["a"][state]["kept"].append(1)
    assert sessions["a"][state] == {"kept": [1]}
    assert sessions["b"][state] == {"kept": []}
    assert isinstance(sessions["c"], LightSession)
    assert "a" not in sessions
    assert "b" in sessions


def test_nothing_is_summed_up_after_an_event(
    blocks: gr.Blocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks.queue()
    blocks.app = SimpleNamespace(state_holder=None)  # type: ignore[assignment]
    use_light_sessions(blocks)
    assert isinstance(blocks.app.state_holder, LightSessions)
    assert blocks.state_holder is blocks.app.state_holder

    def fail(records: object) -> None:
        raise AssertionError("a table is made")

    queue = blocks._queue
    monkeypatch.setattr(queue, "_get_df", fail)
    queue.events_recorded = 10**6
    record = {"function": "answer", "status": "success", "process_time": 1.0}
    assert queue.compute_analytics_summary([record]) == {"functions": {}}
    assert hasattr(type(queue)(False, 1, 1, None, blocks), "ANALYTICS_MAX_EVENTS")


def test_messages_of_sessions_that_were_left_do_not_stay(blocks: gr.Blocks) -> None:
    blocks.queue()
    sessions = LightSessions()
    sessions.set_blocks(blocks)
    blocks.app = SimpleNamespace(state_holder=sessions)  # type: ignore[assignment]
    queue = blocks._queue
    for name in ("left", "there", "late", "busy"):
        assert isinstance(sessions[name], LightSession)
        queue.pending_messages_per_session[name] = asyncio.Queue()
        queue.pending_event_ids_session[name] = {name}
        if name != "late":
            sessions.time_last_used[name] -= timedelta(seconds=UNREAD_SECONDS + 1)
    queue.pending_event_ids_session["vanished"] = set()  # Gradio has dropped its messages
    queue.event_ids_to_events["busy"] = SimpleNamespace(session_hash="busy")  # type: ignore[assignment]
    assert forget_closed_sessions(blocks, lambda session: session == "there") == 2
    assert set(queue.pending_messages_per_session) == {"there", "late", "busy"}
    assert set(queue.pending_event_ids_session) == {"there", "late", "busy"}


# --- files ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "files"
    (made / HASH).mkdir(parents=True)
    (made / HASH / "run.bin").write_bytes(b"numbers")
    (made / HASH / "image.png").write_bytes(b"pixels")
    return made


def _get(folder: Path, name: str, **headers: str) -> tuple[Any, int]:
    app = _App()
    client = TestClient(KeptFiles(app, folder))
    return client.get(f"/gradio_api/file={name}", headers=headers), app.asked


def test_a_file_of_a_run(folder: Path) -> None:
    answer, passed = _get(folder, f"{folder}/{HASH}/run.bin")
    assert (answer.content, passed) == (b"numbers", 0)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")
    again, _ = _get(folder, f"{folder}/{HASH}/run.bin", **{"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    picture, _ = _get(folder, f"{folder}/{HASH}/image.png")
    assert picture.headers["content-type"] == "image/png"


def test_everything_else_is_gradios_matter(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "secret.bin"
    outside.write_bytes(b"secret")
    (folder / HASH / "link.bin").symlink_to(outside)
    (folder / HASH / "page.html").write_text("<script>")
    (folder / HASH / "large.bin").write_bytes(b"0" * (MOST_BYTES + 1))
    (folder / HASH / "folder.bin").mkdir()
    os.mkfifo(folder / HASH / "pipe.bin")
    names = [
        *(f"{HASH}/{n}.bin" for n in ("link", "large", "folder", "pipe", "none", ".hidden")),
        f"{HASH}/page.html",
        f"{HASH}/../{HASH}/run.bin",
        f"{HASH}/../../secret.bin",
        "../secret.bin",
        f"{HASH[:-1]}/run.bin",
        f"{HASH}//run.bin",
        f"{HASH}/run.bin/",
        f"{HASH}/run.bin\0",
    ]
    for name in names:  # a path as it is in a request's scope: nothing is quoted any more
        assert KeptFiles(_App(), folder)._answer(f"{PREFIX}{folder}/{name}", Headers()) is None
    assert _get(folder, str(outside))[1] == 1
    assert _get(folder, f"{folder}/{HASH}/run.bin", range="bytes=0-1")[1] == 1


def test_a_deleted_file_is_gone(folder: Path) -> None:
    assert _get(folder, f"{folder}/{HASH}/run.bin")[1] == 0
    (folder / HASH / "run.bin").unlink()
    assert _get(folder, f"{folder}/{HASH}/run.bin")[1] == 1


def test_compressing_keeps_the_content() -> None:
    page = compress._Page(200, ((b"content-length", b"4"),), b"text", whole=True)
    page.compress()
    assert gzip.decompress(page.body) == b"text"
    assert dict(page.headers)[b"content-length"] == str(len(page.body)).encode()
