"""Events of Gradio's queue that have no reader: unknown, cancelled and closed ones.

Gradio drops a cancelled event (`POST /cancel`, or the end of its stream `GET /call/...`), but lets
a function that it has started run to its end. And Gradio breaks off the stream of an unknown event
in the middle.
"""

from __future__ import annotations

from collections.abc import Callable

from gradio import Blocks
from gradio.context import LocalContext
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sinkscope.web.server.presence import CALL, session_of

UNKNOWN_EVENT = (
    "There is no such event, or its result was already fetched. A POST to the same address without "
    "the event's id starts one."
)
_LEFT = "_sinkscope_left"  # set on one of Gradio's events once its stream is closed


def withdrawn_now(blocks: Blocks) -> Callable[[], bool] | None:
    """A function for the event that is being answered: whether the event was cancelled or its
    stream closed since. None outside the queue."""
    queue, name = blocks._queue, LocalContext.event_id.get(None)
    if name is None or name not in queue.event_ids_to_events:
        return None

    def withdrawn() -> bool:
        event = queue.event_ids_to_events.get(name)
        return event is None or hasattr(event, _LEFT)

    return withdrawn


class Events:
    """Refuses an unknown event before its stream begins, and notes when a stream was closed."""

    def __init__(self, app: ASGIApp, blocks: Blocks) -> None:
        self.app, self._blocks = app, blocks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = None
        if scope["type"] == "http" and scope["method"] == "GET":
            call = CALL.search(scope["path"])
        if call is None:
            await self.app(scope, receive, send)
            return
        queue = self._blocks._queue
        session = session_of(self._blocks, call[1])
        if session not in queue.pending_messages_per_session:
            answer = {"detail": UNKNOWN_EVENT, "error": UNKNOWN_EVENT}
            await JSONResponse(answer, 404)(scope, receive, send)
            return
        try:
            await self.app(scope, receive, send)
        finally:
            event = queue.event_ids_to_events.get(call[1])
            if event is not None:  # the event is not over, so its reader has disconnected
                setattr(event, _LEFT, True)
            # Gradio ends a stream when its session has no pending event, but it leaves an event
            # pending whose stream was closed. Then the session's next stream would never end.
            queue.pending_event_ids_session.get(session, set()).discard(call[1])
