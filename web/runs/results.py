"""Results of the tabs: in memory, few and not for long.

A browser holds a result's id, which cannot be guessed. Where nobody logs in, that is the whole of
its right to see the result; where users do, a result is given to whoever asked for it alone.
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
LONGEST_SECONDS = 12 * 3600.0  # less than Gradio keeps the files that a result's numbers are in


class OwnedResult(Protocol):
    """A result."""

    @property
    def id(self) -> str: ...

    @property
    def owner(self) -> str | None:
        """The user who asked for it; None where that is not known, as where nobody logs in."""


Result = TypeVar("Result", bound=OwnedResult)


def is_current_user(owner: str | None) -> bool:
    """Whether who asks now is this user; nobody is, where that is not known."""
    return owner is not None and owner == user_now()


class _Kept(TTLCache[str, Result]):
    """Tells which results left to make room."""

    def __init__(self, clock: Callable[[], float], gone: Callable[[str], None]) -> None:
        super().__init__(MOST_RESULTS, LONGEST_SECONDS, clock)
        self._gone = gone

    def popitem(self) -> tuple[str, Result]:
        item = super().popitem()
        self._gone(item[0])
        return item


class ResultStore(Generic[Result]):
    """Safe to use from several threads; the least recently used result goes first.

    Args:
        clock: seconds; tests have their own.
        owned: whether users log in, so that each sees the own results alone.
        copies: of this store's results.
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
        """Take a result in."""
        with self._lock:
            self._drop_old()
            self._results[result.id] = result

    def get(self, result_id: object) -> Result | None:
        """The result of an id, or None where it is unknown, too old, or another user's."""
        with self._lock:
            self._drop_old()
            result = self._results.get(result_id) if isinstance(result_id, str) else None
        if result is None or (self._owned and not is_current_user(result.owner)):
            return None
        return result

    def all(self) -> list[Result]:
        """The results that are kept, of every owner: for the store's own use."""
        with self._lock:
            self._drop_old()
            return list(self._results.values())

    def delete(self, result_id: object) -> None:
        """Forget a result that who asks may see, and remove the files that were made of it."""
        result = self.get(result_id)
        if result is None:
            return
        with self._lock:
            self._results.pop(result.id, None)
        self.copies.drop(result.id)

    def keep(self, result_id: str, value: dict[str, Any]) -> dict[str, Any]:
        """A value for the page whose files go when the result goes."""
        self.copies.add([result_id], files_in(value))
        return value

    def _drop_old(self) -> None:
        for result_id, _ in self._results.expire() or ():
            self.copies.drop(result_id)
