"""Owners of runs, if users log in: the id alone does not open a run for another user.

The owner is stored in the run's own folder, so that it is removed with the run and survives a
restart. A run without an owner cannot be opened. The example is open to everybody.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from cachetools import LRUCache

from sinkscope.utils import write_bytes_atomically
from sinkscope.web.runs.store import Run, RunStore
from sinkscope.web.server.current_request import USER, scope_now

log = logging.getLogger(__name__)

OWNER = "owner.txt"
MOST_REMEMBERED = 100_000


def user_now() -> str | None:
    """The user who started the current code; None if that is not known."""
    user = scope_now().get(USER)
    return user if isinstance(user, str) else None


class OwnedRuns(RunStore):
    """A store that returns a run only to its owner.

    The owner of a run is the current user when it is put. If the user is not known, the run has no
    owner, and nobody can open it.
    """

    def __init__(self, folder: Path, memory_bytes: int, disk_bytes: int | None = None) -> None:
        super().__init__(folder, memory_bytes, disk_bytes)
        self._folder = folder
        # Runs that a user has begun.
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
        if owner is None or not keep_on_disk or not (self._folder / run.id).is_dir():
            return note
        try:
            write_bytes_atomically(self._folder / run.id / OWNER, owner.encode())
        except OSError as error:  # then nobody can open the run after a restart
            log.warning("the owner of a run could not be written: %s", error.strerror)
        return note

    def get(self, run_id: object) -> Run | None:
        run = super().get(run_id)  # which refuses anything that is not an id
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
            return (self._folder / run_id / OWNER).read_text(encoding="utf-8")
        except (OSError, ValueError):  # there is no such file, or it is damaged
            return None
