"""Protection against other sites, other machines and hostile requests.

Gradio serves files by their path, fetches addresses that a caller names, and answers requests of
any origin on a loopback name. A local tool that holds personal photos must not do that.
"""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sinkscope.config import Settings
from sinkscope.setting.serving import LOOPBACK as LOOPBACK
from sinkscope.web.server.bodies import Bodies
from sinkscope.web.server.guards import Guards
from sinkscope.web.server.logs import RequestLog
from sinkscope.web.server.uploads import MOST_FILES

# Gradio's page runs inline scripts and compiles templates, so scripts need both 'unsafe' words.
# They may load, send to and embed only this server.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
# A scheme has at least two letters: C:/ is a path.
_FETCHING = re.compile(r"/proxy=|/file[=/]\s*[a-z][a-z0-9+.-]+:/", re.IGNORECASE)


def middleware(settings: Settings, guards: Guards | None = None) -> list[Middleware]:
    """The middleware for `launch(app_kwargs={"middleware": ...})`, outermost first.

    Args:
        settings: settings of this start.
        guards: layers for access and limits.
    """
    guards = guards or Guards()
    # On loopback the host names are known, and any other name is DNS rebinding. A server for other
    # machines cannot know its names; there the password and the Origin check below protect it.
    hosts = [*LOOPBACK, "[::1]"] if settings.app.host in LOOPBACK else ["*"]
    upload_bytes = MOST_FILES * settings.images.max_bytes
    return [
        Middleware(RequestLog),
        Middleware(SecurityHeaders),  # outside the layers that refuse: for refusals too
        Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
        Middleware(SameOriginOnly),
        *guards.outer,
        Middleware(NothingFromElsewhere),
        Middleware(Bodies, upload_bytes=upload_bytes, quota=guards.quota),
        *guards.inner,
    ]


class SameOriginOnly:
    """Refuses requests made by pages of other sites."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            foreign = origin is not None and urlsplit(origin).netloc != headers.get("host")
            # A link on another site may open the page, but may not load parts of it or send to it.
            embedded = headers.get("sec-fetch-site") == "cross-site" and (
                headers.get("sec-fetch-mode") != "navigate" or scope.get("method") != "GET"
            )
            if foreign or embedded:
                refusal = PlainTextResponse("Requests from other sites are refused.", 403)
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)


class NothingFromElsewhere:
    """Refuses paths through which Gradio would fetch an address; `bodies` checks the bodies."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _names_address(scope["path"]):
            refused = PlainTextResponse("The server does not fetch from other addresses.", 403)
            await refused(scope, receive, send)
            return
        await self.app(scope, receive, send)


def _names_address(path: str) -> bool:
    for _ in range(4):  # a name may be encoded more than once
        path = unquote(path)
    return _FETCHING.search(path) is not None


class SecurityHeaders:
    """Adds the headers to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [(k, v) for k, v in message["headers"] if k.decode().lower() not in HEADERS]
                added = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
                message = {**message, "headers": [*kept, *added]}
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)
