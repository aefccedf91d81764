"""Runs that the page can show: in memory up to a budget, and as files in a folder.

The store belongs to the app. A browser has only a run's id, which cannot be guessed and gives
access to the run. Every run is written once, when it is put. The least recently used runs are
dropped from memory first, the oldest from the folder.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import secrets
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sinkscope.capture.trace import GenerationTrace
from sinkscope.drawing.run_summary import summary_line
from sinkscope.untrusted import Bounds, read_json
from sinkscope.utils import write_atomically
from sinkscope.web.runs.served_files import ServedFiles

log = logging.getLogger(__name__)

_ID = re.compile(r"[A-Za-z0-9_-]{16,64}\Z")
_VARIANTS = ("baseline", "var")
STORED_KINDS = ("run", "example")
RUN_JSON = Bounds(bytes=10_000, infinite=True)  # it has a few hundred
BYTES_A_PIXEL = 4  # Pillow uses four for RGB
LABELS = {"baseline": "Baseline", "var": "VAR"}


def new_id() -> str:
    """An id that cannot be guessed (128 random bits)."""
    return secrets.token_urlsafe(16)


def run_summary(run: Run) -> str:
    """The settings of a run in one line; two runs side by side have a table instead."""
    return "" if run.kind == "pair" else summary_line(run.traces, run.same_text)


def control_of(trace: GenerationTrace) -> str:
    """The control in VAR's place that a trace was made with, such as `random`; "" for none."""
    settings = (trace.var or {}).get("settings") or {}
    control = str(settings.get("control") or "none")
    return "" if control == "none" else control


@dataclass(frozen=True)
class Run:
    """The result of one click on Generate.

    Attributes:
        traces: `baseline`, or `baseline` and `var`, in this order; for a pair of runs `a` and `b`.
        kind: `run`, `example` for the one that ships with the project, or `pair` for an answer of
            each of two runs (`web.runs.pairs`), which is never stored.
        same_text: VAR was forced onto the baseline's answer: token i is the same on both sides.
        created: seconds since 1970.
        labels: names of the traces of a pair.
        about: further values for the inspector about a pair.
        folder: the folder that its files were read from; None for a run made here.
    """

    traces: Mapping[str, GenerationTrace]
    kind: str = "run"
    same_text: bool = False
    created: float = field(default_factory=time.time)
    id: str = field(default_factory=new_id)
    labels: Mapping[str, str] = field(default_factory=lambda: LABELS)
    about: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    def __post_init__(self) -> None:
        allowed = (("a", "b"),) if self.kind == "pair" else (_VARIANTS[:1], _VARIANTS)
        assert tuple(self.traces) in allowed, tuple(self.traces)

    @property
    def first(self) -> GenerationTrace:
        """The trace on the left: the baseline, or side a of a pair."""
        return next(iter(self.traces.values()))

    def label(self, name: str) -> str:
        """The name of a side; a control run is named as such, because it looks like VAR."""
        used = control_of(self.traces[name])
        return self.labels[name] + (f" · control: {used}" if used else "")

    @property
    def nbytes(self) -> int:
        """Bytes of the traces' tensors."""
        tensors = (
            t
            for trace in self.traces.values()
            for rows in (trace, trace.prompt_rows, trace.reference)
            if rows is not None
            for t in (rows.attention, rows.shares, rows.entropy)
        )
        return sum(t.numel() * t.element_size() for t in tensors)

    @property
    def memory(self) -> int:
        """Bytes in memory: its tensors, and each of its images once."""
        images = {id(image): image for trace in self.traces.values() for image in trace.images}
        pixels = sum(image.width * image.height for image in images.values())
        return self.nbytes + BYTES_A_PIXEL * pixels


def ids_of(run: Run) -> tuple[str, ...]:
    """The ids of the stored runs that a run is made of: its own, or both of a pair."""
    if run.kind != "pair":
        return (run.id,)
    return tuple(side.rpartition(".")[0] for side in run.id.split("~"))


