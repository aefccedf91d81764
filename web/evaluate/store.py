"""Folders of the Evaluate tab's runs, under the app's cache folder.

A browser has a run's id, which cannot be guessed. Without logins, whoever has the id may see the
run; with logins, a file in the run's folder names its owner. Only the records are stored: what the
page shows is computed from them.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sinkscope.utils import write_bytes_atomically
from sinkscope.web.runs.inspector import files_in
from sinkscope.web.runs.owners import OWNER, user_now
from sinkscope.web.runs.results import is_current_user
from sinkscope.web.runs.served_files import ServedFiles
from sinkscope.web.runs.store import new_id

MOST_RUNS = 100
DATA = "data"
LONGEST_SECONDS = 30 * 86_400.0
GONE = "This run is no longer on the server. Press Run to make it again."
_ID = re.compile(r"[\w-]{22}", re.ASCII)


class EvaluateStore:
    """Safe to use from several threads.

    Args:
        folder: parent of all runs' folders; created with the first run.
        clock: time in seconds; tests pass their own.
        owned: whether users log in, so that each user sees only their own runs.
        copies: the served files of this store's runs.
    """

    def __init__(
        self,
        folder: Path,
        clock: Callable[[], float] = time.time,
        owned: bool = False,
        copies: ServedFiles | None = None,
    ) -> None:
        self._folder, self._clock, self._owned = folder, clock, owned
        self.copies = copies or ServedFiles()
        self._open: set[str] = set()
        self._lock = threading.Lock()

    def new(self) -> str:
        """The id of a new run; removes runs beyond the number or age limit."""
        with self._lock:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._drop()
        return new_id()

    def folder_of(self, run_id: str) -> Path:
        """The folder of a run; it is named after the questions, because a report's title is."""
        return self._folder / run_id / ("questions" if self.data(run_id).is_dir() else "demo")

    def data(self, run_id: str) -> Path:
        """The folder for questions uploaded for a run; it may not exist."""
        return self._folder / run_id / DATA

    def forget(self, run_id: str) -> None:
        """Remove the files of a run that has no records because it never started."""
        with self._lock:
            known = _ID.fullmatch(run_id) and run_id not in self._open
            if known and not any(self.folder_of(run_id).glob("records*.jsonl")):
                shutil.rmtree(self._folder / run_id, ignore_errors=True)

    def find(self, run_id: object) -> Path:
        """The folder of a run that has records.

        Raises:
            ValueError: it is unknown, was removed, or belongs to another user.
        """
        if isinstance(run_id, str) and _ID.fullmatch(run_id):
            folder = self.folder_of(run_id)
            if any(folder.glob("records*.jsonl")) and self._may_see(run_id):
                return folder
        raise ValueError(GONE)

    def keep(self, run_id: str, value: dict[str, Any]) -> dict[str, Any]:
        """Register the files in a value for the page, so that they are removed with the run."""
        self.copies.add([run_id], files_in(value))
        return value

    def delete(self, run_id: str) -> None:
        """Remove a run that the current user may see, with the files made from it.

        Raises:
            ValueError: it is unknown, was removed, belongs to another user, or is in progress.
        """
        self.find(run_id)
        with self._lock:
            if run_id in self._open:
                raise ValueError("This run is under way; stop it first.")
            shutil.rmtree(self._folder / run_id, ignore_errors=True)
        self.copies.drop(run_id)

    def _may_see(self, run_id: str) -> bool:
        return not self._owned or is_current_user(self._owner(run_id))

    def _owner(self, run_id: str) -> str | None:
        try:
            return (self._folder / run_id / OWNER).read_text(encoding="utf-8")
        except (OSError, ValueError):  # there is no such file, or it is damaged
            return None

    @contextmanager
    def writing(self, run_id: str) -> Iterator[Path]:
        """The folder of a run, for the one job that writes to it.

        Raises:
            ValueError: another job already writes to it.
        """
        with self._lock:
            if run_id in self._open:
                raise ValueError("This run is under way already.")
            self._open.add(run_id)
        try:
            self._claim(run_id)
            yield self.folder_of(run_id)
        finally:
            with self._lock:
                self._open.discard(run_id)

    def _claim(self, run_id: str) -> None:
        """Record the current user as the owner of a run that begins."""
        user, path = user_now(), self._folder / run_id / OWNER
        if self._owned and user is not None and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes_atomically(path, user.encode())

    def _drop(self) -> None:
        runs = [path for path in self._folder.iterdir() if path.name not in self._open]
        newest = sorted(runs, key=lambda path: path.stat().st_mtime, reverse=True)
        for place, path in enumerate(newest, 1):
            if place >= MOST_RUNS or self._clock() - path.stat().st_mtime > LONGEST_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
                self.copies.drop(path.name)
