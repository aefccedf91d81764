"""A sample of records, by seed: the choice depends on the seed and on the records' content, not on
their order or file.

Each record has a place: the hash of seed and content. One pass over the source keeps those with the
lowest places, so memory does not grow with the source; if these run out, because their images
cannot be opened, another pass keeps the next ones.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import itertools
import threading
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from sinkscope.jobs.job import Stopped
from sinkscope.records.pictures import references_in
from sinkscope.records.reading import Survey, records_of
from sinkscope.records.record import Record, Reference
from sinkscope.records.sources import Source
from sinkscope.records.values import plain

_SPARE = 32  # records kept in addition to twice the requested number
_MORE = 4  # each further pass keeps this many times more
_STREAMED = 100  # rows of a stream read in addition to ten times the requested number
_CHECKED = 1000  # rows between two checks of `stop`


class StoppedReading(Stopped):
    """Stop was set while the rows of a source were read; their number is unknown."""

    def __init__(self, source: str, rows: int) -> None:
        super().__init__(rows, 0, "rows")
        self.args = (f"Reading {source} was stopped after {rows} rows.",)


@dataclass
class RecordSample:
    """Records in an order made by seed and content.

    Args:
        source: where they come from.
        count: approximate number wanted.
        seed: of the order.
        prompt: as in `records.reading.records_of`.
        stop: once set, reading ends with `StoppedReading`.

    Attributes:
        survey: of the first pass.
        repeated: number of records with the same text and images as another one.
    """

    source: Source
    count: int
    seed: int = 0
    prompt: str | None = None
    stop: threading.Event | None = None
    survey: Survey = field(default_factory=Survey)
    repeated: int = 0

    def __iter__(self) -> Iterator[Record]:
        """The records, each with its own name as `id`. No two of them have the same content.

        Raises:
            ValueError: the source cannot be read, or no record of it can be asked.
            StoppedReading: stop was set.
        """
        if not self.source.whole:
            yield from self._as_they_come()
            return
        size, after, shared = 2 * self.count + _SPARE, b"", frozenset[int]()
        while True:
            survey = Survey() if after else self.survey
            kept = self._lowest(size, after, survey)
            if not after:
                survey.check(self.source)
                shared = kept.shared_ids
                self.repeated = kept.repeated
            for place, record in self._with_rows(sorted(kept.records.items())):
                yield _named(record, shared)
                after = place
            if len(kept.records) < size:
                return
            size *= _MORE

    def _as_they_come(self) -> Iterator[Record]:
        """Records of a source that is already shuffled; of two with the same content, the first."""
        known: set[str] = set()
        ids: set[str] = set()
        most = 10 * self.count + _STREAMED
        some = dataclasses.replace(
            self.source, rows=lambda: itertools.islice(self.source.rows(), most)
        )
        for record in records_of(some, self.prompt, self.survey):
            self._look(self.survey.rows)
            content = record.content()
            if content in known:
                self.repeated += 1
                continue
            known.add(content)
            name = record.name()
            yield record._replace(id=f"{name}#{record.short()}" if name in ids else name)
            ids.add(name)
        self.survey.check(self.source)

    def _lowest(self, size: int, after: bytes, survey: Survey) -> _LowestRecords:
        kept = _LowestRecords({}, [])
        for record in records_of(self.source, self.prompt, survey):
            if survey.rows % _CHECKED == 0:
                self._look(survey.rows)
            place = self._place(record)
            if not after:
                kept.note(place, record)
            if place <= after:
                continue
            kept.offer(place, record, size)
        return kept

    def _look(self, rows: int) -> None:
        if self.stop is not None and self.stop.is_set():
            raise StoppedReading(self.source.name, rows)

    def _place(self, record: Record) -> bytes:
        text = f"{self.seed}\0{record.content()}"
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

    def _with_rows(self, drawn: list[tuple[bytes, Record]]) -> list[tuple[bytes, Record]]:
        """The same, with the images that other rows of the table hold for them."""
        wanted = {i.value for _, r in drawn for i in r.images if i.encoding == "row"}
        if not wanted:
            return drawn
        rows: dict[str | bytes, tuple[Reference, ...]] = {}
        for _, raw in self.source.rows():
            row = plain(raw)
            image = row.get("image")
            if (index := str(row.get("index"))) in wanted and not isinstance(image, dict):
                rows[index] = references_in(image, "image")
        return [
            (
                place,
                record._replace(
                    images=tuple(
                        other
                        for image in record.images
                        for other in (
                            rows.get(image.value, (image,)) if image.encoding == "row" else (image,)
                        )
                    ),
                ),
            )
            for place, record in drawn
        ]


@dataclass
class _LowestRecords:
    """The records with the lowest places so far, and hashes of all records seen."""

    records: dict[bytes, Record]
    heap: list[tuple[int, bytes]]
    ids: array[int] = field(default_factory=lambda: array("Q"))
    contents: array[int] = field(default_factory=lambda: array("Q"))

    def note(self, place: bytes, record: Record) -> None:
        """16 bytes per record, to find records with the same id or content."""
        self.ids.append(0 if record.id is None else hash(record.id) % 2**64)
        self.contents.append(int.from_bytes(place[:8], "big"))

    def offer(self, place: bytes, record: Record, size: int) -> None:
        if place in self.records:
            if record.name() < self.records[place].name():
                self.records[place] = record
            return
        low = -int.from_bytes(place, "big")
        if len(self.records) < size:
            heapq.heappush(self.heap, (low, place))
        elif low > self.heap[0][0]:
            del self.records[heapq.heapreplace(self.heap, (low, place))[1]]
        else:
            return
        self.records[place] = record

    @property
    def repeated(self) -> int:
        contents = np.frombuffer(self.contents, np.uint64)
        return len(contents) - len(np.unique(contents))

    @property
    def shared_ids(self) -> frozenset[int]:
        """Hashes of ids that are shared by records of different content."""
        ids = np.frombuffer(self.ids, np.uint64)
        contents = np.frombuffer(self.contents, np.uint64)
        order = np.lexsort((contents, ids))
        ids, contents = ids[order], contents[order]
        shared = (ids[1:] == ids[:-1]) & (contents[1:] != contents[:-1]) & (ids[1:] > 0)
        return frozenset(map(int, np.unique(ids[1:][shared])))


def _named(record: Record, shared: frozenset[int]) -> Record:
    if record.id is None:
        return record._replace(id=record.name())
    if hash(record.id) % 2**64 in shared:
        return record._replace(id=f"{record.id}#{record.short()}")
    return record
