"""Reading untrusted files, so that none of them can hang, fill the memory or recurse.

A regular file only (a pipe or a device would wait forever), no more bytes than allowed, and no text
with more levels or values than allowed, checked before parsing. An error is one sentence with only
the file's name, because users of the page see it.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

T = TypeVar("T")

DEEPEST = 64  # levels of JSON and TOML; none of ours has more than a dozen
TOML_BYTES = 256_000
TOML_DOTS = 100  # between two signs of a TOML file: reading a key is quadratic in its parts
_MARKS = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{]+|[\]}]+', re.DOTALL)
_TOML_PARTS = re.compile(r"[=\n,{]")


@dataclass(frozen=True)
class Bounds:
    """Limits of a JSON file that is read as a whole.

    Attributes:
        bytes: of the file.
        values: in it; four million take some hundred megabytes.
        lists: lists and objects among them, which take most of the time.
        levels: of lists in lists; no file of ours has more than a dozen.
        infinite: allow NaN, Infinity and numbers beyond all floats.
    """

    bytes: int = 32_000_000
    values: int = 4_000_000
    lists: int = 500_000
    levels: int = DEEPEST
    infinite: bool = False


USUAL = Bounds()
INFINITE = Bounds(infinite=True)
DATASET = Bounds(bytes=2_000_000_000, values=400_000_000, lists=100_000_000)
"""For COCO's files, half a gigabyte of annotations, which only a command line names."""


class UntrustedFileError(ValueError):
    """The error of a file or a text, as the end of a sentence (`it ...`)."""


def open_regular(path: Path | str, buffering: int = -1) -> IO[bytes]:
    """Open a regular file for reading, but nothing that could block: no pipe, device or socket.

    A file of size 0 counts as empty, whatever reading would give: files of /proc are generated on
    reading, and some block.

    Raises:
        OSError: there is none, it may not be read, or it is not a regular file.
    """
    return open(path, "rb", buffering=buffering, opener=_regular)


def _regular(path: str, flags: int) -> int:
    _check_regular(Path(path).stat())  # before opening, which already affects some devices
    handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    try:
        about = os.fstat(handle)
        _check_regular(about)
        if about.st_size:
            return handle
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return os.open(os.devnull, flags)


