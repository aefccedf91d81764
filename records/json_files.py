"""Objects of a JSON file of any size, one after the other: JSON lines, an array, an object
that holds the array, or objects one after the other.

Files of JSON lines are often called .json, and arrays .jsonl, so the file's beginning decides.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from sinkscope.records.text import (
    LONGEST,
    Damaged,
    TooManyValuesError,
    check_values,
    lines_or_damage,
    without_mark,
)
from sinkscope.untrusted import open_regular

# Under one of these an object holds the list of all records, as DocVQA and TextVQA do.
HOLDERS = (
    "data",
    "samples",
    "records",
    "annotations",
    "questions",
    "rows",
    "items",
    "examples",
    "train",
    "validation",
    "test",
)
_HEAD = 1 << 16
_CHUNK = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")
_CUT_OFF = 16  # characters; a value cut by the end of a buffer fails within this distance from it


def json_rows(path: Path, name: str, damaged: bool = False) -> Iterator[tuple[int, Any]]:
    """Number, from 1, and value of each record: the line's number if it has its own line.

    Args:
        path: the file.
        name: its name in messages.
        damaged: go on after a line that is not JSON, with a `Damaged` in its place; and put one at
            the end of a damaged list, because the start of its next entry is unknown.

    Raises:
        ValueError: the file cannot be read, or is not JSON; the text says where.
    """
    if json_unit(path, name) == "line":
        for number, value in _of_lines(path, name):
            if isinstance(value, Damaged) and not damaged:
                raise ValueError(value.reason)
            yield number, value
        return
    number = 0
    try:
        with open_regular(path) as file:
            for number, value in _of_values(_Values(file, name)):
                yield number, value
    except OSError as error:
        raise ValueError(f"The data {name} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        if not damaged:
            raise
        yield number + 1, Damaged(f"{error} What follows it cannot be read.")


def json_unit(path: Path, name: str) -> str:
    """The unit of a record in the file: a line, or an entry of a list.

    Raises:
        ValueError: the file cannot be read, or begins with neither an object nor a list.
    """
    try:
        with open_regular(path) as file:
            head = without_mark(file.read(_HEAD), name)
    except OSError as error:
        raise ValueError(f"The data {name} cannot be read: {error.strerror or error}.") from error
    return "line" if _has_lines(head, name) else "entry"


def _has_lines(head: bytes, name: str) -> bool:
    start = head.lstrip()
    if start[:1] == b"[":
        return False
    if Path(name).suffix.lower() in (".jsonl", ".ndjson"):
        return True
    if start and start[:1] != b"{":
        raise ValueError(f"The data {name} is not JSON: it begins with {start[:20]!r}.")
    first, line_break, rest = start.partition(b"\n")
    if line_break and rest.strip():
        return _is_object(first)
    return _holder(start.decode(errors="replace")) is None and len(head) == _HEAD


def _of_lines(path: Path, name: str) -> Iterator[tuple[int, Any]]:
    """With `Damaged` in place of what is not JSON."""
    parse = json.JSONDecoder(object_pairs_hook=_object).decode
    for number, line in lines_or_damage(path, name):
        where = f"Line {number} of {name}"
        if isinstance(line, Damaged):
            yield number, line
        elif line.strip():
            try:
                check_values(line, where)
                yield number, parse(line)
            except TooManyValuesError as error:
                yield number, Damaged(str(error))
            except (ValueError, RecursionError) as error:
                yield number, Damaged(f"{where} is not JSON: {_why(error)}.")


def _of_values(values: _Values) -> Iterator[tuple[int, Any]]:
    """The entries of an array, of the array that an object holds, or objects in sequence."""
    first = values.peek()
    if first == "[":
        yield from enumerate(_entries(values), 1)
        values.end()
        return
    if first == "{" and _holder(values.ahead()) is not None:
        yield from enumerate(_held(values), 1)
        values.end()
        return
    number = 0
    while values.peek():
        number += 1
        yield number, values.value(f"Entry {number}")


def _entries(values: _Values, before: str = "") -> Iterator[Any]:
    values.expect("[", f"The list{before}")
    number = 0
    if values.peek() == "]":
        values.expect("]", "The list")
        return
    while True:
        number += 1
        yield values.value(f"Entry {number}")
        if values.peek() != ",":
            break
        values.expect(",", f"Entry {number}")
    values.expect("]", f"The list, after entry {number},")


def _held(values: _Values) -> Iterator[Any]:
    """The records inside an object; its other members are skipped."""
    values.expect("{", "The object")
    while True:
        key = values.value("A key")
        values.expect(":", f"The key {key!r}")
        if key in HOLDERS and values.peek() == "[":
            yield from _entries(values, f" under {key}")
        else:
            values.value(f"What stands under {key!r}")
        if values.peek() != ",":
            break
        values.expect(",", "The object")
    values.expect("}", "The object")


class _Values:
    """JSON values of a stream: a buffer of some text, from which one value at a time is read."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file, self._name = file, name
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._scan = json.JSONDecoder(object_pairs_hook=_object).raw_decode
        self._text, self._at, self._over = "", 0, False
        self._read = 0  # bytes
        self._more(max(_CHUNK, 4))  # a byte order mark is complete

    def ahead(self) -> str:
        """The next text, as far as it decides the kind of the file."""
        while not self._over and len(self._text) - self._at < _HEAD:
            self._more(_CHUNK)
        return self._text[self._at : self._at + _HEAD]

    def peek(self) -> str:
        """The next character that is not a space; empty at the end."""
        while True:
            self._at = _after_space(self._text, self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if self._over:
                return ""
            self._more(_CHUNK)

    def expect(self, sign: str, what: str) -> None:
        if (character := self.peek()) != sign:
            wrong = f"{character!r} stands" if character else "the file ends"
            raise ValueError(f"{what} of {self._name} is not JSON: {wrong} where {sign!r} should.")
        self._at += 1

    def value(self, what: str) -> Any:
        """The next value, however long it is up to the limit."""
        self.peek()
        size = _CHUNK
        while True:
            try:
                value, end = self._scan(self._text, self._at)
            except json.JSONDecodeError as error:
                reached = error.pos >= len(self._text.rstrip()) - _CUT_OFF
                cut = reached or "Unterminated" in error.msg
                if self._over or not cut:
                    raise ValueError(f"{what} of {self._name} is not JSON: {error.msg}.") from error
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{what} of {self._name} is not JSON: {_why(error)}.") from error
            else:
                check_values(self._text[self._at : end], f"{what} of {self._name}")
                if end < len(self._text) or self._over:  # a number may go on after the buffer
                    self._at = end
                    return value
            if len(self._text) - self._at > LONGEST:
                raise ValueError(
                    f"{what} of {self._name} is longer than {LONGEST / 1e6:.0f} MB, the most "
                    "allowed."
                )
            check_values(self._text, f"{what} of {self._name}")
            self._more(size)
            size *= 2  # a value is parsed again each time: a few times, however long it is

    def end(self) -> None:
        if character := self.peek():
            raise ValueError(f"The data {self._name} continues with {character!r} after its end.")

    def _more(self, size: int) -> None:
        data = self._file.read(size)
        if not self._read:
            data = without_mark(data, self._name)
        self._read += len(data)
        try:
            text = self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"The data {self._name} is not UTF-8 text, about {self._read / 1e6:.1f} MB from "
                "its beginning; save the file as UTF-8."
            ) from error
        self._text, self._at = self._text[self._at :] + text, 0
        self._over = not data


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise ValueError(f"an object has the key {twice[:40]!r} twice")
    return mapping


def _why(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _after_space(text: str, at: int) -> int:
    """The index of the next character that is not a space."""
    found = _SPACE.match(text, at)
    assert found is not None  # no space at all matches too
    return found.end()


def _holder(start: str) -> str | None:
    """The key under which an object that begins so holds a list of objects; None for a record."""
    scan = json.JSONDecoder().raw_decode
    at = _after_space(start, 1)
    try:
        while start[at : at + 1] == '"':
            key, at = scan(start, at)
            at = _after_space(start, at)
            if start[at : at + 1] != ":":
                return None
            at = _after_space(start, at + 1)
            if key in HOLDERS and re.match(r"\[\s*\{", start[at:]):
                return str(key)
            at = _after_space(start, scan(start, at)[1])
            if start[at : at + 1] != ",":
                return None
            at = _after_space(start, at + 1)
    except (ValueError, RecursionError):
        return None
    return None
