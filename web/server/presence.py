"""Which sessions have somebody there: those with a stream open through which they are told things.

Gradio notices that a client is gone, and marks its events, but lets what they have begun compute to
its end. So the jobs of a session (`jobs.runner`) look here. A page holds a stream of its own for as
long as it is open (`/heartbeat/...`), a client of the API too, and both one of messages while an
event of theirs is under way (`/queue/data`, `/call/...`). A page that loads again is another
session; one that loses one stream for a moment has the other, and `GRACE_SECONDS`.
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

# Between the end of a session's last stream, or a job's beginning without one, and the job's end.
GRACE_SECONDS = 1.2
_FORGET_SECONDS = 60.0  # after which it makes no difference when a session left

_HEARTBEAT = re.compile(r"/heartbeat/([^/]+)/?\Z")
CALL = re.compile(r"/call/(?:v2/)?[^/]+/([^/]+)/?\Z")


class Presence:
    """The open streams of each session. Safe to call from several threads.

    Args:
        grace: seconds without a stream after which a session counts as gone.
        clock: in seconds; that of `jobs.runner`.
    """

    def __init__(
        self, grace: float = GRACE_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._grace, self._clock = grace, clock
        self._open: Counter[str] = Counter()
        self._left: dict[str, float] = {}  # when the last stream of a session ended
        self._lock = threading.Lock()

    def enter(self, session: str) -> None:
        """A stream of a session begins."""
        with self._lock:
            self._open[session] += 1
            self._left.pop(session, None)

    def leave(self, session: str) -> None:
        """A stream of a session is over."""
        now = self._clock()
        with self._lock:
            self._open[session] -= 1
            if self._open[session] > 0:
                return
            del self._open[session]
            self._left = {s: t for s, t in self._left.items() if now - t < _FORGET_SECONDS}
            self._left[session] = now

    def gone(self, session: str, since: float) -> bool:
        """Whether nobody of a session is there, or was in the last moments; never before the grace
        is over that begins with `since`, when the session's job did."""
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
        """How many sessions have somebody there."""
        with self._lock:
            return len(self._open)


class Attendance:
    """Tells `Presence` of each stream that Gradio has for a session.

    Args:
        app: what is inside.
        presence: is told.
        session_of: the session of an event's id, for `/call/NAME/EVENT`.
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
            # It returns when the client is gone: Starlette waits for that beside the stream.
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
    """The session of an event of Gradio's queue, which is the event itself where a caller of
    `/call` named none."""
    queue = blocks._queue
    known = queue.event_ids_to_events.get(event)
    if known is not None:
        return str(known.session_hash)
    held = list(queue.pending_event_ids_session.items())
    return str(next((session for session, events in held if event in events), event))
