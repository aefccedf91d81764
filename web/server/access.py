"""The access token: who may come in if there is no login.

As in Jupyter, the printed link contains the token (`/?token=...`). Opening it sets a cookie and
redirects to the address without the token. The address without a token shows a form for it, and
programs send it with each request as `Authorization: Bearer ...`.
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
# Open without a token: whether the server lives, and what Gradio requests from itself at its start.
OPEN = ("/health", "/gradio_api/startup-events")
DENIED = (
    "An access token is needed: open the link that the start printed, or send the header "
    "Authorization: Bearer TOKEN."
)
WRONG = "This is not the access token of this start."
LONGEST_WAIT = 900.0


def token_for(settings: AppSettings) -> str | None:
    """The token of a start: the given one, or a new one. None: no token is required.

    No token is required if users log in, if the settings say `none`, and if anybody may look
    (`read_only` on an address that other machines reach).
    """
    if settings.login or settings.token == NO_TOKEN:
        return None
    if settings.token is None and settings.read_only and not settings.loopback:
        return None
    return settings.token or secrets.token_urlsafe(32)


class Access:
    """Refuses requests without the token.

    Args:
        app: the next layer.
        token: the token of this start.
        port: port of the server; it is part of the cookie's name, because browsers send the cookies
            of a host to all its ports.
        secure: whether the page is served by https.
    """

    def __init__(self, app: ASGIApp, token: str, port: int, secure: bool = False) -> None:
        self.app = app
        self._token, self._secure = token.encode(), secure
        self._cookie = f"sinkscope-access-{port}"
        # The cookie is derived from the token, so the link cannot be rebuilt from the cookie.
        self._pass = hmac.new(self._token, b"sinkscope cookie", hashlib.sha256).hexdigest()
        self._throttle = Throttle()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in OPEN:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # the page uses no websocket
        else:
            answer = await self._answer(scope, receive)
            await (answer or self.app)(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Response | None:
        """The answer to send instead of the page; None lets the request through."""
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
                # A link on another site: the browser does not send a strict cookie with it, but
                # does send it when our own page redirects.
                return _redirect("")
            return _form("")
        return _denied(DENIED)

    def _compared(self, scope: Scope, given: str) -> Response | None:
        """None if `given` is the token; otherwise the refusal."""
        keys = [Key(f"address {of_address(scope)}", LONGEST_WAIT)]
        if wait := self._throttle.begin(keys):
            return later(wait)
        if not hmac.compare_digest(given.encode("utf-8", "replace"), self._token):
            return _denied(WRONG)
        self._throttle.right(keys)
        return None

    def _tried(self, scope: Scope, given: str, then: str) -> Response:
        """The answer to a token from form or link: a redirect with the cookie, or a refusal."""
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
    """A page that redirects to `then` and keeps the fragment of the address, such as #run=...

    With "" it reloads itself with another query, so that the browser sends a new request.
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
    return HTMLResponse(_FORM.format(message=alert), 401, {"cache-control": "no-store"})


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
{message}
<form method="post" action="/access" onsubmit="this.action += location.hash">
<label for="token">Access token</label>
<input id="token" name="token" type="password" autocomplete="off" required autofocus>
<button>Open</button>
</form>
</body>
</html>
"""
