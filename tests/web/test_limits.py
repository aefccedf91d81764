"""Limits of one user: uploads per hour, open streams; and a read-only demo."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from sinkscope.config import AppSettings
from sinkscope.web.runs.payload import encode_image
from sinkscope.web.runs.store import Run
from sinkscope.web.server.current_request import USER
from sinkscope.web.server.quota import HOUR, MOST_ACCOUNTS, UploadQuota
from sinkscope.web.server.read_only import READ_ONLY
from sinkscope.web.server.streams import OF_SESSION, Streams
from tests.loops import finished
from tests.web.conftest import Site, start_site
from tests.web.scripted import ScriptedEngine, fake_handle
from tests.web.synthetic import make_pair, make_trace, scene

PHOTO = encode_image(scene(60, 40))[0]


def of(address: str, user: str | None = None) -> dict[str, Any]:
    return {"client": (address, 1), USER: user}


# --- uploads --------------------------------------------------------------------------------------


def test_an_hour_has_so_many_bytes_and_files() -> None:
    now = [0.0]
    settings = AppSettings(upload_megabytes=1, upload_files=3)
    quota = UploadQuota(settings, lambda: now[0])
    mine = quota.account(of("192.0.2.1"))
    assert mine.add(600_000) == "" and "1 megabytes" in mine.add(600_000)
    assert quota.account(of("192.0.2.2")).add(600_000) == ""  # another's
    assert quota.account(of("192.0.2.1", "ada")).add(600_000) == ""  # a user has their own
    now[0] += HOUR + 61
    assert mine.refusal() == "" and [mine.add(0, 1) for _ in range(3)] == ["", "", ""]
    assert "3 files" in mine.add(0, 1)


def test_accounts_take_no_memory_without_end() -> None:
    quota = UploadQuota(AppSettings())
    for n in range(MOST_ACCOUNTS + 100):
        quota.account(of(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}"))
    assert len(quota._accounts) == MOST_ACCOUNTS
    one = quota.account(of("192.0.2.1"))
    for _ in range(10_000):
        one.add(1)
    assert len(one.slices) <= 2


def test_an_ipv6_network_is_one_account() -> None:
    quota = UploadQuota(AppSettings())
    assert quota.account(of("2001:db8::1")) is quota.account(of("2001:db8::2"))
    assert quota.account(of("2001:db8::1")) is not quota.account(of("2001:db8:1::1"))


def multipart(count: int) -> bytes:
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    return b"".join(part + PHOTO + b"\r\n" for _ in range(count)) + b"--x--\r\n"


def upload(site: Site, count: int, chunked: bool = False) -> tuple[int, str]:
    connection = HTTPConnection(urlsplit(site.url).netloc, timeout=20)
    kind = {"content-type": "multipart/form-data; boundary=x"}
    body: Any = iter([multipart(count)]) if chunked else multipart(count)
    path = "/gradio_api/upload"
    connection.request("POST", path, body, kind, encode_chunked=chunked)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_uploads_beyond_it_are_refused(tmp_path: Path) -> None:
    page = {"upload_files": 5, "upload_megabytes": 1}
    site = start_site(tmp_path, ScriptedEngine(), handle=fake_handle(), page=page)
    try:
        assert upload(site, 3)[0] == 200
        assert upload(site, 2, chunked=True)[0] == 200
        status, words = upload(site, 1)
        assert status == 413 and "5 files" in words
    finally:
        site.app.blocks.close(verbose=False)
    many = 1_000_000 // len(PHOTO) // 2 + 10
    page = {"upload_files": 10_000, "upload_megabytes": 1}
    site = start_site(tmp_path, ScriptedEngine(), handle=fake_handle(), page=page)
    try:
        assert upload(site, many)[0] == 200
        assert upload(site, many)[0] == 429  # known by its length, before it is read
        status, words = upload(site, many, chunked=True)
        assert status == 413 and "1 megabytes" in words
    finally:
        site.app.blocks.close(verbose=False)


# --- streams --------------------------------------------------------------------------------------


def test_a_session_and_an_address_hold_so_many_streams() -> None:
    async def play() -> list[int]:
        over = asyncio.Event()

        async def stays(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await over.wait()

        guard, statuses = Streams(stays, most_of_address=6), []

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        async def open_one(session: str, address: str = "192.0.2.1") -> asyncio.Task[None]:
            scope = {
                "type": "http", "method": "GET", "client": (address, 1), "query_string": b"",
                "path": f"/gradio_api/heartbeat/{session}", "headers": [],
            }  # fmt: skip
            task = asyncio.create_task(guard(scope, None, send))  # type: ignore[arg-type]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            return task

        tasks = [await open_one("a") for _ in range(OF_SESSION + 1)]
        tasks += [await open_one(f"b{n}") for n in range(3)]
        tasks.append(await open_one("c", "192.0.2.2"))
        tasks[0].cancel()  # the other side left
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        tasks.append(await open_one("d"))
        over.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not guard._open
        return statuses

    assert finished(play()) == [200] * OF_SESSION + [429, 200, 200, 429, 200, 200]


def test_heartbeats_of_a_running_app_are_bounded(tmp_path: Path) -> None:
    site = start_site(tmp_path, ScriptedEngine(), handle=fake_handle(), page={"streams": 3})
    opened = []
    try:
        statuses = []
        for n in range(5):
            connection = HTTPConnection(urlsplit(site.url).netloc, timeout=20)
            connection.request("GET", f"/gradio_api/heartbeat/session{n}")
            statuses.append(connection.getresponse().status)
            opened.append(connection)
        assert statuses == [200, 200, 200, 429, 429]
    finally:
        for connection in opened:
            connection.close()
        site.app.blocks.close(verbose=False)


# --- a demo that is only looked at ----------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = start_site(
        tmp_path_factory.mktemp("cache"),
        ScriptedEngine(),
        handle=fake_handle(),
        example=Run(make_pair(), kind="example"),
        page={"read_only": True},
    )
    yield site
    site.app.blocks.close(verbose=False)


def config_of(site: Site) -> dict[str, Any]:
    connection = HTTPConnection(urlsplit(site.url).netloc, timeout=20)
    connection.request("GET", "/config")
    page: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return page


def test_the_page_says_so_and_its_buttons_are_grey(demo: Site) -> None:
    components = config_of(demo)["components"]
    by_id = {c["props"].get("elem_id"): c["props"] for c in components}
    assert by_id["read-only"]["value"] == READ_ONLY
    for name in ("generate", "load", "sinks-run", "experiments-run", "evaluate-run"):
        assert by_id[name]["interactive"] is False, name


@pytest.mark.parametrize(
    ("endpoint", "asked"),
    [
        ("/generate", {"image": None, "prompt": "Hello"}),
        ("/compare", {"image": None, "prompt": "Hello"}),
        ("/load", {"model": "demo"}),
        ("/region", {"rows": "0-1", "columns": "0-1"}),
    ],
)
def test_the_api_refuses_with_one_sentence(
    demo: Site, endpoint: str, asked: dict[str, Any]
) -> None:
    from gradio_client import Client

    client = Client(demo.url, verbose=False)
    component = demo.app.handlers.component
    assert component is not None
    if endpoint == "/region":
        asked = {**asked, "run": component.value["run"]}
    with pytest.raises(Exception, match="read-only demo") as refused:
        client.predict(**asked, api_name=endpoint)
    assert READ_ONLY in str(refused.value)
    assert client.predict(run=component.value["run"], tokens="1", api_name="/map")[0]["rows"] == 8
    client.close()


def test_every_function_that_is_not_for_looking_refuses(demo: Site) -> None:
    changing = {
        "generate", "compare", "load", "load_model", "region", "test_region", "explain_tokens",
        "take", "find_sinks", "run_experiment", "run_evaluation", "go_on",
    }  # fmt: skip
    seen = set()
    for function in demo.app.blocks.fns.values():
        name = getattr(function.fn, "__name__", "")
        if name in changing:
            seen.add(name)
            with pytest.raises(Exception, match="read-only demo"):
                function.fn()
    assert seen == changing


def test_uploads_and_deletion_are_refused(demo: Site) -> None:
    assert upload(demo, 1) == (403, READ_ONLY)
    handlers = demo.app.handlers
    run = Run({"baseline": make_trace()})
    handlers.store.put(run)
    assert handlers.forget_run({"run": run.id}) == {"error": READ_ONLY}
    assert handlers.store.get(run.id) is run


def test_no_model_is_loaded_for_it(tmp_path: Path) -> None:
    site = start_site(tmp_path, ScriptedEngine(), page={"read_only": True})
    try:
        assert site.app.loaded.state.phase == "none"
    finally:
        site.app.blocks.close(verbose=False)
