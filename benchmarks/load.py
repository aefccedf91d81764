"""`python -m sinkscope.benchmarks load`: many clients at once, some of which vanish.

The app runs in a process of its own, with the bundled model. Clients of the page and of the API
ask, stop, open runs and want maps, and a fifth of them vanish again and again in the middle of a
job. Beside them explorers ask at a steady rate. After a warm-up of the same kind memory, threads
and handles are noted with nobody there, and at the end they are compared with that.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from sinkscope.benchmarks.load_checks import checks, table
from sinkscope.benchmarks.load_clients import Crowd, Seen
from sinkscope.benchmarks.load_process import check_proc, held, processor_seconds
from sinkscope.benchmarks.load_wire import Browser
from sinkscope.benchmarks.output import check_folder, give
from sinkscope.utils import PROJECT

LOOK_SECONDS = 0.1  # between two looks at whose jobs are under way
PATIENCE_SECONDS = 120.0  # for what is under way when the time is over
START_SECONDS = 300


@dataclass(frozen=True)
class LoadSettings:
    """What is asked of the app.

    Attributes:
        minutes: of the main part.
        warm_minutes: of the same before it.
        clients: who ask, stop, open and vanish.
        rate: requests of explorers a second.
        tokens: of an answer at most.
        store_megabytes: the app's memory for runs, which the warm-up should fill.
        queue_size: how many jobs may wait in the app.
        settle_seconds: with nobody there before memory, threads and handles are counted; idle
            threads of the server leave after 10.
    """

    minutes: float = 10.0
    warm_minutes: float = 2.0
    clients: int = 50
    rate: float = 20.0
    tokens: int = 24
    store_megabytes: int = 32
    queue_size: int = 16
    settle_seconds: float = 25.0


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
    ] = 32,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of the table.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Folder for load.json and load.txt.")] = None,
) -> None:
    """Many clients for a while: errors, jobs left over, memory, threads, handles, explorers' times.

    The exit code is 1 where a check has failed.
    """
    from sinkscope.cli.common import mistakes_said_plainly

    with mistakes_said_plainly():
        check_folder(output)
        check_proc()
        wanted = LoadSettings(minutes, warm_minutes, clients, rate, tokens, store_megabytes)
        result = measure(wanted)
        give(result, table(result), "load", as_json, output)
    if not all(one["met"] for one in result["checks"]):
        raise typer.Exit(1)


def measure(wanted: LoadSettings) -> dict[str, Any]:
    """All of it as plain values; `checks` says what was aimed at. It comes to an end, and gives
    what it has, if the app does not."""
    began, load_before = time.time(), os.getloadavg()[0]
    with _server(wanted) as server:
        course = _Course(wanted, server)
        try:
            asyncio.run(course.run())
        except Exception as error:  # what was measured until then is worth having
            course.broken = f"{type(error).__name__}: {error}"
        code = server.process.poll()
    result = {
        "processors": os.cpu_count(),
        "threads": server.about.get("threads"),
        "load": [load_before, os.getloadavg()[0]],
        "seconds": time.time() - began,
        "settings": vars(wanted),
        **course.found(),
        "server_ended": code,
        "broken": course.broken,
    }
    return {**result, "checks": checks(result)}


@dataclass
class _Server:
    process: subprocess.Popen[str]
    about: dict[str, Any]

    def state(self) -> dict[str, Any]:
        """Whose jobs are under way, and which threads there are.

        Raises:
            RuntimeError: the server has ended.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write("state\n")
            self.process.stdin.flush()
            return dict(json.loads(self.process.stdout.readline()))
        except (OSError, ValueError) as error:
            raise RuntimeError("the app has ended") from error


