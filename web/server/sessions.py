"""Gradio sessions without a copy of the page for each, and a queue that does less work.

For each session Gradio describes every component again. That blocks its event loop for 50
milliseconds, so all users wait, and takes memory that is never freed. Most of the description is
never read: here a session is described only when a deep link is made.
"""

from __future__ import annotations

import asyncio
import sys
from collections import ChainMap
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import gradio as gr
from gradio.state_holder import SessionState, StateHolder

QUEUE_SECONDS = 0.01
PROGRESS_SECONDS = 0.2  # update interval of gr.Progress, which is not used here
MOST_SESSIONS = 2000  # if there are more, the least recently used one is reset
UNREAD_SECONDS = 600.0  # messages for a session without a stream are kept this long
SWEEP_SECONDS = 60.0


class _Undescribed:
    """Stands in for the blocks and has no components to describe."""

    def __init__(self, blocks: gr.Blocks) -> None:
        self._of = blocks
        self.blocks: dict[int, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)


class LightSession(SessionState):
    """A session that stores only what differs in it, and describes components on request.

    Gradio's session holds a copy of the page's tables and a description of each component that an
    event has read or written, with its value: at least 50 kB, and as much as a request may send.
    """

    def __init__(self, blocks: gr.Blocks) -> None:
        super().__init__(_Undescribed(blocks))  # type: ignore[arg-type]  # stands in for the Blocks
        self._page = blocks
        shared, session_config = blocks.default_config, self.blocks_config
        # A mapping that shares the page's.
        session_config.blocks = ChainMap({}, shared.blocks)  # type: ignore[assignment]
        # A mapping that shares the page's.
        session_config.fns = ChainMap({}, shared.fns)  # type: ignore[assignment]

    def __setitem__(self, key: int, value: Any) -> None:
        super().__setitem__(key, value)
        self.config_values.clear()

    def _update_config(self, key: int) -> None:
        """Do nothing: `components` describes it on request."""

    def _update_value_in_config(self, key: int, value: Any) -> None:
        """Do nothing: Gradio keeps values only for deep links, which are not made here."""

    @property
    def components(self) -> Iterator[dict[str, Any]]:
        for key, block in self.blocks_config.blocks.items():
            if key in self._page.blocks:
                yield self.blocks_config.config_for_block(key, [], block)


class LightSessions(StateHolder):
    """All sessions of one app."""

    def __getitem__(self, session_id: str) -> SessionState:
        if session_id not in self.session_data:
            self.session_data[session_id] = LightSession(self.blocks)
        return super().__getitem__(session_id)


def use_light_sessions(blocks: gr.Blocks) -> None:
    """Give a page that has just been opened light sessions and a queue with less idle work.

    Gradio's queue checks a thousand times a second whether an event waits. After each event it
    builds a table of the last 10,000 events for a monitor that is switched off here. Both take
    interpreter time from computing jobs, and the table takes more with each event.
    """
    sessions = LightSessions()  # type: ignore[no-untyped-call]  # Gradio leaves it untyped
    sessions.set_blocks(blocks)
    blocks.app.state_holder = sessions
    queue = blocks._queue
    queue.sleep_when_free = QUEUE_SECONDS
    queue.progress_update_sleep_when_free = PROGRESS_SECONDS
    queue.ANALYTICS_MAX_EVENTS = 1
    queue.ANAYLTICS_CACHE_FREQUENCY = sys.maxsize  # spelled as in Gradio


def forget_closed_sessions(blocks: gr.Blocks, is_present: Callable[[str], bool]) -> int:
    """Drop the messages that Gradio's queue keeps for sessions without a stream, and the entries
    of these sessions in a list that Gradio never shortens. Returns how many sessions were dropped.
    Call it in the event loop.

    Args:
        blocks: the page.
        is_present: whether a session has an open stream.
    """
    queue, used = blocks._queue, blocks.app.state_holder.time_last_used
    since = datetime.now() - timedelta(seconds=UNREAD_SECONDS)
    busy = {event.session_hash for event in queue.event_ids_to_events.values()}
    known = {*queue.pending_event_ids_session, *queue.pending_messages_per_session}
    left = [
        session
        for session in known - busy
        if not is_present(session) and used.get(session, datetime.min) < since
    ]
    for session in left:
        queue.pending_event_ids_session.pop(session, None)
        queue.pending_messages_per_session.pop(session, None)
    return len(left)


async def sweep_sessions(blocks: gr.Blocks, is_present: Callable[[str], bool]) -> None:
    """A task that calls `forget_closed_sessions` as long as the event loop runs."""
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        forget_closed_sessions(blocks, is_present)
