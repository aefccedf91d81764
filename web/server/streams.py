"""How many streams (heartbeats, events) one session and one address may hold open.

A heartbeat is a connection that stays open, so without a limit one client could open any number.
"""

from __future__ import annotations

from collections import Counter
from urllib.parse import parse_qs

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sinkscope.web.server.throttle import of_address

OF_SESSION = 4  # a tab has one of each kind; after a reload its old one stays open for a moment
_HEARTBEAT = "/gradio_api/heartbeat/"
_EVENTS = ("/gradio_api/queue/data", "/gradio_api/upload_progress")


class Streams:
    """Refuses a stream over the limit with 429.

    Args:
        app: the next layer.
        of_address: how many streams of both kinds one address may have open.
    """

    def __init__(self, app: ASGIApp, most_of_address: int) -> None:
        self.app, self._most = app, most_of_address
        self._open: Counter[str] = Counter()  # contains only open streams, so it stays small

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        session = _session(scope) if scope["type"] == "http" else None
        if session is None:
            await self.app(scope, receive, send)
            return
        limits = {f"address {of_address(scope)}": self._most, session: OF_SESSION}
        if any(self._open[name] >= most for name, most in limits.items()):
            words = (
                f"Too many open streams; allowed: {OF_SESSION} of a kind per session and "
                f"{self._most} per address."
            )
            await PlainTextResponse(words, 429)(scope, receive, send)
            return
        self._open.update(limits.keys())
        try:
            await self.app(scope, receive, send)
        finally:
            for name in limits:
                self._open[name] -= 1
                if self._open[name] <= 0:
                    del self._open[name]


def _session(scope: Scope) -> str | None:
    """Kind and session of a stream; None for any other request."""
    path = scope["path"]
    if path.startswith(_HEARTBEAT):
        return str(path[:300])
    if path.rstrip("/") in _EVENTS or path.startswith("/gradio_api/call/"):
        if scope["method"] != "GET":
            return None
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        named = query.get("session_hash") or query.get("upload_id") or [path[-100:]]
        return f"{path.rstrip('/')[:100]} {named[0][:100]}"
    return None
