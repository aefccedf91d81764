"""What no hostile input may do: take long, fill the memory, crash, reveal a path of the server, or
touch a file that is not the app's.

SINKSCOPE_HOSTILE=10000 runs the long form with that many inputs over all parsers and endpoints.
Without it some hundred are tried, with the same seeds.
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
SECONDS = 1.0  # processor time for one file, so that a busy machine does not matter
ANSWER_SECONDS = 5.0  # processor time for one answer (the app runs in the tests' process)
WAITED_SECONDS = 60.0  # wall time; on a busy machine much longer than processor time
BYTES = 1_000_000_000  # above idle


def share(part: float, short: int) -> int:
    """How many inputs a test tries: its share of the long form, or `short`."""
    return max(short, int(LONG * part)) if LONG else short


def memory(what: str = "VmRSS") -> int:
    """Bytes that this process uses (`VmHWM`: the maximum so far)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024
    return 0


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Check that memory inside grows by less than a gigabyte."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is measured from here
    idle = memory()
    yield
    assert memory("VmHWM") - idle < BYTES, f"{(memory('VmHWM') - idle) / 1e6:.0f} MB above idle"


def refused_or_read(read: Any, *folders: Path) -> str:
    """Call a reader: it must return a value, or refuse with one line that names no folder.

    Returns:
        The refusal; "" if it read the input.
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
    """Files that are written, or looked up by a hostile name, outside some folders.

    Python reports each file that it opens to an audit hook. Hooks cannot be removed, so this one
    does nothing outside the `with`.
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
