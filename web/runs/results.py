"""Results of the tabs: in memory, few and not for long.

A browser holds a result's id, which cannot be guessed and is the whole of its right to see it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from cachetools import TTLCache

MOST_RESULTS = 64
LONGEST_SECONDS = 12 * 3600.0  # less than Gradio keeps the files that a result's numbers are in


class HasId(Protocol):
    """A result that is asked for by its id."""

    @property
    def id(self) -> str: ...


Result = TypeVar("Result", bound=HasId)


class ResultStore(Generic[Result]):
    """Safe to use from several threads; the least recently used result goes first.

    Args:
        clock: seconds; tests have their own.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._results: TTLCache[str, Result] = TTLCache(MOST_RESULTS, LONGEST_SECONDS, clock)
        self._lock = threading.Lock()

    def put(self, result: Result) -> None:
        """Take a result in."""
        with self._lock:
            self._results[result.id] = result

    def get(self, result_id: object) -> Result | None:
        """The result of an id, or None where it is unknown or too old."""
        with self._lock:
            return self._results.get(result_id) if isinstance(result_id, str) else None