def _check_regular(about: os.stat_result) -> None:
    if not stat.S_ISREG(about.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")


def read_bytes(path: Path, most: int, what: str) -> bytes:
    """All bytes of a regular file.

    Args:
        path: the file.
        most: maximum number of bytes.
        what: the file in an error, before its name: `The settings file`.

    Raises:
        ValueError: it cannot be read, or has more.
    """
    try:
        with open_regular(path) as file:
            data = file.read(most + 1)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise ValueError(f"{what} {path.name} cannot be read: {why}.") from error
    except ValueError as error:  # a NUL in the path
        raise ValueError(f"{what} has a name that is not a path.") from error
    if len(data) > most:
        raise ValueError(
            f"{what} {path.name} is damaged, because it has more than {most:,} bytes, "
            "the most allowed."
        )
    return data


def read_json(path: Path, what: str, bounds: Bounds = USUAL) -> Any:
    """The value in a JSON file (`parse_json`).

    Args:
        path: the file.
        what: the file in an error, before its name.
        bounds: what it may have.

    Raises:
        ValueError: it cannot be read, is beyond its bounds, or is not JSON.
    """
    data = read_bytes(path, bounds.bytes, what)
    try:
        return parse_json(data, bounds)
    except UntrustedFileError as error:
        raise ValueError(f"{what} {path.name} is damaged, because {error}.") from error


def parse_json(text: str | bytes, bounds: Bounds = USUAL) -> Any:
    """The value of a JSON text.

    Args:
        text: UTF-8, where it is bytes.
        bounds: its limits; the caller limits the bytes.

    Raises:
        UntrustedFileError: it is not JSON, or beyond its bounds; the text is the end of a sentence.
    """
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        check_json(decoded, bounds)
        if bounds.infinite:
            return json.loads(decoded)
        return json.loads(decoded, parse_constant=_no_number, parse_float=_finite)
    except UntrustedFileError:
        raise
    except UnicodeDecodeError as error:
        raise UntrustedFileError(
            f"it is not JSON: not UTF-8 text (its byte {error.start})"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UntrustedFileError(f"it is not JSON: {_why(error)}") from error


def check_json(text: str, bounds: Bounds = USUAL) -> None:
    """Refuse a JSON text before parsing it, if that would take too much.

    Raises:
        UntrustedFileError: it has more values or levels; the text is the end of a sentence.
    """
    opened = text.count("[") + text.count("{")
    if opened > bounds.lists:
        raise UntrustedFileError(f"it has more than {bounds.lists} lists, the most allowed")
    if opened + text.count(",") > bounds.values:
        raise UntrustedFileError(f"it has more than {bounds.values} values, the most allowed")
    if opened <= bounds.levels:
        return
    depth = 0
    for match in _MARKS.finditer(text):
        first = text[match.start()]
        if first == '"':
            continue
        length = match.end() - match.start()
        depth += length if first in "[{" else -length
        if depth > bounds.levels:
            raise UntrustedFileError(f"it is nested too deeply; allowed: {bounds.levels} levels")


def _why(error: Exception) -> str:
    message = " ".join(str(error).split())[:200]
    return "a number of too many digits" if "set_int_max_str_digits" in message else message


def _finite(word: str) -> float:
    value = float(word)
    if not math.isfinite(value):
        _no_number(word)
    return value


def _no_number(word: str) -> Any:
    raise UntrustedFileError(f"it has {word[:40]}, which is not a number")


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The tables of a TOML file.

    Args:
        path: the file.
        what: the file in an error, before its name.

    Raises:
        ValueError: it cannot be read, is too large, too deep, or not TOML.
    """
    data = read_bytes(path, TOML_BYTES, what)
    try:
        return parse_toml(data)
    except UntrustedFileError as error:
        raise ValueError(f"{what} {path.name} is damaged, because {error}.") from error


def parse_toml(data: bytes) -> dict[str, Any]:
    """The tables of a TOML text.

    Raises:
        UntrustedFileError: it is not TOML, is nested too deeply, or has an invalid number; the
            text is the end of a sentence.
    """
    try:
        text = data.decode()
        if any(part.count(".") > TOML_DOTS for part in _TOML_PARTS.split(text)):
            raise UntrustedFileError(f"it has a key of more than {TOML_DOTS} parts")
        values = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise UntrustedFileError(
            f"it is not valid TOML: not UTF-8 text (its byte {error.start})"
        ) from error
    except RecursionError as error:
        raise UntrustedFileError(f"it is nested too deeply; allowed: {DEEPEST} levels") from error
    except UntrustedFileError:
        raise
    except ValueError as error:
        raise UntrustedFileError(f"it is not valid TOML: {_why(error)}") from error
    for value, level in walk(values):
        if level > DEEPEST:
            raise UntrustedFileError(f"it is nested too deeply; allowed: {DEEPEST} levels")
        if isinstance(value, float) and not math.isfinite(value):
            raise UntrustedFileError(f"it has {value}, which is not a number")
    return values


def cut(text: str, most: int = 300) -> str:
    """A text out of a file, or an error that quotes one, short enough for a sentence."""
    return text if len(text) <= most else f"{text[:most]}..."


def dataclass_from(kind: type[T], values: Any) -> T:
    """A dataclass of ours, with the dataclasses in it, made of plain values as JSON has them.

    Types are strict (no text is a number), and keys that it does not know are refused.

    Raises:
        ValueError: naming the first value that is wrong, and what is allowed.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError  # imported in 0.3 s

    strict = ConfigDict(extra="forbid", strict=True)  # a tuple passes it on to its items
    # A type that is known at run time.
    adapter: TypeAdapter[Any] = TypeAdapter(tuple[kind], config=strict)  # type: ignore[valid-type]
    try:
        (instance,) = adapter.validate_json(json.dumps([values]))
    except ValidationError as error:
        raise ValueError(_wrong(error.errors(include_url=False)[0])) from error
    result: T = instance
    return result


def _wrong(error: Mapping[str, Any]) -> str:
    """One of pydantic's errors in our words."""
    at = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"][1:])
    name = cut(at.lstrip("."), 100) or "it"
    if error["type"] == "missing":
        return f"{name} is missing"
    if error["type"] == "unexpected_keyword_argument":
        return f"{name} is unknown"
    if error["type"] == "value_error":
        return f"{name}: {error['ctx']['error']}"
    allowed = str(error["msg"]).removeprefix("Input should be ")
    return f"{name} is {cut(repr(error['input']), 60)}; allowed: {allowed}"


def walk(value: Any) -> Iterator[tuple[Any, int]]:
    """Every value in lists and mappings with its level, from 0; without recursion."""
    waiting: list[tuple[Any, int]] = [(value, 0)]
    while waiting:
        one, level = waiting.pop()
        yield one, level
        if isinstance(one, dict):
            waiting.extend((item, level + 1) for item in one.values())
        elif isinstance(one, list):
            waiting.extend((item, level + 1) for item in one)
