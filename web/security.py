"""What stands between the page and other sites, other machines and hostile requests.

Gradio serves files by their path, fetches addresses that a caller names, and answers any origin on
a loopback name. A local tool with a person's photos in it should do none of that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sinkscope.config import AppSettings

LOOPBACK = ("127.0.0.1", "localhost", "::1")

# Gradio's own page starts inline scripts and compiles templates, so scripts need both 'unsafe'
# words; what they may load, send and embed is this server alone.
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
_JSON_LIMIT = 2_000_000


def middleware(settings: AppSettings) -> list[Middleware]:
    """For `launch(app_kwargs={"middleware": ...})`, outermost first."""
    # On loopback the names are known, and any other is a rebound DNS name. A server for other
    # machines cannot know its names; there the password protects it, and the Origin check below.
    hosts = [*LOOPBACK, "[::1]"] if settings.host in LOOPBACK else ["*"]
    return [
        Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
        Middleware(SameOriginOnly),
        Middleware(NothingFromElsewhere),
        Middleware(SecurityHeaders),
    ]


class SameOriginOnly:
    """Refuses a request that another site's page makes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            foreign = origin is not None and urlsplit(origin).netloc != headers.get("host")
            # A link from another site may open the page, but nothing may be loaded or sent by it.
            embedded = headers.get("sec-fetch-site") == "cross-site" and (
                headers.get("sec-fetch-mode") != "navigate" or scope.get("method") != "GET"
            )
            if foreign or embedded:
                refusal = PlainTextResponse("Requests from other sites are refused.", 403)
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)


class NothingFromElsewhere:
    """Blocks the ways to make the server fetch an address: in a path, or as a file to read."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refused = PlainTextResponse("The server does not fetch from other addresses.", 403)
        if _names_address(scope["path"]):
            await refused(scope, receive, send)
            return
        kind = Headers(scope=scope).get("content-type", "")
        if scope["method"] != "POST" or "json" not in kind:
            await self.app(scope, receive, send)
            return
        body = await _read(receive)
        if body is None:
            await PlainTextResponse("The request is too large.", 413)(scope, receive, send)
        elif _has_remote_file(body):
            await refused(scope, receive, send)
        else:
            await self.app(scope, _replay(body, receive), send)


def _names_address(path: str) -> bool:
    for _ in range(4):  # a name may be encoded more than once
        path = unquote(path)
    _, marker, rest = path.partition("/file=")
    return "/proxy=" in path or (bool(marker) and "://" in rest.replace(":/", "://", 1)[:16])


async def _read(receive: Receive) -> bytes | None:
    chunks, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b"".join(chunks)
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > _JSON_LIMIT:
            return None
        if not message.get("more_body"):
            return b"".join(chunks)


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _has_remote_file(body: bytes) -> bool:
    """Whether a file of the request is to be fetched from an address instead of being an upload."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return False  # not for us to judge: Gradio refuses it
    for item in _mappings(content):
        path, url = item.get("path"), item.get("url")
        if isinstance(path, str) and "://" in path:
            return True
        # A browser sends the url that Gradio gave it, next to the path on this machine.
        if isinstance(url, str) and "://" in url and not isinstance(path, str):
            return True
    return False


def _mappings(content: Any) -> Iterator[dict[str, Any]]:
    waiting = [content]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield item
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)


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
