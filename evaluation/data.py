"""Where a task's rows come from: a hub dataset, a folder or files in the published layout.

    (left out)                     the task's own dataset on the hub
    hub:owner/name[@revision]      another copy of it, or another revision
    FOLDER                         a download of it: CONFIGURATION/SPLIT-*.parquet, data/SPLIT-*...
    FILE                           one .parquet, .jsonl, .json, .csv or .tsv file of it

Rows are read one after the other, a few at a time, and images stay encoded until they are used. A
dataset's revision is resolved to a commit before its first row, and recorded.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from sinkscope.config import ImageLimits
from sinkscope.models.images import open_image
from sinkscope.records.hub import HUB, hub_name, hub_source
from sinkscope.records.pictures import FolderPictures, Pictures, picture, references_in
from sinkscope.records.record import Reference
from sinkscope.records.sources import ALL_SUFFIXES, file_kind, file_source
from sinkscope.records.text import Damaged

MOST_NAMED = 20  # files or columns that a message names
_ENDS = 1_000_000  # bytes at a file's beginning and end that its fingerprint covers


@dataclass(frozen=True)
class Table:
    """One table of a dataset: a configuration (None: its only one) and a split."""

    configuration: str | None
    split: str

    def __str__(self) -> str:
        return self.split if self.configuration is None else f"{self.configuration}/{self.split}"


@dataclass(frozen=True)
class StoredPicture:
    """An image as a row stores it; calling it decodes it. It can be sent to another process."""

    reference: Reference
    pictures: Pictures
    limits: ImageLimits = field(default_factory=ImageLimits)

    def __call__(self) -> Image.Image:
        """The image, upright RGB.

        Raises:
            models.images.ImageError: it is missing, damaged or not allowed.
        """
        return open_image(picture(self.reference, self.pictures, self.limits.max_bytes))


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        values: by column.
        number: in its table, from 1.
        where: its position in words, such as `row 3 of val-00000-of-00001.parquet`.
        pictures: resolves the names of its images.
        table: the one that it belongs to.
        damage: the reason why it cannot be read, in a sentence; it then has no values. Else "".
    """

    values: Mapping[str, Any]
    number: int
    where: str
    pictures: Pictures
    table: Table
    damage: str = ""

    def images(self, *columns: str) -> tuple[StoredPicture, ...]:
        """The images of these columns, in order; columns that are empty or missing have none.

        Raises:
            records.record.RecordError: a column holds no image.
        """
        images = [
            reference
            for column in columns
            if self.values.get(column) is not None
            for reference in references_in(self.values[column], column)
        ]
        return tuple(StoredPicture(reference, self.pictures) for reference in images)


@dataclass(frozen=True)
class Data:
    """The opened data of a task.

    Attributes:
        name: what the user gave, or the dataset's name on the hub.
        revision: the hub's commit, or a fingerprint of the files: names, sizes, and the bytes at
            their beginnings and ends.
        tables: those that the task reads.
        files: of each table; empty for a hub dataset.
        images: folder in which image names start; None: the file's own.
    """

    name: str
    revision: str
    tables: tuple[Table, ...]
    files: Mapping[Table, tuple[Path, ...]]
    images: Path | None = None

    def rows(self, table: Table) -> Iterator[Row]:
        """The rows of a table, in the data's order. One that cannot be read has `damage`; the rows
        after it follow if the file type allows finding them.

        Raises:
            ValueError: a file cannot be read at all.
        """
        if not self.files:
            yield from self._hub_rows(table)
            return
        before = 0  # rows of the files before
        for path in self.files[table]:
            pictures = FolderPictures((self.images or path.parent).absolute())
            source = file_source(path, pictures, damaged=True)
            number = 0
            for number, values in source.rows():
                where, damage = source.place(number), ""
                if isinstance(values, Damaged):
                    damage = values.reason
                elif not isinstance(values, dict):
                    damage = f"{where[:1].upper()}{where[1:]} is not an object."
                row_values = {} if damage else values
                yield Row(row_values, before + number, where, pictures, table, damage)
            before += number

    def count(self, tables: Sequence[Table]) -> int | None:
        """How many rows these tables have, if known without reading their values."""
        if not tables or any(table not in self.files for table in tables):
            return None
        counts = [_rows_in(path) for table in tables for path in self.files[table]]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def _hub_rows(self, table: Table) -> Iterator[Row]:
        configuration = "" if table.configuration is None else f"{table.configuration}:"
        name = f"{HUB}{self.name}@{self.revision}:{configuration}{table.split}"
        source = hub_source(name, None)
        for number, values in source.rows():
            yield Row(values, number, f"row {number} of {name}", source.pictures, table)


