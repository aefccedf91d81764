"""The page itself, which contains all our scripts, styles and templates: built and compressed
once, then sent from memory.

Gradio builds it for each request, which takes 50 milliseconds of the interpreter's time. This is
done only for the page and its description: runs and images are already compressed, and streams must
not wait for a buffer.
"""

from __future__ import annotations

import gzip
from collections.abc import Hashable
from dataclasses import dataclass

from cachetools import LRUCache
from starlette.datastructures import Headers
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGES = ("/", "/config")
PARTS = "/part/"  # scripts loaded later (`web.components.parts`): compressed, not kept here
MOST = 8  # pages kept: one for each address under which the page is requested
LEVEL = 6


@dataclass
class _Page:
    """An answer while it is received, then as it is kept. `body` is compressed once complete."""

    status: int = 0
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    whole: bool = False

    def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], tuple(message["headers"])
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")
            self.whole = not message.get("more_body", False)

    @property
    def may_be_kept(self) -> bool:
        headers = Headers(raw=list(self.headers))
        return self.whole and self.status == 200 and "set-cookie" not in headers

    def compress(self) -> None:
        self.body = gzip.compress(self.body, LEVEL, mtime=0)
        replaced = (b"content-length", b"content-encoding", b"vary")
        self.headers = (
            *((k, v) for k, v in self.headers if k.lower() not in replaced),
            (b"content-length", str(len(self.body)).encode()),
            (b"content-encoding", b"gzip"),
            (b"vary", b"Accept-Encoding"),
        )


class CompressedPage:
    """Gzips the answers to requests for the page and its description.

    Args:
        app: the next layer, which makes the answers.
        kept: whether to keep them. False if users log in: the page then depends on the user.
    """

    def __init__(self, app: ASGIApp, kept: bool = False) -> None:
        self.app = app
        self.compressed = GZipMiddleware(app, minimum_size=1000, compresslevel=LEVEL)
        self._keeps = kept
        self._pages: LRUCache[Hashable, _Page] = LRUCache(MOST)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(PARTS):
            await self.compressed(scope, receive, send)
        elif scope["type"] != "http" or scope["path"] not in PAGES:
            await self.app(scope, receive, send)
        elif not self._keeps or not _is_plain(scope):
            await self.compressed(scope, receive, send)
        else:
            await self._send_kept(scope, receive, send)

    async def _send_kept(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = _address(scope)
        page = self._pages.get(key)
        if page is None:
            page = _Page()

            async def take(message: Message) -> None:
                page.take(message)

            await self.app({**scope, "method": "GET"}, receive, take)
            if page.may_be_kept:
                page.compress()
                self._pages[key] = page
        headers = list(page.headers)  # outer layers add their own headers
        await send({"type": "http.response.start", "status": page.status, "headers": headers})
        body = b"" if scope["method"] == "HEAD" else page.body
        await send({"type": "http.response.body", "body": body})


def _is_plain(scope: Scope) -> bool:
    """Whether everybody gets the same answer to this request: the page, without a query."""
    accepted = Headers(scope=scope).get("accept-encoding", "")
    return scope["method"] in ("GET", "HEAD") and not scope["query_string"] and "gzip" in accepted


def _address(scope: Scope) -> Hashable:
    """Everything that addresses inside the page depend on."""
    named = sorted(
        (k, v) for k, v in scope["headers"] if k in (b"host", b"forwarded") or k[:2] == b"x-"
    )
    return scope["path"], scope.get("scheme"), scope.get("root_path"), tuple(named)
