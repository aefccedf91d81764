"""Results of the Experiments tab: in memory, few and not for long.

A browser holds a result's id, which cannot be guessed and is the whole of its right to see it.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sinkscope.experiments.result import Result
from sinkscope.web.sinks.store import LONGEST_SECONDS, MOST_RESULTS


@dataclass(frozen=True)
class ExperimentResult:
    """What one run of the tab gave.

    Attributes:
        id: of the run.
        result: the experiment's.
        value: what the tab's component is given to show it.
    """

    id: str
    result: Result
    value: dict[str, Any]


class ExperimentStore:
    """Safe to use from several threads.

    Args:
        clock: seconds; tests have their own.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._results: OrderedDict[str, tuple[float, ExperimentResult]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, result: ExperimentResult) -> None:
        """Take a result in; the oldest go."""
        with self._lock:
            self._results[result.id] = (self._clock(), result)
            self._drop()

    def get(self, result_id: object) -> ExperimentResult | None:
        """The result of an id, or None where it is unknown or too old."""
        with self._lock:
            self._drop()
            found = self._results.get(result_id) if isinstance(result_id, str) else None
        return found[1] if found else None

    def _drop(self) -> None:
        while self._results:
            made, result = next(iter(self._results.values()))
            if len(self._results) <= MOST_RESULTS and self._clock() - made <= LONGEST_SECONDS:
                return
            del self._results[result.id]
