"""Results of the Sinks tab (`web.runs.results`), and the folders of unfinished ones."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sinkscope.sinks.finding.findings import Findings
from sinkscope.sinks.validating.validation import Validation
from sinkscope.web.runs.owners import user_now
from sinkscope.web.runs.results import LONGEST_SECONDS, ResultStore
from sinkscope.web.runs.served_files import ServedFiles
from sinkscope.web.runs.store import new_id

MOST_FOLDERS = 8


@dataclass(frozen=True)
class SinksResult:
    """The result of one run of the Sinks tab.

    Attributes:
        findings: the sink dimensions, or that there are none.
        validation: on other samples; None if it was switched off or not possible.
        why: why there is no validation, in words; empty if there is one.
        value: value with which the tab's component shows the result.
        owner: the user who started the run, if users log in.
    """

    findings: Findings
    validation: Validation | None = None
    why: str = ""
    value: dict[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=new_id)
    owner: str | None = field(default_factory=user_now)


class SinksStore(ResultStore[SinksResult]):
    """Safe to use from several threads.

    Args:
        folder: for the measurements of unfinished runs.
        clock, owned, copies: as for `ResultStore`.
    """

    def __init__(
        self,
        folder: Path,
        clock: Callable[[], float] = time.time,
        owned: bool = False,
        copies: ServedFiles | None = None,
    ) -> None:
        super().__init__(clock, owned, copies)
        self._folder, self._clock = folder, clock

    def work(self, name: str) -> Path:
        """The folder for a run's measurements, which the same run finds again. Removes old ones."""
        self._folder.mkdir(parents=True, exist_ok=True)
        wanted = self._folder / name
        others = [path for path in self._folder.iterdir() if path != wanted]
        newest = sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)
        for place, path in enumerate(newest, 1):
            if place >= MOST_FOLDERS or self._clock() - path.stat().st_mtime > LONGEST_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        return wanted
