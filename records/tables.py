"""Rows of tables: CSV, TSV (as VLMEvalKit shares its benchmarks) and Parquet."""

from __future__ import annotations

import csv
import importlib
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sinkscope.records.text import LONGEST, Damaged, lines_or_damage
from sinkscope.records.values import listed
from sinkscope.untrusted import open_regular

# VLMEvalKit's limit: a longer cell is an image in base64, a shorter one the index of a row.
SHORTEST_IMAGE = 64
_LISTS = (
    *("image", "images", "image_path", "answers", "choices", "options"),
    *("conversations", "messages", "history"),
)
MOST_CELLS = 100_000  # of a line, or of its commas: empty cells take memory too
_ROWS_AT_ONCE = 16  # each may hold images


class _DamagedLineError(ValueError):
    """A line that is not text, raised when the table's reader reads it."""


def csv_rows(path: Path, name: str, damaged: bool = False) -> Iterator[tuple[int, Any]]:
    """Rows of a table with commas, semicolons or tabs, by the names in its first line.

    Args:
        path: the file.
        name: what messages call it.
        damaged: go on after a row that cannot be read, with a `Damaged` in its place.

    Raises:
        ValueError: the file cannot be read, or a row has more cells than the first line.
    """
    # A limit of the whole process, too low for an image in a cell; it is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST))
    lines = lines_or_damage(path, name)
    first = next((_text(line) for _, line in lines), "")
    sign = "\t" if Path(name).suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    # A map, unlike a generator, goes on after an error.
    texts = map(_text, (line for _, line in lines))
    reader = csv.reader(itertools.chain([first], texts), delimiter=sign, strict=True)
    header: list[str] | None = None
    for number in itertools.count():
        try:
            cells = next(reader, None)
            if cells is None:
                return
            if header is None:
                header = cells
                continue
            if len(cells) > len(header):
                raise ValueError(
                    f"Row {number} of {name} has {len(cells)} cells, but its first line names "
                    f"{len(header)} columns."
                )
        except (csv.Error, ValueError) as error:
            message = str(error)
            if isinstance(error, csv.Error):
                message = f"Row {number} of {name} is not a row of a table: {error}."
            if not damaged or header is None:
                raise ValueError(message) from error
            yield number, Damaged(message)
        else:
            if cells:
                yield number, _row(dict(zip(header, cells, strict=False)))


def _text(line: str | Damaged) -> str:
    if isinstance(line, Damaged):
        raise _DamagedLineError(line.reason)
    if len(line) > MOST_CELLS and max(map(line.count, ",;\t")) > MOST_CELLS:
        raise _DamagedLineError(f"A row has more than {MOST_CELLS} cells, the most allowed.")
    return line


def parquet_rows(path: Path, name: str, damaged: bool = False) -> Iterator[tuple[int, Any]]:
    """Rows of a Parquet file, class labels by their names, a few at a time.

    Args:
        path: the file.
        name: what messages call it.
        damaged: put a `Damaged` at the end if rows, and all after them, cannot be read.

    Raises:
        ValueError: the library pyarrow is missing, or the file is not Parquet.
    """
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ValueError(
            f"The data {name} is a Parquet file; install the library pyarrow to read it."
        ) from error
    arrow = importlib.import_module("pyarrow")
    number, opened = 0, False
    try:
        with open_regular(path) as stream, parquet.ParquetFile(stream) as file:
            labels = labels_in(file.schema_arrow.metadata or {})
            opened = True
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    number += 1
                    yield number, with_labels(row, labels)
    except (arrow.ArrowException, OSError) as error:
        if not (damaged and opened):
            raise ValueError(f"The data {name} cannot be read as Parquet: {error}.") from error
        yield (
            number + 1,
            Damaged(f"Row {number + 1} of {name} and all after it cannot be read: {error}."),
        )


def labels_in(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Names of the classes of each column of class labels, as the library datasets notes them."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {
            column: list(map(str, feature["names"]))
            for column, feature in features.items()
            if isinstance(feature, dict) and isinstance(feature.get("names"), list)
        }
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def with_labels(row: dict[str, Any], labels: Mapping[str, list[str]]) -> dict[str, Any]:
    """The row with names of classes instead of their numbers."""
    for column, names in labels.items():
        value = row.get(column)
        if isinstance(value, int) and 0 <= value < len(names):
            row[column] = names[value]
    return row


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """Cells that hold lists as lists; a short image that is not a file's name as another row's."""
    for column in _LISTS:
        if isinstance(text := row.get(column), str):
            row[column] = listed(text)
    image = row.get("image")
    if isinstance(image, str) and 0 < len(image) <= SHORTEST_IMAGE and "index" in row:  # noqa: SIM102
        if "." not in image and "/" not in image:
            row["image"] = {"row": image}
    return row
