"""Sessions of Gradio without a copy of the page each, and a queue with less to do.

Gradio describes every component anew for each session, which takes 50 milliseconds of its event
loop, so everybody waits, and memory that it never gives back. Nothing reads most of it: a session
is described where a deep link is made.
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
PROGRESS_SECONDS = 0.2  # of gr.Progress, which nothing here uses
MOST_SESSIONS = 2000  # beyond them the least recently used one begins anew
UNREAD_SECONDS = 600.0  # that a message of an event waits for a session that nobody is in
SWEEP_SECONDS = 60.0


class _Undescribed:
    """The blocks, as if there were none to describe."""

    def __init__(self, blocks: gr.Blocks) -> None:
        self._of = blocks
        self.blocks: dict[int, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)


class LightSession(SessionState):
    """A session that holds only what is different in it, and describes components when asked.

    Gradio's own holds a copy of the page's tables and a description of each component that an event
    has read or written, with its value: 50 kB and more, and as much as a request may send.
    """

    def __init__(self, blocks: gr.Blocks) -> None:
        super().__init__(_Undescribed(blocks))  # type: ignore[arg-type]
        self._page = blocks
        shared, session_config = blocks.default_config, self.blocks_config
        session_config.blocks = ChainMap({}, shared.blocks)  # type: ignore[assignment]
        session_config.fns = ChainMap({}, shared.fns)  # type: ignore[assignment]

    def __setitem__(self, key: int, value: Any) -> None:
        super().__setitem__(key, value)
        self.config_values.clear()

    def _update_config(self, key: int) -> None:
        """Nothing: `components` describes it."""

    def _update_value_in_config(self, key: int, value: Any) -> None:
        """Nothing: values are kept for deep links alone, and nothing here makes one."""

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
    """Give a page that has just been opened such sessions, and a queue that does less for nobody.

    Gradio's queue looks a thousand times a second whether anything waits, and after each event it
    makes a table of the last 10,000 ones for a monitor, which is switched off here: both want the
    interpreter, from whatever computes, and the second more with each event.
    """
    sessions = LightSessions()  # type: ignore[no-untyped-call]
    sessions.set_blocks(blocks)
    blocks.app.state_holder = sessions
    queue = blocks._queue
    queue.sleep_when_free = QUEUE_SECONDS
    queue.progress_update_sleep_when_free = PROGRESS_SECONDS
    queue.ANALYTICS_MAX_EVENTS = 1
    queue.ANAYLTICS_CACHE_FREQUENCY = sys.maxsize  # the name is Gradio's


def forget_closed_sessions(blocks: gr.Blocks, is_present: Callable[[str], bool]) -> int:
    """Let go of the messages that Gradio's queue keeps for sessions that everybody has left, and of
    its list of these sessions, which it never shortens; of how many. Call it in the event loop.

    Args:
        blocks: the page.
        is_present: whether somebody is in a session.
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
    """A task of the event loop: `forget_closed_sessions` for as long as it runs."""
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        forget_closed_sessions(blocks, is_present)