@contextmanager
def _server(wanted: LoadSettings) -> Iterator[_Server]:
    command = [sys.executable, "-m", "sinkscope.benchmarks.load_server"]
    command += [str(wanted.store_megabytes), str(wanted.queue_size)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        late = threading.Timer(START_SECONDS, process.kill)
        late.start()
        try:
            line = process.stdout.readline()
            late.cancel()
            if not line:
                raise ValueError("The app did not start; its own output says why.")
            yield _Server(process, json.loads(line))
        finally:
            late.cancel()
            process.stdin.close()  # it ends by itself
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


@dataclass
class _Course:
    """The parts in their order, and what was found in them."""

    wanted: LoadSettings
    server: _Server
    warm: Seen = field(default_factory=Seen)
    main: Seen = field(default_factory=Seen)
    last_seen: dict[str, float] = field(default_factory=dict)  # owner: first look without its job
    owners: set[str] = field(default_factory=set)
    looks: list[tuple[float, bool]] = field(default_factory=list)  # when, whether a job ran
    lags: list[float] = field(default_factory=list)  # of this process' own event loop
    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    unfinished: int = 0
    broken: str = ""

    async def run(self) -> None:
        url, loop = str(self.server.about["url"]), asyncio.get_running_loop()
        first = Browser(url)
        page = await first.read_page()
        images = tuple(sorted((PROJECT / "demo" / "examples").glob("*.png")))
        looking = loop.create_task(self._look())
        try:
            for name, seen, minutes in (
                ("warm", self.warm, self.wanted.warm_minutes),
                ("end", self.main, self.wanted.minutes),
            ):
                self.looks, self.lags = [], []
                crowd = Crowd(
                    url,
                    page,
                    images,
                    self.wanted.clients,
                    self.wanted.rate,
                    60 * minutes,
                    self.wanted.tokens,
                )
                before = self._processor()
                asking = loop.create_task(crowd.ask(seen, len(name)))
                await asyncio.wait(
                    {asking, looking},
                    timeout=60 * minutes + PATIENCE_SECONDS,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                self.spent = {k: v - before[k] for k, v in self._processor().items()}
                if not asking.done():
                    self.unfinished += sum(not t.done() for t in asyncio.all_tasks()) - 2
                    asking.cancel()
                    await asyncio.wait({asking}, timeout=30)
                if looking.done():
                    looking.result()  # raises why
                await asking
                await self._settle(first)
                self.states[name] = {
                    **held(int(self.server.about["pid"])),
                    **await asyncio.to_thread(self.server.state),
                }
        finally:
            looking.cancel()
            await first.close()

    async def _settle(self, browser: Browser) -> None:
        """Nobody there but one who asks for little: idle threads leave when others are used."""
        until = time.monotonic() + PATIENCE_SECONDS
        while self.owners and time.monotonic() < until:
            await asyncio.sleep(LOOK_SECONDS)
        until = time.monotonic() + self.wanted.settle_seconds
        while time.monotonic() < until:
            await browser.ask("open_run", {"run": browser.page.example})
            await asyncio.sleep(1)

    async def _look(self) -> None:
        """Note again and again whose jobs are under way, and how late this process is itself."""
        while True:
            due = time.monotonic() + LOOK_SECONDS
            owners = set((await asyncio.to_thread(self.server.state))["owners"])
            now = time.monotonic()
            self.last_seen.update(dict.fromkeys(self.owners - owners, now))
            for owner in owners:
                self.last_seen.pop(owner, None)
            self.owners = owners
            self.looks.append((now, bool(owners)))
            due = max(due, now)
            await asyncio.sleep(due - now)
            self.lags.append(time.monotonic() - due)

    def _processor(self) -> dict[str, float]:
        own = time.process_time()
        return {
            "app": processor_seconds(int(self.server.about["pid"])),
            "clients": own,
            "seconds": time.monotonic(),
        }

    def found(self) -> dict[str, Any]:
        """All that was seen, in plain values."""
        gone = {**self.warm.vanished, **self.main.vanished}
        now = time.monotonic()
        after = [
            (now if owner in self.owners else self.last_seen.get(owner, at)) - at
            for owner, at in gone.items()
        ]
        looks = [at for at, _ in self.looks]
        return {
            "jobs": dict(self.main.jobs),
            "warm_jobs": dict(self.warm.jobs),
            "errors": dict(self.warm.errors + self.main.errors),
            "vanished": sorted(max(0.0, one) for one in after),
            "under_way": len(self.owners),
            "unfinished": self.unfinished,
            "asked": round(60 * self.wanted.minutes * self.wanted.rate),
            "explorers": {kind: spread(times) for kind, times in self.main.times.items()},
            "job_ran": sum(ran for _, ran in self.looks) / max(1, len(self.looks)),
            "look_gap": spread([b - a for a, b in pairwise(looks)]),
            "lag": spread(self.lags),
            "processor": self.spent,
            "states": self.states,
        }


def spread(times: list[float]) -> dict[str, float]:
    """Median, 95th percentile and largest of some seconds, and how many there are."""
    ordered = sorted(times)
    if not ordered:
        return {"count": 0}
    at = [ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in (0.5, 0.95)]
    return {"median": at[0], "p95": at[1], "most": ordered[-1], "count": len(ordered)}
