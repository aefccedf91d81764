"""Gives memory that is free back to the system, at moments when nobody waits for anything.

The C library keeps what a thread has freed for that thread's next need, in pieces between what is
still used. A job has a thread of its own and frees hundreds of megabytes, so an app that was busy
holds much more than it uses, and each hour a little more than before.
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
BUSY_SECONDS = 300.0  # an app that is never idle gives back this often nevertheless
GROWN = 16_000_000  # bytes, less is not worth it


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(psutil.Process().memory_info().rss)


@cache
def _trim() -> Callable[[int], int] | None:
    """glibc's `malloc_trim`; None where the C library is another one."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back() -> None:
    """Give what is free back now; nothing where the C library cannot."""
    if (trim := _trim()) is not None:
        trim(0)


class MemoryReturner:
    """Decides when.

    Args:
        busy: whether a job waits or computes.
        held: bytes that the process holds.
        give: gives back.
        clock: in seconds.
    """

    def __init__(
        self,
        busy: Callable[[], bool],
        held: Callable[[], int] = resident,
        give: Callable[[], None] = give_back,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._busy, self._held, self._give, self._clock = busy, held, give, clock
        self._least = 0  # held after the last time, or since
        self._last = clock()

    def look(self) -> bool:
        """Give back where it is worth it and nobody waits; whether it did."""
        held, now = self._held(), self._clock()
        self._least = min(self._least, held)
        if held < self._least + GROWN or (self._busy() and now - self._last < BUSY_SECONDS):
            return False
        self._give()
        self._least, self._last = self._held(), self._clock()
        return True

    async def watch(self) -> None:
        """A task of the event loop, for as long as it runs; what takes time is done in a thread."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await asyncio.to_thread(self.look)
