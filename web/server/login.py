"""Users and passwords: who may log in, how often one may try, and what is open without a login.

Gradio shows the form, compares passwords by calling `Users` and remembers who is logged in, but
requires a login only at some of its routes. `LoginOnly` requires it at all others too, except those
that the form needs.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.requests import Request, cookie_parser
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sinkscope.setting.serving import AppSettings
from sinkscope.web.server.bodies import LOGIN, replayed
from sinkscope.web.server.current_request import USER
from sinkscope.web.server.throttle import Key, Throttle, later, of_address

log = logging.getLogger(__name__)

MOST_USERS = 10_000
LOG_IN = "Log in first: this needs a user and password."
LONGEST_USER_WAIT, LONGEST_ADDRESS_WAIT = 60.0, 900.0
# Routes that Gradio's form needs and that reveal nothing about users.
_OPEN = ("/", "/health", "/favicon.ico", "/robots.txt", "/manifest.json", "/theme.css", "/logout")
_OPEN_BELOW = ("/assets/", "/static/", "/svelte/", "/pwa_icon")
_OPEN_OF_GRADIO = ("startup-events", "theme.css", "app_id", "user", "login_check", "token")


class Users:
    """Names and passwords. Called with both, it returns whether they match, in constant time."""

    def __init__(self, passwords: Mapping[str, str]) -> None:
        self._passwords = {user: _bytes(word) for user, word in passwords.items()}

    def __call__(self, user: str, password: str) -> bool:
        given, fits = _bytes(password), False
        for name, expected in self._passwords.items():  # always all: constant time
            same_word = hmac.compare_digest(given, expected)
            same_name = hmac.compare_digest(_bytes(user), _bytes(name))
            fits = fits or (same_name and same_word)
        return fits


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def users_of(settings: AppSettings) -> Users | None:
    """The users of the settings; None if nobody logs in.

    Raises:
        ValueError: the file cannot be read, or one of its lines is not user:password. The message
            quotes nothing from the file.
    """
    if settings.auth is not None:
        user, _, password = settings.auth.partition(":")
        return Users({user.strip(): password})
    if settings.auth_file is None:
        return None
    path = Path(settings.auth_file)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        if path.stat().st_mode & 0o004:
            log.warning("auth_file can be read by every user of this machine (chmod 600 %s)", path)
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise ValueError(f"auth_file cannot be read: {why}.") from error
    passwords: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        user, _, password = line.partition(":")
        if not user.strip() or not password or user.strip() in passwords:
            raise ValueError(
                f"auth_file has something else in line {number}; allowed: user:password in each "
                "line, each user once."
            )
        passwords[user.strip()] = password
    if not 0 < len(passwords) <= MOST_USERS:
        raise ValueError(
            f"auth_file has {len(passwords)} users; allowed: a whole number from 1 to {MOST_USERS}."
        )
    return Users(passwords)


class LoginOnly:
    """Answers 401 to requests without a login, and stores the user in the scope of the others.

    Args:
        app: the next layer.
        logged_in: returns the user who belongs to the cookies (`session_user`).
    """

    def __init__(self, app: ASGIApp, logged_in: Callable[[Mapping[str, str]], str | None]) -> None:
        self.app, self._logged_in = app, logged_in

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # the page uses no websocket
            return
        if scope["type"] == "http":
            cookies = cookie_parser(Headers(scope=scope).get("cookie", ""))
            scope[USER] = self._logged_in(cookies)
            if scope[USER] is None and not _is_open(scope["path"]):
                answer = JSONResponse({"detail": LOG_IN}, 401)
                await answer(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _is_open(path: str) -> bool:
    below = path.removeprefix("/gradio_api/")
    return (
        path in (*_OPEN, *LOGIN)
        or path.startswith(_OPEN_BELOW)
        or (below != path and below.rstrip("/") in _OPEN_OF_GRADIO)
    )


def session_user(gradio: Any, cookies: Mapping[str, str]) -> str | None:
    """The user who is logged in: Gradio's cookies, looked up in Gradio's table.

    Args:
        gradio: Gradio's app (`Blocks.app`).
        cookies: cookies of a request.
    """
    for kind in ("access-token", "access-token-unsecure"):
        token = cookies.get(f"{kind}-{gradio.cookie_id}")
        if token and (user := gradio.tokens.get(token)) is not None:
            return str(user)
    return None


class LoginThrottle:
    """After some wrong passwords each further try waits longer, by address and by user name."""

    def __init__(self, app: ASGIApp, throttle: Throttle | None = None) -> None:
        self.app, self._throttle = app, throttle or Throttle()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in LOGIN or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        message = await receive()  # the whole body, which `web.server.bodies` has read
        if message["type"] != "http.request":
            return
        user = await _named(scope, message)
        keys = [
            Key(f"address {of_address(scope)}", LONGEST_ADDRESS_WAIT),
            Key(f"user {user}", LONGEST_USER_WAIT, forgets=True),
        ]
        if wait := self._throttle.begin(keys):
            await later(wait)(scope, receive, send)
            return

        async def seen(answer: Message) -> None:
            if answer["type"] == "http.response.start" and answer["status"] < 300:
                self._throttle.right(keys)
            await send(answer)

        await self.app(scope, replayed(message, receive), seen)


async def _named(scope: Scope, message: Message) -> str:
    """The user name of a login, as Gradio will read it; "" if there is none."""
    kind, _ = parse_options_header(Headers(scope=scope).get("content-type", ""))
    body: bytes = message.get("body", b"")
    if kind == b"application/x-www-form-urlencoded":
        fields = dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
        return fields.get("username", "").strip()

    async def once() -> Message:
        return message

    try:
        async with Request(scope, once).form() as form:
            return str(form.get("username", "")).strip()
    except Exception:  # Gradio will refuse the form; the try counts for the address
        return ""
