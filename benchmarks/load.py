"""`python -m sinkscope.benchmarks load`: many clients at once, some of which disconnect.

The app runs in its own process, with the bundled model. Clients of the page and of the API
ask, stop, open runs and request maps, and a fifth of them repeatedly disconnect in the middle of a
job. In addition, explorers send requests at a steady rate. After a warm-up of the same kind,
memory, threads and handles are recorded without clients, and compared with those at the end.
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
    clients: Annotated[int, typer.Option(min=1, max=1000, help="A fifth of them disconnect.")] = 50,
    rate: Annotated[
        float, typer.Option(min=0, max=1000, help="Explorers' requests per second.")
    ] = 20,
    tokens: Annotated[int, typer.Option(min=4, max=256, help="Maximum length of an answer.")] = 24,
    store_megabytes: Annotated[
        int, typer.Option(min=1, max=100_000, help="The app's memory for runs.")
    ] = 16,
    switch: Switch = 0,
    as_json: AsJson = False,
    output: Annotated[Path | None, typer.Option(help="Folder for load.json and load.txt.")] = None,
) -> None:
    """Many clients for some minutes: errors, remaining jobs, memory, threads, handles, explorers'
    times.

    The exit code is 1 if a check has failed.
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
    """All measurements as plain values; `checks` has the targets. It ends and returns what it has
    even if the app does not end."""
    began, load_before = time.time(), os.getloadavg()[0]
    course = LoadRun(wanted)
    with tempfile.TemporaryFile() as log:
        try:
            with served(wanted, log) as server:
                asyncio.run(course.run(server))
        except Exception as error:  # keep what was measured until then
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
    """The last line of each traceback in a log, with its number of occurrences."""
    counts: Counter[str] = Counter()
    inside = False
    for line in written.splitlines():
        if line.startswith("Traceback ("):
            inside = True
        elif inside and line and not line[0].isspace():
            counts[line[:200]] += 1
            inside = False
    return dict(counts)
