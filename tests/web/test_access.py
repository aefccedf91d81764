"""The access token: page and API refuse requests without it, and the three ways to send it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import pytest

from sinkscope.config import AppSettings
from sinkscope.web.runs.store import Run
from sinkscope.web.server.access import DENIED, WRONG, Access, token_for
from sinkscope.web.server.throttle import FREE_TRIES
from tests.loops import finished
from tests.web.conftest import Site, start_site
from tests.web.scripted import ScriptedEngine, fake_handle
from tests.web.synthetic import make_pair

TOKEN = "a-token-of-the-tests_0123456789"
BEARER = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = start_site(
        tmp_path_factory.mktemp("cache"),
        ScriptedEngine(),
        handle=fake_handle(),
        example=Run(make_pair(), kind="example"),
        token=TOKEN,
    )
    yield site
    site.app.blocks.close(verbose=False)


def ask(
    site: Site, path: str, method: str = "GET", body: str | None = None, **headers: str
) -> tuple[int, dict[str, str], str]:
    connection = HTTPConnection(urlsplit(site.url).netloc, timeout=20)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, given)
    answer = connection.getresponse()
    found = {name.lower(): value for name, value in answer.getheaders()}
    text = answer.read().decode("utf-8", "replace")
    connection.close()
    return answer.status, found, text


CLOSED = [
    "/", "/config", "/openapi.json", "/gradio_api/info", "/gradio_api/openapi.json",
    "/gradio_api/deep_link", "/?deep_link=x", "/gradio_api/queue/status", "/gradio_api/app_id",
    "/gradio_api/heartbeat/abc", "/gradio_api/file=/etc/passwd", "/gradio_api/queue/data",
    "/theme.css", "/login", "/monitoring", "/docs", "/static/x", "/assets/x", "//", "/%2e/config",
]  # fmt: skip


@pytest.mark.parametrize("path", CLOSED)
def test_nothing_without_the_token(locked: Site, path: str) -> None:
    status, headers, text = ask(locked, path)
    assert (status, text) == (401, DENIED)
    assert headers["www-authenticate"] == "Bearer" and "content-security-policy" in headers


@pytest.mark.parametrize(
    "path", ["/gradio_api/queue/join", "/gradio_api/call/generate", "/gradio_api/upload", "/login"]
)
def test_nothing_is_taken_without_the_token(locked: Site, path: str) -> None:
    assert ask(locked, path, "POST", "{}")[0] == 401


def test_the_bare_address_shows_a_form(locked: Site) -> None:
    status, _, text = ask(locked, "/", accept="text/html")
    assert status == 401 and '<input id="token" name="token"' in text
    assert TOKEN not in text and "gradio" not in text


def test_the_form_gives_a_cookie_that_opens_the_page(locked: Site) -> None:
    kind = "application/x-www-form-urlencoded"
    status, headers, text = ask(locked, "/access", "POST", f"token={TOKEN}", content_type=kind)
    assert status == 200 and 'location.replace("/" + location.hash)' in text
    cookie = headers["set-cookie"]
    port = urlsplit(locked.url).port
    assert cookie.startswith(f"sinkscope-access-{port}=")  # cookies are shared by all ports
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and TOKEN not in cookie
    sent = cookie.partition(";")[0]
    assert ask(locked, "/config", cookie=sent)[0] == 200
    assert ask(locked, "/config", cookie=sent[:-1])[0] == 401
    assert ask(locked, "/config", cookie=f"sinkscope-access-1={sent.partition('=')[2]}")[0] == 401


def test_the_printed_link_leads_to_the_page_without_the_token(locked: Site) -> None:
    status, headers, text = ask(locked, f"/?token={TOKEN}&__theme=dark")
    assert status == 200 and TOKEN not in text and '"/?__theme=dark"' in text
    assert headers["cache-control"] == "no-store" and "set-cookie" in headers


def test_a_wrong_link_and_form_give_none(locked: Site) -> None:
    for status, headers, text in (
        ask(locked, "/?token=wrong"),
        ask(locked, "/access", "POST", "token=wrong"),
    ):
        assert status == 401 and WRONG in text and "set-cookie" not in headers


def test_a_link_on_another_site_asks_once_more_for_the_cookie(locked: Site) -> None:
    """The browser does not send a strict cookie here; the answer must not be a form or a loop."""
    asked = {"accept": "text/html", "sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    status, _, text = ask(locked, "/", **asked)
    assert status == 200 and "location.replace" in text and "'here'" in text
    assert ask(locked, "/?here", accept="text/html", sec_fetch_site="same-origin")[0] == 401


def test_programs_send_it_as_a_header(locked: Site) -> None:
    from gradio_client import Client

    assert ask(locked, "/config", **BEARER)[0] == 200
    assert ask(locked, "/config", authorization=f"Basic {TOKEN}")[0] == 401
    client = Client(locked.url, headers={"Authorization": f"Bearer {TOKEN}"}, verbose=False)
    example = locked.app.handlers.component
    assert example is not None
    heat, _ = client.predict(run=example.value["run"], tokens="1", api_name="/map")
    assert heat["rows"] == 8
    client.close()


def test_what_is_open_says_nothing_of_anybody(locked: Site) -> None:
    assert ask(locked, "/gradio_api/startup-events")[0] == 200
    assert ask(locked, "/health")[0] != 401


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({}, True),
        ({"token": "none"}, False),
        ({"auth": "me:secret"}, False),
        ({"host": "0.0.0.0", "read_only": True}, False),
        ({"host": "0.0.0.0", "token": TOKEN}, True),
        ({"read_only": True}, True),
    ],
)
def test_which_starts_have_one(settings: dict[str, Any], asked: bool) -> None:
    made = token_for(AppSettings(**settings))
    assert (made is not None) == asked
    if asked and "token" not in settings:
        assert re.fullmatch(r"[\w-]{43}", made or "") and made != token_for(AppSettings(**settings))


@pytest.mark.parametrize("token", ["short", "with spaces in it 12345", "x" * 201, "ä" * 20])
def test_a_malformed_token_is_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(ValueError, match="token is malformed") as refused:
        AppSettings(token=token)
    assert token not in str(refused.value)


def test_a_token_beside_a_login_is_refused() -> None:
    with pytest.raises(ValueError, match="token and a login are both given"):
        AppSettings(token=TOKEN, auth="me:secret")


def test_guessing_is_slowed_down() -> None:
    """Also with the right one in the end; otherwise the wait would be useless."""

    async def through(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("let in")

    guard = Access(through, TOKEN, 1)
    statuses = []

    async def guess(word: str) -> None:
        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        scope = {
            "type": "http", "method": "GET", "path": "/config", "client": ("127.0.0.1", 1),
            "headers": [(b"authorization", f"Bearer {word}".encode())],
        }  # fmt: skip
        await guard(scope, None, send)  # type: ignore[arg-type]

    for n in range(FREE_TRIES + 1):
        finished(guess(f"wrong{n}"))
    finished(guess(TOKEN))
    assert statuses == [401] * FREE_TRIES + [429, 429]