def save_run(run: Run, folder: Path) -> None:
    """Write a run: one safetensors file per trace, and last a small `run.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, trace in run.traces.items():
        trace.save(folder / f"{name}.safetensors")
    about = {
        "kind": run.kind,
        "same_text": run.same_text,
        "created": run.created,
        "variants": list(run.traces),
    }
    write_atomically(
        folder / "run.json", lambda file: file.write(json.dumps(about, indent=1).encode())
    )


def open_run(folder: Path, run_id: str | None = None) -> Run:
    """Read what `save_run` wrote.

    Raises:
        ValueError: something is missing or damaged; the text says what.
    """
    try:
        about = read_json(folder / "run.json", "The file", RUN_JSON)
        names = [name for name in _VARIANTS if name in list(about["variants"])]
        kind, same_text, created = about["kind"], about["same_text"], float(about["created"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError("The stored run is damaged: its description cannot be read.") from error
    if kind not in STORED_KINDS or not isinstance(same_text, bool) or not 0 <= created < 1e11:
        raise ValueError("The stored run is damaged: its description is invalid.")
    traces = {name: GenerationTrace.open(folder / f"{name}.safetensors") for name in names}
    if "baseline" not in traces:
        raise ValueError("The stored run is damaged: it has no baseline.")
    if len({(t.layout, t.layers, t.heads, t.prompt) for t in traces.values()}) > 1:
        raise ValueError("The stored run is damaged: its two answers have different prompts.")
    traces = {name: _sharing(trace, traces["baseline"]) for name, trace in traces.items()}
    return Run(traces, kind, same_text, created, run_id or new_id(), folder=folder)


def _sharing(trace: GenerationTrace, first: GenerationTrace) -> GenerationTrace:
    """The trace with the images of another if they are the same, so they are in memory once."""
    same = trace is not first and all(
        a == b for a, b in zip(trace.images, first.images, strict=True)
    )
    return dataclasses.replace(trace, images=first.images) if same else trace


class RunStore:
    """Keeps runs for the page. Safe to call from several threads."""

    def __init__(self, folder: Path, memory_bytes: int, disk_bytes: int | None = None) -> None:
        self._folder = folder
        self._memory_bytes = memory_bytes
        self._disk_bytes = 8 * memory_bytes if disk_bytes is None else disk_bytes
        self._runs: OrderedDict[str, Run] = OrderedDict()
        self._lock = threading.RLock()
        self.copies = ServedFiles()

    def keep_copies(self, run: Run, *paths: Path) -> None:
        """Register files as copies of a run (or of both runs of a pair), to be removed with it.

        They are removed at once if the run was deleted while they were made.
        """
        ids = ids_of(run)
        self.copies.add(ids, paths)
        for run_id in ids:
            if not self._has(run_id):
                self.copies.drop(run_id)
        self._trim(spare=ids)

    def remove_older(self, seconds: float) -> int:
        """Remove the runs that are older than this, except the example; returns their number."""
        limit = time.time() - seconds
        with self._lock:
            old = {run.id for run in self._runs.values() if run.created < limit}
            old -= {run.id for run in self._runs.values() if run.kind == "example"}
            folders = list(self._folder.iterdir()) if self._folder.is_dir() else []
        for folder in folders:
            if _ID.match(folder.name) and _created(folder) < limit:
                old.add(folder.name)
        for run_id in old:
            self.delete(run_id)
        return len(old)

    def _has(self, run_id: str) -> bool:
        with self._lock:
            return run_id in self._runs or (self._folder / run_id / "run.json").is_file()

    def claim(self, run_id: str) -> None:
        """A run with this id has begun; if users log in, `web.runs.owners` records its owner."""

    def may_see(self, run_id: object) -> bool:
        """Whether the current user may see a run. Without logins, everybody with its id may."""
        return True

    def put(self, run: Run, keep_on_disk: bool = True) -> str | None:
        """Add a run. `keep_on_disk=False` is for one that ships with the project.

        Returns:
            Why the run is only in memory, in a few words; None if its files are written. A full
            disk, or a value that a file cannot hold, is not an error, because the finished answer
            must not be lost.
        """
        with self._lock:
            self._remember(run)
        if not keep_on_disk:
            return None
        folder = self._folder / run.id
        try:
            save_run(run, folder)
        except (OSError, ValueError) as error:
            log.warning("run %s is kept in memory only: %s", run.id, error)
            shutil.rmtree(folder, ignore_errors=True)  # a part of it is useless
            if isinstance(error, OSError):  # its text would name the folder
                return f"kept in memory only: {error.strerror or 'the disk cannot be written'}"
            return f"kept in memory only: {error}"
        self._trim(spare=(run.id,))
        return None

    def get(self, run_id: object) -> Run | None:
        """The run, from memory or from its files; None if there is none (any more)."""
        if not isinstance(run_id, str) or not _ID.match(run_id):
            return None  # an id becomes a folder's name, so it must match
        if (run := self.in_memory(run_id)) is not None:
            return run
        if not (self._folder / run_id / "run.json").is_file():
            return None
        try:
            run = open_run(self._folder / run_id, run_id)
        except ValueError:
            return None
        with self._lock:
            self._remember(run)
        return run

    def in_memory(self, run_id: object, wait: bool = True) -> Run | None:
        """The run if it is in memory; without `wait` also None while another thread holds the lock,
        which may be removing files."""
        if not self._lock.acquire(blocking=wait):
            return None
        try:
            if not isinstance(run_id, str) or run_id not in self._runs:
                return None
            self._runs.move_to_end(run_id)
            return self._runs[run_id]
        finally:
            self._lock.release()

    def file_of(self, trace: GenerationTrace) -> Path | None:
        """The file of a trace of a run in memory; None if there is none."""
        with self._lock:
            for run in self._runs.values():
                for name, variant_trace in run.traces.items():
                    if variant_trace is trace:
                        folder = run.folder or self._folder / run.id
                        whole = (folder / "run.json").is_file()  # which is written last
                        return folder / f"{name}.safetensors" if whole else None
        return None

    def folder_of(self, run_id: str) -> Path | None:
        """The folder of a run that was written; None if there is none."""
        if not _ID.match(run_id):
            return None
        folder = self._folder / run_id
        return folder if (folder / "run.json").is_file() else None

    def trim(self, spare: str) -> None:
        """Remove the oldest runs beyond the disk budget, after something was written next to the
        files of one; that one stays."""
        self._trim((spare,))

    def delete(self, run_id: str) -> None:
        """Forget a run and remove its files."""
        if not _ID.match(run_id):
            return
        with self._lock:
            self._runs.pop(run_id, None)
            shutil.rmtree(self._folder / run_id, ignore_errors=True)
        self.copies.drop(run_id)

    @property
    def memory(self) -> int:
        """Bytes that the runs in memory take."""
        with self._lock:
            return sum(run.memory for run in self._runs.values())

    def _remember(self, run: Run) -> None:
        self._runs[run.id] = run
        self._runs.move_to_end(run.id)
        total = sum(r.memory for r in self._runs.values())
        for run_id in list(self._runs):
            if total <= self._memory_bytes or run_id == run.id:
                break
            if self._runs[run_id].kind == "example":
                continue  # it has no files of its own in the folder
            total -= self._runs.pop(run_id).memory
            if not self._has(run_id):
                self.copies.drop(run_id)  # it was in memory only

    @property
    def disk(self) -> int:
        """Bytes of runs on the disk: their files, and the copies that are served to the page."""
        return sum(size for _, size, _ in self._aged()) + self.copies.nbytes

    def _trim(self, spare: tuple[str, ...]) -> None:
        try:
            with self._lock:
                self._trim_disk(spare)
        except OSError as error:  # the next run tries again
            log.warning("the folder of runs could not be trimmed: %s", error)

    def _trim_disk(self, spare: tuple[str, ...]) -> None:
        """Remove the oldest runs beyond the budget, copies too; never these, nor one that is
        open."""
        aged = self._aged()
        files = sum(size for _, size, _ in aged)
        copies = self.copies.nbytes
        for _, size, folder in sorted(aged):
            if files + copies <= self._disk_bytes:
                break
            if folder.name not in spare and folder.name not in self._runs:  # in use
                files -= size
                shutil.rmtree(folder, ignore_errors=True)
                self.copies.drop(folder.name)
                copies = self.copies.nbytes

    def _aged(self) -> list[tuple[float, int, Path]]:
        """The stored runs: when each was written, the bytes of its files, its folder."""
        aged: list[tuple[float, int, Path]] = []
        for folder in self._folder.iterdir() if self._folder.is_dir() else ():
            if not _ID.match(folder.name):
                continue
            try:
                sizes = [f.stat().st_size for f in folder.iterdir() if f.is_file()]
                aged.append((folder.stat().st_mtime, sum(sizes), folder))
            except (FileNotFoundError, NotADirectoryError):
                continue  # another app on the same folder removed it, or its half-written file
        return aged


def _created(folder: Path) -> float:
    """When a stored run was made, in seconds since 1970; if it cannot be read, the time of its
    folder."""
    try:
        return float(json.loads((folder / "run.json").read_bytes())["created"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        try:
            return folder.stat().st_mtime
        except OSError:  # removed in the meantime
            return time.time()
