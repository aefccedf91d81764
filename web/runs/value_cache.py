"""The values of runs for the page, built once per run, because runs are opened far more often than
made.

Building one takes tens of milliseconds of the interpreter (companding and compressing maps,
encoding images), for which other users' requests would wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Any

from cachetools import TTLCache

from sinkscope.web.runs.inspector import path_of
from sinkscope.web.runs.store import Run

MOST = 512  # values of 1 to 4 kB
# Gradio removes the files of a value when they are a day old.
FRESH_SECONDS = 6 * 3600.0


class RunValueCache:
    """The inspector's values by run; the least recently used one is dropped first. Thread-safe.

    Args:
        build: makes the value of a run, such as `web.runs.inspector.run_value`.
        clock: in seconds.
    """

    def __init__(
        self, build: Callable[[Run], dict[str, Any]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._build = build
        self._made: TTLCache[Hashable, dict[str, Any]] = TTLCache(MOST, FRESH_SECONDS, clock)
        self._lock = threading.Lock()

    def cached(self, run: Run) -> dict[str, Any] | None:
        """The cached value of a run; None if there is none, if it is old, or if one of its files is
        missing."""
        with self._lock:
            value = self._made.get(_key(run))
        return value if value is not None and _is_there(value) else None

    def __call__(self, run: Run) -> dict[str, Any]:
        """The value of a run, built if it is not cached."""
        if (cached := self.cached(run)) is not None:
            return cached
        value = self._build(run)
        with self._lock:
            self._made[_key(run)] = value
        return value


def _key(run: Run) -> Hashable:
    return run.id, tuple(run.labels.items())  # a pair has the names that its browser gave


def _is_there(value: dict[str, Any]) -> bool:
    return all(path_of(one["url"]).is_file() for one in (value["data"], *value["images"]))
