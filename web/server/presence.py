"""Which sessions are connected: those with an open stream through which they receive messages.

Gradio notices that a client has disconnected and marks its events, but lets the functions that it
has started run to their end. So the jobs of a session (`jobs.runner`) check for it here. A page
holds a stream as long as it is open (`/heartbeat/...`), a client of the API too. Both hold another
one while one of their events runs (`/queue/data`, `/call/...`). A page that is reloaded is a new
session. A page that loses one stream for a moment still has the other, or reconnects within
`GRACE_SECONDS`.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from urllib.parse import parse_qs

from gradio import Blocks
from starlette.types import ASGIApp, Receive, Scope, Send

# Seconds from the end of a session's last stream (or from the start of a job without one) to the
# end of the job.
GRACE_SECONDS = 1.2
_FORGET_SECONDS = 60.0  # after this time it does not matter when a session left

_HEARTBEAT = re.compile(r"/heartbeat/([^/]+)/?\Z")
CALL = re.compile(r"/call/(?:v2/)?[^/]+/([^/]+)/?\Z")


class Presence:
    """The open streams of each session. Safe to call from several threads.

    Args:
        grace: a session without a stream for this many seconds counts as gone.
        clock: time in seconds; the same clock as that of `jobs.runner`.
    """

    def __init__(
        self, grace: float = GRACE_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._grace, self._clock = grace, clock
        self._open: Counter[str] = Counter()
        self._left: dict[str, float] = {}  # when the last stream of a session ended
        self._lock = threading.Lock()

    def enter(self, session: str) -> None:
        """A stream of a session has begun."""
        with self._lock:
            self._open[session] += 1
            self._left.pop(session, None)

    def leave(self, session: str) -> None:
        """A stream of a session has ended."""
        now = self._clock()
        with self._lock:
            self._open[session] -= 1
            if self._open[session] > 0:
                return
            del self._open[session]
            self._left = {s: t for s, t in self._left.items() if now - t < _FORGET_SECONDS}
            self._left[session] = now

    def gone(self, session: str, since: float) -> bool:
        """Whether a session has no open stream, and has had none for longer than `grace`, counted
        from `since` (the start of its job) at the earliest."""
        with self._lock:
            if self._open[session] > 0:
                return False
            last = max(since, self._left.get(session, since))
        return self._clock() - last > self._grace

    def there(self, session: str) -> bool:
        """Whether a session has a stream open."""
        with self._lock:
            return self._open[session] > 0

    @property
    def sessions(self) -> int:
        """Number of sessions with an open stream."""
        with self._lock:
            return len(self._open)


class Attendance:
    """Reports each of Gradio's streams of a session to `Presence`.

    Args:
        app: the next layer.
        presence: receives the reports.
        session_of: returns the session of an event's id, for `/call/NAME/EVENT`.
    """

    def __init__(self, app: ASGIApp, presence: Presence, session_of: Callable[[str], str]) -> None:
        self.app, self._presence, self._session_of = app, presence, session_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        session = self._session(scope)
        if not session:
            await self.app(scope, receive, send)
            return
        self._presence.enter(session)
        try:
            # This returns when the client disconnects: Starlette waits for that beside the stream.
            await self.app(scope, receive, send)
        finally:
            self._presence.leave(session)

    def _session(self, scope: Scope) -> str:
        if scope["type"] != "http" or scope["method"] != "GET":
            return ""
        path = scope["path"]
        if path.endswith("/queue/data"):
            asked = parse_qs(scope["query_string"].decode("latin-1"))
            return str((asked.get("session_hash") or [""])[0])
        if (beat := _HEARTBEAT.search(path)) is not None:
            return str(beat[1])
        if (call := CALL.search(path)) is not None:
            return self._session_of(call[1])
        return ""


def session_of(blocks: Blocks, event: str) -> str:
    """The session of an event of Gradio's queue. If a caller of `/call` named none, it is the
    event's own id."""
    queue = blocks._queue
    known = queue.event_ids_to_events.get(event)
    if known is not None:
        return str(known.session_hash)
    held = list(queue.pending_event_ids_session.items())
    return str(next((session for session, events in held if event in events), event))
