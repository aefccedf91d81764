"""Results of the Sinks tab: in memory, few and not for long, and the folders of unfinished ones.

A browser holds a result's id, which cannot be guessed and is the whole of its right to see it.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sinkscope.sinks.finding.findings import Findings
from sinkscope.sinks.validating.validation import Validation
from sinkscope.web.runs.store import new_id

MOST_RESULTS, MOST_FOLDERS = 64, 8
LONGEST_SECONDS = 12 * 3600.0  # less than Gradio keeps the files that a result's numbers are in


@dataclass(frozen=True)
class SinksResult:
    """What one run of the Sinks tab found.

    Attributes:
        findings: the sink dimensions, or that there are none.
        validation: on other samples; None where it was left out or could not be done.
        why: in words, why there is none; empty where there is one.
        value: what the tab's component is given to show it.
    """

    findings: Findings
    validation: Validation | None = None
    why: str = ""
    value: dict[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=new_id)


class SinksStore:
    """Safe to use from several threads.

    Args:
        folder: for the work of unfinished runs.
        clock: seconds; tests have their own.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._clock = folder, clock
        self._results: OrderedDict[str, tuple[float, SinksResult]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, result: SinksResult) -> None:
        """Take a result in; the oldest go."""
        with self._lock:
            self._results[result.id] = (self._clock(), result)
            self._drop()

    def get(self, result_id: object) -> SinksResult | None:
        """The result of an id, or None where it is unknown or too old."""
        with self._lock:
            self._drop()
            found = self._results.get(result_id) if isinstance(result_id, str) else None
        return found[1] if found else None

    def work(self, name: str) -> Path:
        """A folder for the measurements of a run, which the same run finds again; old ones go."""
        self._folder.mkdir(parents=True, exist_ok=True)
        wanted = self._folder / name
        others = [path for path in self._folder.iterdir() if path != wanted]
        newest = sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)
        for place, path in enumerate(newest, 1):
            if place >= MOST_FOLDERS or self._clock() - path.stat().st_mtime > LONGEST_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        return wanted

    def _drop(self) -> None:
        while self._results:
            made, result = next(iter(self._results.values()))
            if len(self._results) <= MOST_RESULTS and self._clock() - made <= LONGEST_SECONDS:
                return
            del self._results[result.id]
