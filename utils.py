"""Small helpers for everything: where files go, atomic writes, hashing, plain values, counts."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from platformdirs import user_cache_path

PROJECT = Path(__file__).resolve().parent
"""The folder with the project's files: a clone's root, or the installed package."""


def run_folder(name: str) -> Path:
    """Where runs leave their files.

    Args:
        name: `cache` or `outputs`.

    Returns:
        The folder of this name in the clone, where SinkScope runs from one; else a folder of the
        user's own (`~/.cache/sinkscope/NAME` on Linux), never one next to the installed package.
        It need not exist.
    """
    if not (PROJECT / "src" / "sinkscope").is_dir():
        return user_cache_path("sinkscope", appauthor=False) / name
    return Path(name) if Path.cwd() == PROJECT else PROJECT / name


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part, even after a
    kill or power cut.

    The bytes go to a new file in the same folder, are flushed to the disk, and then take the name
    `path`.

    Args:
        path: the file to write; its folder must exist.
        write: called once with the open binary file.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full; `path` is then as it
            was.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o666 & ~_umask())  # mkstemp's files are private; give it a normal file's mode
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_bytes_atomically(path: Path, data: bytes) -> None:
    """`write_atomically` of bytes that are already in memory."""
    write_atomically(path, lambda file: file.write(data))


def _umask() -> int:
    """The process's umask. Python can only read it by changing it, which would expose files that
    other threads create meanwhile; Linux also has it in /proc."""
    with suppress(OSError, ValueError), Path("/proc/self/status").open(errors="replace") as file:
        for line in file:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def number_of(count: int, one: str, many: str | None = None) -> str:
    """`1 sample`, `5 samples`; with `many` any other form (`"box is"`, `"boxes are"`)."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def index_ranges(indices: Iterable[int], dash: str = "-") -> str:
    """`0-3, 7` of 0, 1, 2, 3, 7, in whatever order they come."""
    runs: list[list[int]] = []
    for index in sorted(set(indices)):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ", ".join(str(a) if a == b else f"{a}{dash}{b}" for a, b in runs)


def none_usable(count: int, noun: str, of: str = "") -> str:
    """`The only sample cannot be used`, `None of the 5 samples can be used`."""
    if count == 1:
        return f"The only {noun}{of} cannot be used"
    return f"None of the {count} {noun}s{of} can be used"


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256 digest."""
    return hashlib.sha256(data).hexdigest()


def plain_values(value: Any, where: str = "value") -> Any:
    """A value as JSON gives it back: mappings as dictionaries with text keys, sequences as lists.

    Args:
        value: of dictionaries, lists, tuples, texts, numbers, booleans and None. Single numbers of
            NumPy and torch become Python's.
        where: its name in errors.

    Raises:
        ValueError: it holds anything else, or a number that JSON lacks; the text says where.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value!r}; allowed: finite numbers.")
        return float(value)  # NumPy's float64 is also a float, but not what JSON returns
    if isinstance(value, Mapping):
        return {str(key): plain_values(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        return plain_values(value.item(), where)
    raise ValueError(
        f"{where} is a {type(value).__name__}; allowed: texts, numbers, booleans, lists and "
        "dictionaries."
    )
