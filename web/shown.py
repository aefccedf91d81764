"""What the page is sent of runs, made once for each: a run is opened far more often than made.

To build it takes tens of milliseconds of the interpreter (maps companded, compressed, images
encoded), which everybody else's requests would wait for.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from sinkscope.web.inspector import path_of
from sinkscope.web.store import Run

MOST = 512  # values of 1 to 4 kB
# Gradio removes the files that a value leads to once they are a day old.
FRESH_SECONDS = 6 * 3600.0


class Shown:
    """Values of the inspector by run, the least recently used one leaves first. Thread-safe.

    Args:
        build: makes the value of a run, as `web.inspector.run_value`.
        clock: in seconds.
    """

    def __init__(
        self, build: Callable[[Run], dict[str, Any]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._build, self._clock = build, clock
        self._made: OrderedDict[Hashable, tuple[float, dict[str, Any]]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, run: Run) -> dict[str, Any]:
        """The value of a run. It is made again where it is old or one of its files is gone."""
        key = (run.id, tuple(run.labels.items()))  # a pair is called as its browser says
        with self._lock:
            made = self._made.get(key)
        if made is not None and self._clock() - made[0] < FRESH_SECONDS and _is_there(made[1]):
            with self._lock:
                if key in self._made:
                    self._made.move_to_end(key)
            return made[1]
        value = self._build(run)
        with self._lock:
            self._made[key] = self._clock(), value
            self._made.move_to_end(key)
            while len(self._made) > MOST:
                self._made.popitem(last=False)
        return value


def _is_there(value: dict[str, Any]) -> bool:
    return all(path_of(one["url"]).is_file() for one in (value["data"], *value["images"]))
