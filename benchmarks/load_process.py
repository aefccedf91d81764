"""Memory, threads and file handles of a process and its children (Linux, /proc)."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

PROC = Path("/proc")
_NUMBERS = re.compile(r"\d+")


def check_proc() -> None:
    """Refuse a machine on which none of this can be read.

    Raises:
        ValueError: it does not run Linux.
    """
    if not sys.platform.startswith("linux"):
        raise ValueError(f"The platform is {sys.platform!r}; allowed: linux (it reads /proc).")


def resources_of(pid: int) -> dict[str, Any]:
    """Counts for a process and all its descendants.

    Returns:
        `rss` (bytes, shared pages counted in each process), `threads`, `handles` (counts), and
        `processes`, and `kinds`: the number of handles by target, names without their numbers.
    """
    rss = threads = handles = processes = 0
    kinds: Counter[str] = Counter()
    for one in family(pid):
        with suppress(OSError):  # it has ended in the meantime
            rss += int((PROC / str(one) / "statm").read_text().split()[1]) * os.sysconf(
                "SC_PAGESIZE"
            )
            threads += len(list((PROC / str(one) / "task").iterdir()))
            names = [_target(path) for path in (PROC / str(one) / "fd").iterdir()]
            handles += len(names)
            kinds.update(names)
            processes += 1
    return {
        "rss": rss,
        "threads": threads,
        "handles": handles,
        "processes": processes,
        "kinds": dict(kinds),
    }


def family(pid: int) -> list[int]:
    """The process and its descendants that still exist."""
    pids = [pid]
    for one in pids:
        with suppress(OSError):
            for task in (PROC / str(one) / "task").iterdir():
                pids += map(int, (task / "children").read_text().split())
    return pids


def _target(path: Path) -> str:
    try:
        return _NUMBERS.sub("#", str(path.readlink()))
    except OSError:
        return "closed meanwhile"


def processor_seconds(pid: int) -> float:
    """Seconds of processor time that a process and its descendants have used."""
    ticks = 0
    for one in family(pid):
        with suppress(OSError, ValueError):
            fields = (PROC / str(one) / "stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
