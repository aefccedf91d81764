"""What no hostile input may do: take long, fill the memory, crash, name a place of the machine, or
touch a file that is not the app's.

SINKSCOPE_HOSTILE=10000 is the long form: so many inputs over all parsers and endpoints. Without it
some hundred are tried, by the same seeds.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LONG = int(os.environ.get("SINKSCOPE_HOSTILE", "0"))
SECONDS = 1.0  # of the processor, for one file; a busy machine changes nothing about it
ANSWER_SECONDS = 5.0  # of the processor (the app runs in the tests' process), for one answer
WAITED_SECONDS = 60.0  # on the clock: on a busy machine seconds pass in which nothing computes
BYTES = 1_000_000_000  # above idle


def share(part: float, short: int) -> int:
    """How many inputs a test tries: its part of the long form, or `short`."""
    return max(short, int(LONG * part)) if LONG else short


def memory(what: str = "VmRSS") -> int:
    """Bytes that this process takes (`VmHWM`: has taken at most)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024
    return 0


@contextmanager
def bounded_memory() -> Iterator[None]:
    """The most that is taken inside is not a gigabyte above what was taken before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    idle = memory()
    yield
    assert memory("VmHWM") - idle < BYTES, f"{(memory('VmHWM') - idle) / 1e6:.0f} MB above idle"


def refused_or_read(read: Any, *folders: Path) -> str:
    """Call a reader: it gives a value, or refuses with one line that names no folder.

    Returns:
        What it said; "" where it read.
    """
    begun = time.process_time()
    try:
        read()
        said = ""
    except ValueError as error:
        said = str(error)
        assert said and "\n" not in said and len(said) < 2000, said[:400]
        assert not [folder for folder in folders if str(folder) in said], said
        assert not isinstance(error, UnicodeError), said
    took = time.process_time() - begun
    assert took < SECONDS, f"{took:.1f} s of the processor: {said[:200]}"
    return said


class Touched:
    """Files that are written, or looked for by a hostile name, outside of some folders.

    Python tells of each file that it opens (an audit hook, which cannot be taken away again: this
    one is silent outside of the `with`).
    """

    def __init__(self, *own: Path) -> None:
        self._own = (
            *(str(folder.resolve()) for folder in own),
            "/dev/null",
            "/proc/self/clear_refs",
        )
        self._watching = False
        self.written: list[str] = []
        self.read: list[str] = []
        sys.addaudithook(self._hook)

    def __enter__(self) -> Touched:
        self._watching = True
        return self

    def __exit__(self, *error: object) -> None:
        self._watching = False

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._watching or event not in _EVENTS:
            return
        path = arguments[0]
        if event in ("os.remove", "os.rmdir") and arguments[-1] != -1:
            return  # a name in an open folder: of shutil.rmtree, which told where
        if not isinstance(path, str | bytes | os.PathLike):
            return
        name = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - a hook must not touch the disk
        if name.startswith(self._own) or name.endswith(".pyc") or ".pyc." in name:
            return
        writes = event != "open" or bool(
            (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        (self.written if writes else self.read).append(name)


_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_EVENTS = {"open", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.link"}
