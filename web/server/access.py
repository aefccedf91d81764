"""The access token: who may come in where there is no login.

As in Jupyter, the printed link carries it (`/?token=...`); opening that sets a cookie and leads to
the address without it. The bare address shows a form for it, and programs send it with each request
as `Authorization: Bearer ...`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from html import escape
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from sinkscope.setting.serving import NO_TOKEN, AppSettings
from sinkscope.web.server.bodies import LOGIN_BYTES, GoneError, Refused, read_body
from sinkscope.web.server.throttle import Key, Throttle, later, of_address

FORM = "/access"
# What says nothing of anybody: whether the server lives, and what Gradio asks itself at its start.
OPEN = ("/health", "/gradio_api/startup-events")
DENIED = (
    "An access token is needed: open the link that the start printed, or send the header "
    "Authorization: Bearer TOKEN."
)
WRONG = "This is not the access token of this start."
LONGEST_WAIT = 900.0


def token_for(settings: AppSettings) -> str | None:
    """The token of a start: the given one, else a new one; None where none is asked for.

    None is asked for where users log in, where the settings say `none`, and where anybody may look
    (`read_only` on an address that other machines reach).
    """
    if settings.login or settings.token == NO_TOKEN:
        return None
    if settings.token is None and settings.read_only and not settings.loopback:
        return None
    return settings.token or secrets.token_urlsafe(32)


class Access:
    """Lets nobody in without the token.

    Args:
        app: what comes after it.
        token: of this start.
        port: where the server listens. Cookies of one host are sent to all its ports.
        secure: the page is served by https.
    """

    def __init__(self, app: ASGIApp, token: str, port: int, secure: bool = False) -> None:
        self.app = app
        self._token, self._secure = token.encode(), secure
        self._cookie = f"sinkscope-access-{port}"
        # The cookie is made of the token and is not it: whoever sees it cannot hand on the link.
        self._pass = hmac.new(self._token, b"sinkscope cookie", hashlib.sha256).hexdigest()
        self._throttle = Throttle()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in OPEN:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # the page has none
        else:
            answer = await self._answer(scope, receive)
            await (answer or self.app)(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Response | None:
        """What to answer instead of the page; None lets the request through."""
        headers, path = Headers(scope=scope), scope["path"]
        if scope["method"] == "POST" and path == FORM:
            try:
                body = await read_body(headers, receive, LOGIN_BYTES)
            except Refused as refusal:
                return PlainTextResponse(refusal.words, refusal.status)
            except GoneError:
                return Response(status_code=400)
            given = dict(parse_qsl(body.decode("utf-8", "replace"))).get("token", "").strip()
            return self._tried(scope, given, "/")
        query = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        named = [value for name, value in query if name == "token"]
        if scope["method"] == "GET" and path == "/" and named:
            others = urlencode([(name, value) for name, value in query if name != "token"])
            return self._tried(scope, named[-1], f"/?{others}" if others else "/")
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and not self._has_cookie(headers):
            return self._compared(scope, bearer.strip()) or _passed(path)
        if self._has_cookie(headers):
            return _passed(path)
        if scope["method"] in ("GET", "HEAD") and "text/html" in headers.get("accept", ""):
            if headers.get("sec-fetch-site") == "cross-site":
                # A link on another site: the browser keeps a strict cookie back, and sends it when
                # the page itself leads on.
                return _redirect("")
            return _form("")
        return _denied(DENIED)

    def _compared(self, scope: Scope, given: str) -> Response | None:
        """None where it is the token; else the refusal."""
        keys = [Key(f"address {of_address(scope)}", LONGEST_WAIT)]
        if wait := self._throttle.begin(keys):
            return later(wait)
        if not hmac.compare_digest(given.encode("utf-8", "replace"), self._token):
            return _denied(WRONG)
        self._throttle.right(keys)
        return None

    def _tried(self, scope: Scope, given: str, then: str) -> Response:
        """What the form and the link lead to."""
        if refusal := self._compared(scope, given):
            return _form(WRONG) if refusal.status_code == 401 else refusal
        answer = _redirect(then)
        answer.set_cookie(
            self._cookie, self._pass, httponly=True, samesite="strict", secure=self._secure
        )
        return answer

    def _has_cookie(self, headers: Headers) -> bool:
        given = cookie_parser(headers.get("cookie", "")).get(self._cookie, "")
        return hmac.compare_digest(given.encode("utf-8", "replace"), self._pass.encode())


def _passed(path: str) -> Response | None:
    return RedirectResponse("/", 303) if path == FORM else None


def _denied(words: str) -> Response:
    return PlainTextResponse(
        words, 401, {"www-authenticate": "Bearer", "cache-control": "no-store"}
    )


def _redirect(then: str) -> Response:
    """A page that opens `then` with the fragment that it was opened with, such as #run=...

    With "" it opens itself, by another query, so that the browser asks again.
    """
    current_path = "location.pathname + (location.search ? location.search + '&' : '?') + 'here'"
    target = json.dumps(then).replace("<", "\\u003c") if then else current_path
    return HTMLResponse(
        "<!doctype html><title>SinkScope</title>"
        f"<script>location.replace({target} + location.hash)</script>"
        f'<noscript><a href="{escape(then or "/")}">Open SinkScope</a></noscript>',
        200,
        {"cache-control": "no-store"},
    )


def _form(words: str) -> HTMLResponse:
    alert = f'<p role="alert">{escape(words)}</p>' if words else ""
    return HTMLResponse(_FORM.format(said=alert), 401, {"cache-control": "no-store"})


_FORM = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>SinkScope: access token</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 32rem; margin: 15vh auto; }}
label, input, button {{ display: block; font: inherit; }}
input {{ box-sizing: border-box; width: 100%; margin: .3rem 0 1rem; padding: .5rem; }}
button {{ padding: .5rem 1.2rem; }}
[role=alert] {{ color: #c0392b; }}
</style>
</head>
<body>
<h1>SinkScope</h1>
<p>This page asks for the access token of this start. It is in the link that SinkScope printed when
it was started, after <code>token=</code>.</p>
{said}
<form method="post" action="/access" onsubmit="this.action += location.hash">
<label for="token">Access token</label>
<input id="token" name="token" type="password" autocomplete="off" required autofocus>
<button>Open</button>
</form>
</body>
</html>
"""
