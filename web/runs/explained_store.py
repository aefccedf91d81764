"""Maps that methods computed for tokens of runs: in memory up to a budget, and as files.

A file is in the folder of the run (`web.runs.store.RunStore`): it counts towards the store's
budget, is removed with the run, and is still there after a restart. Pairs of runs and the example
have no folder that may be written to; their maps are kept only in memory.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from cachetools import LRUCache

from sinkscope.capture.trace import GenerationTrace
from sinkscope.methods.base import MapStack
from sinkscope.methods.stack_file import open_stack, save_stack
from sinkscope.web.runs.store import RunStore

log = logging.getLogger(__name__)

MOST_BYTES = 128_000_000  # in memory
MOST_BESIDE = 64_000_000  # files of one run
PATTERN = "explained-*.npz"

Key = tuple[str, str, tuple[int, ...], str]  # run, side, tokens, method


@dataclass(frozen=True)
class StoredMaps:
    """The result of one method: its stack, or why there is none."""

    stack: MapStack | None
    why_not: str = ""
    seconds: float = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        if self.stack is None:
            return 256
        arrays = (one.values for one in (self.stack, *(self.stack.ratio or ())))
        return 256 + sum(int(values.nbytes) for values in arrays)


class ExplainedStore:
    """One per app. The least recently used maps leave the memory first, the oldest files the disk.

    Args:
        runs: the store in whose folders it writes; None: it keeps maps only in memory.
        most: bytes in memory.
        beside: bytes of files for one run.
    """

    def __init__(
        self, runs: RunStore | None = None, most: int = MOST_BYTES, beside: int = MOST_BESIDE
    ) -> None:
        self._lock = threading.Lock()
        # An entry that is larger than the budget is kept anyway, because somebody is looking at it.
        self._kept: LRUCache[Key, StoredMaps] = LRUCache(most, lambda made: min(made.nbytes, most))
        self._runs, self._beside = runs, beside

    def get(self, key: Key, trace: GenerationTrace | None = None) -> StoredMaps | None:
        """The stored maps; read from a file only if `trace`, the key's side, is given."""
        with self._lock:
            if (kept := self._kept.get(key)) is not None:
                return kept
        folder = None if trace is None or self._runs is None else self._runs.folder_of(key[0])
        if trace is None or folder is None or not (path := folder / _file(key)).is_file():
            return None
        try:
            stack, about = open_stack(path, trace.layout)
        except ValueError as error:  # it is computed and written again
            log.warning("%s", error)
            return None
        if about.get("key") != _key_values(key):
            return None
        maps = StoredMaps(stack, seconds=float(about.get("seconds", 0.0)))
        self._remember(key, maps)
        return maps

    def has(self, key: Key) -> bool:
        """Whether maps are stored, without reading their file."""
        with self._lock:
            if key in self._kept:
                return self._kept[key].stack is not None
        folder = None if self._runs is None else self._runs.folder_of(key[0])
        return folder is not None and (folder / _file(key)).is_file()

    def put(self, key: Key, maps: StoredMaps) -> None:
        """Store maps. If the disk cannot be written, they are kept in memory only."""
        self._remember(key, maps)
        if maps.stack is None or self._runs is None or maps.nbytes > self._beside:
            return
        folder = self._runs.folder_of(key[0])
        if folder is None:
            return
        try:
            self._make_room(folder, maps.nbytes)
            about = {"key": _key_values(key), "seconds": maps.seconds}
            save_stack(maps.stack, folder / _file(key), about)
            self._runs.trim(spare=key[0])
        except OSError as error:  # also if the run was just deleted
            log.warning("maps of %s are kept in memory only: %s", key[3], error)

    def _remember(self, key: Key, maps: StoredMaps) -> None:
        with self._lock:
            self._kept[key] = maps

    def _make_room(self, folder: Path, needed: int) -> None:
        """Remove the run's oldest maps until `needed` bytes are free."""
        files = []
        for path in folder.glob(PATTERN):
            try:
                about = path.stat()
            except FileNotFoundError:
                continue
            files.append((about.st_mtime_ns, about.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total + needed <= self._beside:
                break
            path.unlink(missing_ok=True)
            total -= size


def _key_values(key: Key) -> list[object]:
    """All but the run's id, which gives access to the run and is therefore not written to files."""
    return [key[1], list(key[2]), key[3]]


def _file(key: Key) -> str:
    name = repr(_key_values(key)).encode()
    return PATTERN.replace("*", sha256(name).hexdigest()[:32])
