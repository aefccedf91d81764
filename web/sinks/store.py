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
    """What one run of the Sinks tab found.

    Attributes:
        findings: the sink dimensions, or that there are none.
        validation: on other samples; None where it was left out or could not be done.
        why: in words, why there is none; empty where there is one.
        value: what the tab's component is given to show it.
        owner: who asked for it, where users log in.
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
        folder: for the work of unfinished runs.
        clock, owned, copies: as of `ResultStore`.
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
        """A folder for the measurements of a run, which the same run finds again; old ones go."""
        self._folder.mkdir(parents=True, exist_ok=True)
        wanted = self._folder / name
        others = [path for path in self._folder.iterdir() if path != wanted]
        newest = sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)
        for place, path in enumerate(newest, 1):
            if place >= MOST_FOLDERS or self._clock() - path.stat().st_mtime > LONGEST_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        return wanted
