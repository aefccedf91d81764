"""Results of the tabs: in memory, limited in number and age.

A browser has a result's id, which cannot be guessed. Without logins, whoever has the id may see the
result; with logins, only the user who started it may.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from cachetools import TTLCache

from sinkscope.web.runs.inspector import files_in
from sinkscope.web.runs.owners import user_now
from sinkscope.web.runs.served_files import ServedFiles

MOST_RESULTS = 64
LONGEST_SECONDS = 12 * 3600.0  # shorter than Gradio keeps the files with a result's numbers


class OwnedResult(Protocol):
    """The fields that every result has."""

    @property
    def id(self) -> str: ...

    @property
    def owner(self) -> str | None:
        """The user who started it; None if that is not known, as without logins."""


Result = TypeVar("Result", bound=OwnedResult)


def is_current_user(owner: str | None) -> bool:
    """Whether `owner` is the current user; False if either is not known."""
    return owner is not None and owner == user_now()


class _Kept(TTLCache[str, Result]):
    """A cache that reports the results it drops to make room."""

    def __init__(self, clock: Callable[[], float], gone: Callable[[str], None]) -> None:
        super().__init__(MOST_RESULTS, LONGEST_SECONDS, clock)
        self._gone = gone

    def popitem(self) -> tuple[str, Result]:
        item = super().popitem()
        self._gone(item[0])
        return item


class ResultStore(Generic[Result]):
    """Safe to use from several threads; the least recently used result is dropped first.

    Args:
        clock: time in seconds; tests pass their own.
        owned: whether users log in, so that each user sees only their own results.
        copies: the served files of this store's results.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        owned: bool = False,
        copies: ServedFiles | None = None,
    ) -> None:
        self._owned = owned
        self.copies = copies or ServedFiles()
        self._results: _Kept[Result] = _Kept(clock, self.copies.drop)
        self._lock = threading.Lock()

    def put(self, result: Result) -> None:
        """Add a result."""
        with self._lock:
            self._drop_old()
            self._results[result.id] = result

    def get(self, result_id: object) -> Result | None:
        """The result with this id; None if it is unknown, too old, or another user's."""
        with self._lock:
            self._drop_old()
            result = self._results.get(result_id) if isinstance(result_id, str) else None
        if result is None or (self._owned and not is_current_user(result.owner)):
            return None
        return result

    def all(self) -> list[Result]:
        """All stored results, of every owner; for internal use only."""
        with self._lock:
            self._drop_old()
            return list(self._results.values())

    def delete(self, result_id: object) -> None:
        """Remove a result that the current user may see, and the files made from it."""
        result = self.get(result_id)
        if result is None:
            return
        with self._lock:
            self._results.pop(result.id, None)
        self.copies.drop(result.id)

    def keep(self, result_id: str, value: dict[str, Any]) -> dict[str, Any]:
        """Register the files in a value for the page, so that they are removed with the result."""
        self.copies.add([result_id], files_in(value))
        return value

    def _drop_old(self) -> None:
        for result_id, _ in self._results.expire() or ():
            self.copies.drop(result_id)
