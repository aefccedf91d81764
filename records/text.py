"""Lines of a text file from outside: UTF-8, with or without a byte order mark, none too long."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

# A record in memory: the largest image allowed, as base64, and some words.
LONGEST = 128 * 2**20
# And no more values than fit: a megabyte of brackets becomes twenty times as much.
MOST_VALUES = 4_000_000
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def lines_of(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line, with its line break.

    Raises:
        ValueError: the file cannot be read, or a line is too long or no UTF-8 text.
    """
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LONGEST + 1):
                number += 1
                if number == 1:
                    line = without_mark(line, name)
                if len(line) > LONGEST:
                    raise ValueError(
                        f"Line {number} of {name} is longer than {LONGEST / 1e6:.0f} MB, the most "
                        "allowed."
                    )
                try:
                    text = line.decode()
                except UnicodeDecodeError as error:
                    raise ValueError(
                        f"Line {number} of {name} is no UTF-8 text (its byte {error.start}); save "
                        "the file as UTF-8."
                    ) from error
                yield number, text
    except OSError as error:
        raise ValueError(f"The data {name} cannot be read: {error.strerror or error}.") from error


def check_values(text: str, what: str) -> None:
    """Refuse a JSON text before it is parsed where it has too many values.

    Raises:
        ValueError: naming it by `what`.
    """
    if len(text) > MOST_VALUES and sum(map(text.count, ",[{")) > MOST_VALUES:
        raise ValueError(f"{what} has more than {MOST_VALUES} values, the most allowed.")


def without_mark(start: bytes, name: str) -> bytes:
    """The beginning of a file without the byte order mark of UTF-8.

    Raises:
        ValueError: it has that of UTF-16.
    """
    if start.startswith(_UTF_16):
        raise ValueError(f"The data {name} is UTF-16; save the file as UTF-8.")
    return start.removeprefix(codecs.BOM_UTF8)
