"""Whose a run is, where users log in: its id alone does not open it for another user.

The owner is a line in the run's own folder, so that it goes with the run and outlives a restart.
A run without one belongs to nobody. The example is everybody's.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from cachetools import LRUCache

from sinkscope.utils import write_atomically
from sinkscope.web.runs.store import Run, RunStore
from sinkscope.web.server.current_request import USER, scope_now

log = logging.getLogger(__name__)

OWNER = "owner.txt"
MOST_REMEMBERED = 100_000


def user_now() -> str | None:
    """Who asked for what is running; None where that is not known."""
    user = scope_now().get(USER)
    return user if isinstance(user, str) else None


class OwnedRuns(RunStore):
    """A store that gives a run to its owner alone.

    The owner of a run is who asks for what runs when it is put. Where that is not known it is
    nobody's, and nobody can open it.
    """

    def __init__(self, folder: Path, memory_bytes: int, disk_bytes: int | None = None) -> None:
        super().__init__(folder, memory_bytes, disk_bytes)
        self._place = folder
        # Of runs that a user has begun.
        self._owners: LRUCache[str, str] = LRUCache(MOST_REMEMBERED)
        self._owned = threading.Lock()

    def claim(self, run_id: str) -> None:
        user = user_now()
        if user is None:
            return
        with self._owned:
            self._owners[run_id] = user

    def may_see(self, run_id: object) -> bool:
        user = user_now()
        return user is not None and isinstance(run_id, str) and self._owner(run_id) == user

    def put(self, run: Run, keep_on_disk: bool = True) -> str | None:
        self.claim(run.id)
        note = super().put(run, keep_on_disk)
        with self._owned:
            owner = self._owners.get(run.id)
        if owner is None or not keep_on_disk or not (self._place / run.id).is_dir():
            return note
        try:
            write_atomically(self._place / run.id / OWNER, lambda file: file.write(owner.encode()))
        except OSError as error:  # after a restart nobody can open it
            log.warning("the owner of a run could not be written: %s", error.strerror)
        return note

    def get(self, run_id: object) -> Run | None:
        run = super().get(run_id)  # which refuses what is no id
        if run is None or run.kind == "example" or self.may_see(run.id):
            return run
        return None

    def delete(self, run_id: str) -> None:
        if self.may_see(run_id):
            super().delete(run_id)
            with self._owned:
                self._owners.pop(run_id, None)

    def _owner(self, run_id: str) -> str | None:
        with self._owned:
            known = self._owners.get(run_id)
        if known is not None:
            return known
        try:
            return (self._place / run_id / OWNER).read_text(encoding="utf-8")
        except (OSError, ValueError):  # there is none, or it is damaged
            return None
