"""The folder of a run: its files, how it grows, and how it is reopened.

    run.toml             the configuration; `evaluate run --config run.toml` makes the same run
    provenance.json      what it was made with: model, data, versions, machine, state of git
    records.jsonl        one answer per line, in order of arrival
    summary.json         progress: questions, failures, whether it is complete
    *-1-of-4.*           the last three for shard 1 of 4, instead of those without a number

A line of records is a JSON object with exactly these keys (`evaluation.record.AnswerRecord`):

    task, protocol       names, such as "pope" and "fixed"
    question             text: the question's id, unique in the task
    index                whole number: its place in the task's list of questions, before `--limit`
                         and shards cut it; reports sort by it
    method               name, such as "default", "var", "var-random", "var keep=0.3"
    prompt_hash          SHA-256 of all that the model was given: texts, images' pixels, system
                         prompt, image bounds, token limit. The same for every method of a question;
                         "" if an image or the row could not be read, or not be used by the model
    answer               text; null if there is an error
    extraction           text: the parsed answer (`Judgement.extraction`); null if it could not be
                         parsed
    score                number from 0 to 1 (`Judgement.score`); null if there is an error
    details              object: `Judgement.details`
    truth, category, cluster, fields
                         of the question, as `evaluation.base.Question` has them (tuples are lists)
    log_probabilities    list of numbers: of each answer token, in nats, as the model gave it; null
                         if there is an error
    finish               "end" or "length", as `GenerationTrace.finish_reason`; null with an error
    sinks                whole number: vision tokens that VAR's dimensions and threshold (or the
                         profile's, for `default`) mark in at least one layer; null if nothing is
                         known about sinks
    rows_changed         number from 0 to 1: share of (layer, head, query row) that VAR changed;
                         0 for `default`
    mass_moved           number: attention mass moved, mean over these rows; 0 for `default`
    seconds              of this answer; shared work is split evenly among those that share it
    error                null, or text: why there is no score. Such a record counts in no metric,
                         and the run is not complete; the next run into the folder tries it again
    host                 object: host name, process, device. Only `seconds` and `host` may differ
                         between two runs of one configuration

A question's records are adjacent, one per method, and are written at once. A half-written end left
by a killed process is cut off when the folder is opened again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from sinkscope.evaluation.record import AnswerRecord
from sinkscope.evaluation.settings import RunConfig, Shard, read_config
from sinkscope.untrusted import INFINITE, open_regular, read_json
from sinkscope.utils import write_atomically, write_bytes_atomically

try:
    import fcntl
except ImportError:  # Windows: two processes on one folder are not noticed there
    fcntl = None  # type: ignore[assignment]  # tested before use

CONFIG, RECORDS, SUMMARY, PROVENANCE = (
    "run.toml",
    "records.jsonl",
    "summary.json",
    "provenance.json",
)
_NUMBERED = re.compile(r"records-(\d+)-of-(\d+)\.jsonl")


@dataclass(frozen=True)
class Run:
    """A run, read from its folder.

    Attributes:
        folder: its path.
        config: what it was made by.
        provenance: of the whole run, or of its first shard.
        summaries: one per file of records.
        files: the files of records, in the order of their shards.
        missing: shards that have none.
    """

    folder: Path
    config: RunConfig
    provenance: dict[str, Any]
    summaries: tuple[dict[str, Any], ...]
    files: tuple[Path, ...]
    missing: tuple[int, ...]

    @property
    def complete(self) -> bool:
        """Whether all shards are there and each has all of its questions, without a failure."""
        whole = all(summary.get("complete", False) for summary in self.summaries)
        return whole and not self.missing and len(self.summaries) == len(self.files)

    def records(self) -> Iterator[AnswerRecord]:
        """All records, file by file. A half-written last line is skipped.

        Raises:
            ValueError: a line is not a record.
        """
        for path in self.files:
            for _, record in _records(path):
                yield record


def read_run(folder: Path) -> Run:
    """Open a run to read it.

    Raises:
        ValueError: the folder holds no run; the text says what is missing.
    """
    if not (folder / CONFIG).is_file():
        what = f"has no {CONFIG}" if folder.is_dir() else "is not a folder"
        raise ValueError(f"{folder} {what}; allowed: a folder of `sinkscope evaluate run`.")
    files = sorted(folder.glob("records*.jsonl"), key=_shard_of)
    if not files:
        raise ValueError(f"The run {folder} has no records yet.")
    counts = {_shard_of(path)[1] for path in files}
    if len(counts) > 1:
        raise ValueError(f"The run {folder} has shards of several numbers: {sorted(counts)}.")
    shards = {_shard_of(path)[0] for path in files}
    tails = [path.stem.removeprefix("records") for path in files]
    summaries = [folder / f"summary{tail}.json" for tail in tails]
    first = folder / f"provenance{tails[0]}.json"
    return Run(
        folder,
        read_config(folder / CONFIG),
        _json(first) if first.is_file() else {},
        tuple(_json(path) for path in summaries if path.is_file()),
        tuple(files),
        tuple(number for number in range(1, counts.pop() + 1) if number not in shards),
    )


class RunFolder:
    """A run's folder, open for writing; use it in a `with`.

    Args:
        folder: created if missing.
        config: of the run, with every revision and setting.
        shard: which part is written.

    Attributes:
        done: `index` of the questions that every method answered without an error.

    Raises:
        ValueError: the folder cannot be written, holds another run, other shards, or is being
            written by another process.
    """

    config_name = CONFIG

    def __init__(self, folder: Path, config: RunConfig, shard: Shard | None = None) -> None:
        self.folder, self.config, self.shard = folder, config, shard or Shard()
        tail = "" if self.shard.count == 1 else f"-{self.shard.number}-of-{self.shard.count}"
        self.path = folder / f"records{tail}.jsonl"
        self._summary, self._provenance = (
            folder / f"summary{tail}.json",
            folder / f"provenance{tail}.json",
        )
        self.done: set[int] = set()
        self._file: BinaryIO | None = None

    def __enter__(self) -> RunFolder:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._check()
            if not (self.folder / self.config_name).exists():
                text = self.config.toml()
                write_atomically(
                    self.folder / self.config_name, lambda file: file.write(text.encode())
                )
            self._file = self.path.open("a+b")
        except OSError as error:
            raise ValueError(
                f"The folder {self.folder} cannot be written: {error.strerror or error}."
            ) from error
        try:
            self._lock()
            self._recover()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, records: Sequence[AnswerRecord]) -> None:
        """Write the records of one question at once.

        Raises:
            OSError: the disk is full, or similar. A half-written record is cut off by the next run.
        """
        assert self._file is not None
        self._file.write("".join(record.line() for record in records).encode())
        self._file.flush()

    def write_summary(self, values: dict[str, Any]) -> None:
        """Write the run's progress."""
        _write_json(self._summary, values)

    def note_session(self, values: dict[str, Any]) -> None:
        """Write the provenance; a later session is added to the first."""
        provenance = _json(self._provenance) if self._provenance.is_file() else {}
        sessions = [*provenance.get("sessions", []), values.pop("session")]
        _write_json(self._provenance, {**(provenance or values), "sessions": sessions})

    def _check(self) -> None:
        if (self.folder / CONFIG).exists():
            stored = read_config(self.folder / CONFIG)
            if differs := stored.differences(self.config):
                raise ValueError(
                    f"The folder {self.folder} holds another run: {'; '.join(differs[:5])}. Give "
                    "another folder, or the settings of that run."
                )
        elif any(self.folder.iterdir()):
            raise ValueError(
                f"The folder {self.folder} is not empty and holds no run; give a new one."
            )
        for path in self.folder.glob("records*.jsonl"):
            count = _shard_of(path)[1]
            if count != self.shard.count:
                parts = "the whole run" if count == 1 else f"shards of {count}"
                raise ValueError(
                    f"The folder {self.folder} has records of {parts}, and shard "
                    f"{self.shard.number}/{self.shard.count} is asked for; the same questions "
                    "would be in it twice."
                )

    def _lock(self) -> None:
        assert self._file is not None
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"{self.path} is being written by another process.") from error

    def _recover(self) -> None:
        """Keep whole groups of good records, cut out everything else."""
        assert self._file is not None
        kept, in_order = 0, True
        for start, end, _ in self._good_groups():
            if start == kept:
                kept = end
            else:
                in_order = False  # something before it has to be removed
        if not in_order:
            self._rewrite()
        elif kept < self.path.stat().st_size:
            self._file.truncate(kept)

    def _rewrite(self) -> None:
        """Rewrite the file with only the good groups."""
        assert self._file is not None

        def write(file: BinaryIO) -> None:
            for _, _, group in self._good_groups():
                file.write("".join(record.line() for record in group).encode())

        write_atomically(self.path, write)
        self._file.close()
        self._file = self.path.open("a+b")
        self._lock()

    def _good_groups(self) -> Iterator[tuple[int, int, list[AnswerRecord]]]:
        """Start, end and records of each good group; rebuilds `done`."""
        self.done = set()
        names = [one.name for one in self.config.methods]
        for start, end, group in _groups(self.path):
            good = [one.method for one in group] == names and not any(one.error for one in group)
            if good and group[0].index not in self.done:
                self.done.add(group[0].index)
                yield start, end, group


