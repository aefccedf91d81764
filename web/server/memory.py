"""Returns free memory to the system when nobody waits for a result.

The C library keeps memory that a thread has freed for later use by that thread, in pieces between
used ones. A job has its own thread and frees hundreds of megabytes. So an app that was busy holds
much more memory than it uses, and each hour a little more.
"""

from __future__ import annotations

import asyncio
import ctypes
import sys
import time
from collections.abc import Callable
from functools import cache

import psutil

LOOK_SECONDS = 5.0
BUSY_SECONDS = 300.0  # an app that is never idle still gives memory back this often
GROWN = 16_000_000  # bytes; less is not worth the effort


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(psutil.Process().memory_info().rss)


@cache
def _trim() -> Callable[[int], int] | None:
    """glibc's `malloc_trim`; None for another C library."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back() -> None:
    """Give free memory back now; does nothing if the C library has no function for it."""
    if (trim := _trim()) is not None:
        trim(0)


class MemoryReturner:
    """Decides when to give memory back.

    Args:
        busy: whether a job waits or computes.
        held: bytes that the process holds.
        give: gives memory back.
        clock: time in seconds.
    """

    def __init__(
        self,
        busy: Callable[[], bool],
        held: Callable[[], int] = resident,
        give: Callable[[], None] = give_back,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._busy, self._held, self._give, self._clock = busy, held, give, clock
        self._least = 0  # the least that was held since memory was last given back
        self._last = clock()

    def look(self) -> bool:
        """Give memory back if it is worth it and nobody waits. Returns whether it did."""
        held, now = self._held(), self._clock()
        self._least = min(self._least, held)
        if held < self._least + GROWN or (self._busy() and now - self._last < BUSY_SECONDS):
            return False
        self._give()
        self._least, self._last = self._held(), self._clock()
        return True

    async def watch(self) -> None:
        """A task that runs as long as the event loop does; slow work is done in a thread."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await asyncio.to_thread(self.look)
