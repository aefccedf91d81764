"""`python -m sinkscope.benchmarks load`: many clients at once, some of which vanish.

The app runs in its own process, with the bundled model. Clients of the page and of the API
ask, stop, open runs and want maps, and a fifth of them vanish again and again in the middle of a
job. Beside them explorers ask at a steady rate. After a warm-up of the same kind memory, threads
and handles are recorded without clients, and compared with those at the end.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from sinkscope.benchmarks.load_checks import checks, table
from sinkscope.benchmarks.load_process import check_proc
from sinkscope.benchmarks.load_run import LoadRun, LoadSettings, served
from sinkscope.benchmarks.options import AsJson, Switch
from sinkscope.benchmarks.output import check_folder, write_result


def load(
    minutes: Annotated[float, typer.Option(min=0.01, max=1440, help="Of the main part.")] = 10,
    warm_minutes: Annotated[
        float, typer.Option(min=0.01, max=1440, help="Of the warm-up before it.")
    ] = 2,
    clients: Annotated[int, typer.Option(min=1, max=1000, help="Clients; a fifth vanish.")] = 50,
    rate: Annotated[
        float, typer.Option(min=0, max=1000, help="Requests of explorers a second.")
    ] = 20,
    tokens: Annotated[int, typer.Option(min=4, max=256, help="Of an answer at most.")] = 24,
    store_megabytes: Annotated[
        int, typer.Option(min=1, max=100_000, help="The app's memory for runs.")
    ] = 16,
    switch: Switch = 0,
    as_json: AsJson = False,
    output: Annotated[Path | None, typer.Option(help="Folder for load.json and load.txt.")] = None,
) -> None:
    """Many clients for a while: errors, jobs left over, memory, threads, handles, explorers' times.

    The exit code is 1 where a check has failed.
    """
    from sinkscope.cli.common import clear_errors

    with clear_errors():
        check_folder(output)
        check_proc()
        wanted = LoadSettings(
            minutes, warm_minutes, clients, rate, tokens, store_megabytes, switch_ms=switch
        )
        result = measure(wanted)
        write_result(result, table(result), "load", as_json, output)
    if not all(one["met"] for one in result["checks"]):
        raise typer.Exit(1)


def measure(wanted: LoadSettings) -> dict[str, Any]:
    """All of it as plain values; `checks` says what was aimed at. It comes to an end, and gives
    what it has, if the app does not."""
    began, load_before = time.time(), os.getloadavg()[0]
    course = LoadRun(wanted)
    with tempfile.TemporaryFile() as log:
        try:
            with served(wanted, log) as server:
                asyncio.run(course.run(server))
        except Exception as error:  # what was measured until then is worth having
            course.broken = f"{type(error).__name__}: {error}"
        log.seek(0)
        written = log.read().decode(errors="replace")
    result = {
        "processors": os.cpu_count(),
        "load": [load_before, os.getloadavg()[0]],
        "seconds": time.time() - began,
        "settings": vars(wanted),
        **course.found(),
        "log": tracebacks(written),
        "broken": course.broken,
    }
    return {**result, "checks": checks(result)}


def tracebacks(written: str) -> dict[str, int]:
    """The last line of each traceback in a log, with how often it is there."""
    counts: Counter[str] = Counter()
    inside = False
    for line in written.splitlines():
        if line.startswith("Traceback ("):
            inside = True
        elif inside and line and not line[0].isspace():
            counts[line[:200]] += 1
            inside = False
    return dict(counts)
