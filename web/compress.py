"""Compresses the page, which carries our scripts, styles and templates, and what comes later of it.

Only that: runs and images are compressed already, and what is streamed must not wait for a buffer.
"""

from __future__ import annotations

from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

PAGES = ("/", "/config")
PARTS = "/part/"  # `web.parts`


class CompressedPage:
    """Gzips the answers to the requests for the page, its description, and its later scripts."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.compressed = GZipMiddleware(app, minimum_size=1000, compresslevel=6)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        page = scope["type"] == "http" and (path in PAGES or path.startswith(PARTS))
        await (self.compressed if page else self.app)(scope, receive, send)
