"""Records which served files are copies of a run, so that they are removed with it.

Gradio serves files from its own folder, by an address that is valid as long as the file exists. The
page's data of a run (numbers, images, exports) are such files. Their names depend on their content,
so one file may belong to several runs: it is removed with the last one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


class ServedFiles:
    """Files by the runs that they are copies of. Safe to call from several threads.

    Args:
        beside: the records of other results (of another tab) in the same folder: a file that also
            belongs to one of them stays.
    """

    def __init__(self, beside: ServedFiles | None = None) -> None:
        self._all: list[ServedFiles] = [] if beside is None else beside._all
        self._all.append(self)
        self._claims: dict[Path, set[frozenset[str]]] = {}
        self._paths: dict[str, set[Path]] = {}
        self._lock = threading.Lock()

    def add(self, runs: Iterable[str], paths: Iterable[Path]) -> None:
        """Register files made from all of these runs together; they are removed with any of them,
        unless they also belong to other runs."""
        claim = frozenset(runs)
        with self._lock:
            for path in paths:
                self._claims.setdefault(path, set()).add(claim)
                for run_id in claim:
                    self._paths.setdefault(run_id, set()).add(path)

    @property
    def nbytes(self) -> int:
        """Bytes of the existing files, each counted once."""
        with self._lock:
            paths = list(self._claims)
        total = 0
        for path in paths:
            with suppress(OSError):  # Gradio removes files after a day
                total += path.stat().st_size
        return total

    def drop(self, run_id: str) -> None:
        """Remove the files of a deleted run that nothing else needs."""
        with self._lock:
            for path in self._paths.pop(run_id, ()):
                left = {claim for claim in self._claims.get(path, ()) if run_id not in claim}
                if left:
                    self._claims[path] = left
                    continue
                for claim in self._claims.pop(path, ()):
                    for other in claim - {run_id}:
                        self._paths.get(other, set()).discard(path)
                if any(path in other._claims for other in self._all):
                    continue
                with suppress(OSError):  # Gradio removes files after a day
                    path.unlink()
                with suppress(OSError):  # not empty, or already removed
                    path.parent.rmdir()