def open_data(
    given: str | None,
    own: str | None,
    tables: Sequence[Table],
    images: Path | None = None,
    revision: str | None = None,
    allowed: str = "",
) -> Data:
    """Find a task's tables; no row is read yet.

    Args:
        given: what the user gave (see the module's docstring); None: the task's own.
        own: the task's dataset on the hub, `owner/name`, or None.
        tables: that the task reads.
        images: folder in which image names of a file start.
        revision: of a hub dataset: commit, tag or branch; None: that of `given`, else the newest.
            For files: the required fingerprint.
        allowed: in words, what may be given if the task has no dataset.

    Raises:
        ValueError: there is no such data, a table of it is missing, or the hub cannot be reached.
    """
    if images is not None and not images.is_dir():
        raise ValueError(f"The folder of images {images} does not exist.")
    if given is None and own is None:
        raise ValueError(f"This task needs data (--data): {allowed}.")
    if given is None or given.startswith(HUB):
        if images is not None:
            raise ValueError("images is given, but a hub dataset holds its images itself.")
        named = hub_name(given or f"{HUB}{own}")
        wanted = revision or named.revision
        return Data(named.dataset, _commit(named.dataset, wanted), tuple(tables), {})
    path = Path(given)
    if path.is_dir():
        files = {table: _files(path, table, tables) for table in tables}
    elif path.is_file() and file_kind(path.name) is not None:
        files = {tables[0]: (path,)}
    else:
        what = "does not exist" if not path.exists() else "is neither a folder nor such a file"
        raise ValueError(
            f"The data {given} {what}; allowed: a folder in the published layout, a file "
            f"({', '.join(ALL_SUFFIXES)}), or hub:owner/name[@revision]."
        )
    fingerprint = _fingerprint(path, files)
    if revision is not None and revision != fingerprint:
        raise ValueError(
            f"The data {given} is not the one that the run was made with: its fingerprint is "
            f"{fingerprint}, and {revision} is wanted."
        )
    return Data(given, fingerprint, tuple(files), files, images)


def column(row: Row, name: str) -> Any:
    """A column of a row; a null counts as missing in that row only.

    Raises:
        ValueError: the data has no such column; the existing ones are named.
    """
    if name not in row.values:
        columns = ", ".join(list(map(str, row.values))[:MOST_NAMED]) or "none"
        raise ValueError(
            f"The data has no column {name!r} ({row.where}); columns present: {columns}."
        )
    return row.values[name]


def _files(folder: Path, table: Table, tables: Sequence[Table]) -> tuple[Path, ...]:
    """The files of a table in a folder, in the layout of the hub and the library datasets:
    `CONFIGURATION/SPLIT-00000-of-00003.parquet`, `data/SPLIT-...`, `CONFIGURATION/SPLIT/0000...`.
    """
    all_files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and file_kind(path.name) is not None and not path.name.startswith(".")
    )
    matching = [path for path in all_files if _is_of(path.relative_to(folder), table)]
    if not matching:
        names = [path.relative_to(folder).as_posix() for path in all_files[:MOST_NAMED]]
        wanted = f"{table.configuration or 'data'}/{table.split}-*.parquet"
        missing = "" if len(tables) == 1 else f" ({len(tables)} tables are needed)"
        raise ValueError(
            f"The folder {folder} has no {wanted}{missing}; files present: "
            f"{', '.join(names) or 'none'}."
        )
    return tuple(matching)


def _is_of(path: Path, table: Table) -> bool:
    stem, folders = path.name.partition(".")[0], path.parts[:-1]
    if table.configuration is not None and table.configuration not in folders:
        return False
    if stem == table.split or any(stem.startswith(f"{table.split}{sign}") for sign in "-_"):
        return True
    return bool(folders) and folders[-1] == table.split


def _rows_in(path: Path) -> int | None:
    if path.suffix == ".parquet":
        try:
            rows = importlib.import_module("pyarrow.parquet").ParquetFile(path).metadata.num_rows
        except (ImportError, OSError, ValueError):
            return None  # reading it reports the error
        return int(rows)
    if path.suffix in (".jsonl", ".ndjson"):
        with path.open("rb") as file:
            return sum(1 for line in file if line.strip())
    return None


def _commit(dataset: str, revision: str | None) -> str:
    """The commit that a revision resolves to.

    Raises:
        ValueError: the library is missing, or the hub knows no such dataset or cannot be reached.
    """
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ValueError(
            f"The data {HUB}{dataset} is a dataset of a hub; install the library datasets to read "
            "it."
        ) from error
    try:
        return str(hub.HfApi().dataset_info(dataset, revision=revision).sha)
    except Exception as error:  # network, hub or client errors: all mean the same
        first = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise ValueError(
            f"The dataset {HUB}{dataset} cannot be found on the hub: {first[0]} Give a folder or "
            "file of it (--data)."
        ) from error


def _fingerprint(path: Path, files: Mapping[Table, Sequence[Path]]) -> str:
    digest = hashlib.sha256()
    top = path if path.is_dir() else path.parent
    for one in sorted(set(itertools.chain.from_iterable(files.values()))):
        size = one.stat().st_size
        digest.update(f"{one.relative_to(top).as_posix()} {size} ".encode())
        with one.open("rb") as file:
            digest.update(file.read(_ENDS))
            if size > _ENDS:
                file.seek(max(_ENDS, size - _ENDS))
                digest.update(file.read(_ENDS))
    return digest.hexdigest()[:40]
