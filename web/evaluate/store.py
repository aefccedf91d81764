"""Folders of the Evaluate tab's runs, under the app's cache folder.

A browser holds a run's id, which cannot be guessed and is the whole of its right to see it. The
records are the run: what is shown of it is computed from them again.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sinkscope.web.runs.store import new_id

MOST_RUNS = 100
DATA = "data"
LONGEST_SECONDS = 30 * 86_400.0
GONE = "This run is no longer on the server. Press Run to make it again."
_ID = re.compile(r"[\w-]{22}", re.ASCII)


class EvaluateStore:
    """Safe to use from several threads.

    Args:
        folder: of all runs; made when the first one comes.
        clock: seconds; tests have their own.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._clock = folder, clock
        self._open: set[str] = set()
        self._lock = threading.Lock()

    def new(self) -> str:
        """The id of a run that begins; runs that are too many or too old go."""
        with self._lock:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._drop()
        return new_id()

    def place(self, run_id: str) -> Path:
        """The folder of a run; its name is what was asked, for that is a report's title."""
        return self._folder / run_id / ("questions" if self.data(run_id).is_dir() else "demo")

    def data(self, run_id: str) -> Path:
        """The folder of the questions that were uploaded for a run, where they were."""
        return self._folder / run_id / DATA

    def forget(self, run_id: str) -> None:
        """Remove what is kept of a run that has no records: it was never begun."""
        with self._lock:
            known = _ID.fullmatch(run_id) and run_id not in self._open
            if known and not any(self.place(run_id).glob("records*.jsonl")):
                shutil.rmtree(self._folder / run_id, ignore_errors=True)

    def find(self, run_id: object) -> Path:
        """The folder of a run that has records.

        Raises:
            ValueError: it is unknown, or gone.
        """
        if isinstance(run_id, str) and _ID.fullmatch(run_id):
            folder = self.place(run_id)
            if any(folder.glob("records*.jsonl")):
                return folder
        raise ValueError(GONE)

    @contextmanager
    def writing(self, run_id: str) -> Iterator[Path]:
        """The folder of a run, for the one job that writes it.

        Raises:
            ValueError: another one does already.
        """
        with self._lock:
            if run_id in self._open:
                raise ValueError("This run is under way already.")
            self._open.add(run_id)
        try:
            yield self.place(run_id)
        finally:
            with self._lock:
                self._open.discard(run_id)

    def _drop(self) -> None:
        runs = [path for path in self._folder.iterdir() if path.name not in self._open]
        newest = sorted(runs, key=lambda path: path.stat().st_mtime, reverse=True)
        for place, path in enumerate(newest, 1):
            if place >= MOST_RUNS or self._clock() - path.stat().st_mtime > LONGEST_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