def _groups(path: Path) -> Iterator[tuple[int, int, list[AnswerRecord]]]:
    """Adjacent records of one question, with their position in the file."""
    start = last = 0
    group: list[AnswerRecord] = []
    for end, record in _records(path):
        if group and record.index != group[0].index:
            yield start, last, group
            start, group = last, []
        group.append(record)
        last = end
    if group:
        yield start, last, group


def _records(path: Path) -> Iterator[tuple[int, AnswerRecord]]:
    """The end of each record's line, and the record. An incomplete last line is skipped."""
    with open_regular(path) as file:
        end = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            end += len(line)
            yield end, AnswerRecord.of_line(line, f"Line {number} of {path.name}")


def _shard_of(path: Path) -> tuple[int, int]:
    match = _NUMBERED.fullmatch(path.name)
    return (int(match[1]), int(match[2])) if match else (1, 1)


def _json(path: Path) -> dict[str, Any]:
    values = read_json(path, "The file", INFINITE)
    if not isinstance(values, dict):
        raise ValueError(f"The file {path.name} is damaged, because it is not JSON object.")
    return values


def _write_json(path: Path, values: dict[str, Any]) -> None:
    text = json.dumps(values, ensure_ascii=False, indent=1, allow_nan=False) + os.linesep
    write_bytes_atomically(path, text.encode())
