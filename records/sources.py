"""Where rows come from: a file, a folder of images, or an image folder with metadata."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sinkscope.records.json_files import json_rows, json_unit
from sinkscope.records.pictures import FolderPictures, Pictures
from sinkscope.records.tables import csv_rows, parquet_rows

Rows = Iterator[tuple[int, Any]]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


@dataclass(frozen=True)
class FileKind:
    """One kind of file with records.

    Attributes:
        suffixes: of its name.
        what: in words, for the documents.
        unit: name of one record of a file; the second argument is the file's name.
        rows: number and values of each record of a file; the second argument is its name in
            messages; with the third, `records.text.Damaged` replaces unreadable records. Lazy: only
            a few rows are in memory.
    """

    suffixes: tuple[str, ...]
    what: str
    unit: Callable[[Path, str], str]
    rows: Callable[[Path, str, bool], Rows]


def _row(path: Path, name: str) -> str:
    return "row"


FILES: tuple[FileKind, ...] = (
    FileKind((".jsonl", ".ndjson"), "JSON lines: one object per line", json_unit, json_rows),
    FileKind(
        (".json",),
        "a list of objects, an object that holds such a list (`data`, `annotations`, ...), or JSON "
        "lines",
        json_unit,
        json_rows,
    ),
    FileKind((".csv",), "a table with commas, semicolons or tabs", _row, csv_rows),
    FileKind(
        (".tsv",),
        "VLMEvalKit's tables: images in base64, or the index of the row that has it",
        _row,
        csv_rows,
    ),
    FileKind(
        (".parquet",),
        "as hub datasets are stored; needs the library pyarrow (or datasets)",
        _row,
        parquet_rows,
    ),
)
ALL_SUFFIXES = tuple(suffix for kind in FILES for suffix in kind.suffixes)


@dataclass(frozen=True)
class Source:
    """Rows that can be read again and again.

    Attributes:
        name: in messages.
        unit: the word for a row: line, entry, row or image.
        rows: number, from 1, and values of each.
        pictures: resolves the image names.
        notes: for the user, one sentence each.
        whole: false if `rows` gives only a part of the source, already shuffled.
        place: position of a row by its number, in words.
    """

    name: str
    unit: str
    rows: Callable[[], Rows]
    pictures: Pictures
    place: Callable[[int], str]
    notes: tuple[str, ...] = ()
    whole: bool = True


def file_kind(name: str) -> FileKind | None:
    """The kind of a file by its name, or None if it holds no records."""
    suffix = Path(name).suffix.lower()
    return next((kind for kind in FILES if suffix in kind.suffixes), None)


def file_source(
    path: Path, pictures: Pictures, name: str | None = None, damaged: bool = False
) -> Source:
    """The rows of one file.

    Args:
        path: the file.
        pictures: resolves the names in it.
        name: what to call it; by default the path.
        damaged: go on after a row that cannot be read, with a `records.text.Damaged` in its
            place; else reading ends there with a ValueError.

    Raises:
        ValueError: it is of another kind.
    """
    called = str(path) if name is None else name
    kind = file_kind(called)
    if kind is None:
        raise ValueError(f"The data {called} is no {', '.join(ALL_SUFFIXES)} file.")
    short, unit = Path(called).name, kind.unit(path, called)
    return Source(
        called,
        unit,
        lambda: kind.rows(path, called, damaged),
        pictures,
        lambda number: f"{unit} {number} of {short}",
    )


def folder_source(folder: Path, images: Path | None = None) -> Source:
    """A folder of images, searched with its subfolders.

    If it, or a subfolder, holds metadata as the library datasets defines it for its `imagefolder`,
    the rows of that file are used instead of the images below it.

    Args:
        folder: the folder.
        images: where the names in metadata start; by default at the metadata's own folder, which
            they may not leave.

    Raises:
        ValueError: it holds neither images nor metadata.
    """
    folder = folder.absolute()  # a cluster worker may start in another folder
    paths = sorted(path for path in folder.rglob("*") if not path.name.startswith("."))
    tables = _metadata(paths)
    below = tuple(table.parent for table in tables)
    pictures = [path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file()]
    with_metadata = {path for path in pictures if any(path.is_relative_to(top) for top in below)}
    plain = [path.relative_to(folder).as_posix() for path in pictures if path not in with_metadata]
    if not plain and not tables:
        raise ValueError(_no_images(folder, paths))
    offsets = [table.relative_to(folder) for table in tables]

    def rows() -> Rows:
        number = 0
        for table, offset in zip(tables, offsets, strict=True):
            for _, row in file_source(table, FolderPictures(table.parent)).rows():
                number += 1
                yield number, _moved(row, offset.parent) if images is None else row
        for name in plain:
            number += 1
            yield number, {"id": name, "image": name}

    def place(number: int) -> str:
        if not tables:
            return f"image {number} of {folder.name}"
        named = offsets[0] if len(offsets) == 1 else f"the {len(offsets)} metadata files"
        return f"row {number} of {named}"

    return Source(
        str(folder),
        "row" if tables else "image",
        rows,
        FolderPictures(images or folder, inside=bool(tables) and images is None),
        place,
        notes=_left_out(rows(), with_metadata, folder) if with_metadata and images is None else (),
    )


def _metadata(paths: list[Path]) -> list[Path]:
    """Metadata files; of two in one folder, the first of `METADATA`."""
    by_folder: dict[Path, Path] = {}
    for name in METADATA:
        for path in paths:
            if path.name == name and path.is_file():
                by_folder.setdefault(path.parent, path)
    return [path for _, path in sorted(by_folder.items())]


def _left_out(rows: Rows, with_metadata: set[Path], folder: Path) -> tuple[str, ...]:
    """A note on images below metadata that are not listed in it."""
    named = {
        Path(posixpath.normpath(folder / name)) for _, row in rows for name in _file_names(row)
    }
    if not (count := len(with_metadata - named)):
        return ()
    return (f"{count} images are not in the metadata of their folder and were left out.",)


def _file_names(row: Any) -> Iterator[str]:
    for key, value in row.items() if isinstance(row, Mapping) else ():
        if key.endswith(("file_name", "file_names")):
            yield from (v for v in (value if isinstance(value, list) else [value]) if v)


def _moved(row: Any, below: Path) -> Any:
    """The row with its file names relative to the whole folder."""
    if not isinstance(row, Mapping) or below == Path():
        return row
    moved = dict(row)
    for key, value in row.items():
        if key.endswith(("file_name", "file_names")):
            if isinstance(value, str):
                moved[key] = (below / value).as_posix()
            elif isinstance(value, list):
                moved[key] = [(below / v).as_posix() if isinstance(v, str) else v for v in value]
    return moved


def _no_images(folder: Path, paths: list[Path]) -> str:
    tables = [
        path.relative_to(folder).as_posix() for path in paths if path.suffix.lower() in ALL_SUFFIXES
    ]
    more = f"; give one of its files instead: {', '.join(tables[:5])}" if tables else ""
    return f"{folder} has no images{more}."
