"""The line of jobs in front of the model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sinkscope.jobs.job import Job


class LineIsFullError(ValueError):
    """Too many jobs are waiting."""


class Line:
    """First come, first served; the page shows each one's place in it.

    Args:
        longest: how many may wait behind the one that computes.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._waiting: list[object] = []
        self._changed = threading.Condition()

    @contextmanager
    def place(self) -> Iterator[Callable[[float], int]]:
        """A place in the line; call what it gives to learn how many are before it (0: your turn).

        Raises:
            LineIsFullError: more are waiting than is allowed.
        """
        ticket = object()
        with self._changed:
            if len(self._waiting) > self._longest:
                raise LineIsFullError(
                    f"{len(self._waiting)} runs are waiting already; try again in a little while."
                )
            self._waiting.append(ticket)

        def before(timeout: float) -> int:
            with self._changed:
                now = self._waiting.index(ticket)
                if now:
                    self._changed.wait_for(lambda: self._waiting.index(ticket) != now, timeout)
                return self._waiting.index(ticket)

        try:
            yield before
        finally:
            with self._changed:
                self._waiting.remove(ticket)
                self._changed.notify_all()


def turns(before: Callable[[float], int], job: Job) -> Iterator[int]:
    """How many are before a job in the line, each time that this has changed, until none is or the
    job was stopped."""
    told = -1
    while (position := before(0.5)) > 0 and not job.stopped:
        if position != told:
            yield position
        told = position
