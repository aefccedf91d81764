"""Lines of an untrusted text file: UTF-8, with or without a byte order mark, of limited length."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sinkscope.untrusted import Bounds, UntrustedFileError, check_json, open_regular

# A record in memory: the largest image allowed, as base64, and some words.
LONGEST = 128 * 2**20
# And a limited number of values: a megabyte of brackets becomes twenty times as much.
MOST_VALUES = 4_000_000
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Damaged:
    """Replaces a row that cannot be read, if a reader continues after it (`damaged=True`).

    Attributes:
        reason: which row and what is wrong, in a sentence.
    """

    reason: str


def lines_of(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line, with its line break.

    Raises:
        ValueError: the file cannot be read, or a line is too long or not UTF-8 text.
    """
    for number, line in lines_or_damage(path, name):
        if isinstance(line, Damaged):
            raise ValueError(line.reason)
        yield number, line


def lines_or_damage(path: Path, name: str) -> Iterator[tuple[int, str | Damaged]]:
    """The same, with `Damaged` for a line that is too long or not UTF-8 text.

    Raises:
        ValueError: the file cannot be read, or is UTF-16.
    """
    try:
        with open_regular(path) as file:
            number = 0
            while line := file.readline(LONGEST + 1):
                number += 1
                if number == 1:
                    line = without_mark(line, name)
                where = f"Line {number} of {name}"
                if len(line) > LONGEST:
                    _pass_over(file, line)
                    most = f"{LONGEST / 1e6:.0f} MB, the most allowed."
                    yield number, Damaged(f"{where} is longer than {most}")
                    continue
                try:
                    text = line.decode()
                except UnicodeDecodeError as error:
                    what = f"is not UTF-8 text (its byte {error.start}); save the file as UTF-8."
                    yield number, Damaged(f"{where} {what}")
                    continue
                yield number, text
    except OSError as error:
        raise ValueError(f"The data {name} cannot be read: {error.strerror or error}.") from error


def _pass_over(file: IO[bytes], line: bytes) -> None:
    """Read on to the end of a line."""
    while line and not line.endswith(b"\n"):
        line = file.readline(LONGEST)


class TooManyValuesError(ValueError):
    """A JSON text that would fill the memory; the message names it."""


def check_values(text: str, what: str) -> None:
    """Refuse, before parsing, a JSON text with too many values or levels.

    Raises:
        TooManyValuesError: with `what` as its name.
    """
    try:
        check_json(text, Bounds(values=MOST_VALUES))
    except UntrustedFileError as error:
        raise TooManyValuesError(f"{what} cannot be read: {error}.") from error


def without_mark(start: bytes, name: str) -> bytes:
    """The beginning of a file without the byte order mark of UTF-8.

    Raises:
        ValueError: it has that of UTF-16.
    """
    if start.startswith(_UTF_16):
        raise ValueError(f"The data {name} is UTF-16; save the file as UTF-8.")
    return start.removeprefix(codecs.BOM_UTF8)
