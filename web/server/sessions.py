"""Sessions of Gradio without a copy of the page each, and a queue with less to do.

Gradio describes every component anew for each session, which takes 50 milliseconds of its event
loop, so everybody waits, and memory that it never gives back. Nothing reads most of it: what a
session has changed is described when it changes, and all of it where a deep link is made.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import gradio as gr
from gradio.state_holder import SessionState, StateHolder

QUEUE_SECONDS = 0.01
PROGRESS_SECONDS = 0.2  # of gr.Progress, which nothing here uses
MOST_SESSIONS = 2000  # beyond them the least recently used one begins anew


class _Undescribed:
    """The blocks, as if there were none to describe."""

    def __init__(self, blocks: gr.Blocks) -> None:
        self._of = blocks
        self.blocks: dict[int, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)


class LightSession(SessionState):
    """A session that describes a component when that is asked for."""

    def __init__(self, blocks: gr.Blocks) -> None:
        super().__init__(_Undescribed(blocks))  # type: ignore[arg-type]
        self._page = blocks

    @property
    def components(self) -> Iterator[dict[str, Any]]:
        for key, block in self.blocks_config.blocks.items():
            if key in self._page.blocks and key not in self.config_values:
                self.config_values[key] = self.blocks_config.config_for_block(key, [], block)
        return super().components


class LightSessions(StateHolder):
    """All sessions of one app."""

    def __getitem__(self, session_id: str) -> SessionState:
        if session_id not in self.session_data:
            self.session_data[session_id] = LightSession(self.blocks)
        return super().__getitem__(session_id)


def lighten(blocks: gr.Blocks) -> None:
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
