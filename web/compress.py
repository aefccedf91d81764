"""Compresses the page itself, which carries all of our scripts, styles and templates.

Only that: runs and images are compressed already, and what is streamed must not wait for a buffer.
"""

from __future__ import annotations

from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

PAGES = ("/", "/config")


class CompressedPage:
    """Gzips the answers to the requests for the page and its description."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.compressed = GZipMiddleware(app, minimum_size=1000, compresslevel=6)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        page = scope["type"] == "http" and scope["path"] in PAGES
        await (self.compressed if page else self.app)(scope, receive, send)
