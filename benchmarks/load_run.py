"""The course of `benchmarks load`: the app's process, warm-up, main part, and the measurements."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import IO, Any

from sinkscope.benchmarks.load_clients import Crowd, Seen, maps_of
from sinkscope.benchmarks.load_process import processor_seconds, resources_of
from sinkscope.benchmarks.load_protocol import Browser, FailedError, RefusedError
from sinkscope.utils import PROJECT

LOOK_SECONDS = 0.1  # between two samples of the running jobs
PATIENCE_SECONDS = 120.0  # for what still runs when the time is over
START_SECONDS = 300.0  # in which the app must have started
SILENT_SECONDS = 60.0  # after which an app that does not answer is ended
TRIES = 3  # to start the app: on a busy machine Gradio may give up


@dataclass(frozen=True)
class LoadSettings:
    """The load, and the app's settings.

    Attributes:
        minutes: length of the main part.
        warm_minutes: length of the warm-up.
        clients: number of clients that ask, stop, open and disconnect.
        rate: requests of explorers per second.
        tokens: maximum length of an answer.
        store_megabytes: the app's memory for runs, which the warm-up should fill.
        queue_size: how many jobs may wait in the app.
        switch_ms: the interpreter's switch interval in the app; 0: the app's own.
        settle_seconds: without clients, before memory, threads and handles are counted; idle
            threads of the server end after 10.
    """

    minutes: float = 10.0
    warm_minutes: float = 2.0
    clients: int = 50
    rate: float = 20.0
    tokens: int = 24
    store_megabytes: int = 16
    queue_size: int = 16
    switch_ms: float = 0.0
    settle_seconds: float = 25.0


class Server:
    """The app's process.

    Attributes:
        about: `url`, `pid`, and `threads` of torch.
    """

    def __init__(self, process: subprocess.Popen[str], about: dict[str, Any]) -> None:
        self.process, self.about = process, about
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        return int(self.about["pid"])

    async def state(self) -> dict[str, Any]:
        """`owners` of running jobs, `threads_by_name`, and `stored` bytes of runs.

        Raises:
            RuntimeError: it has ended, or did not answer and was ended.
        """
        try:
            return await asyncio.wait_for(asyncio.to_thread(self._asked), SILENT_SECONDS)
        except TimeoutError as error:
            self.process.kill()
            raise RuntimeError(f"the app did not answer for {SILENT_SECONDS:g} seconds") from error
        except (OSError, ValueError) as error:
            raise RuntimeError("the app has ended") from error

    def _asked(self) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        with self._lock:
            self.process.stdin.write("state\n")
            self.process.stdin.flush()
            return dict(json.loads(self.process.stdout.readline()))


@contextmanager
def served(wanted: LoadSettings, log: IO[bytes]) -> Iterator[Server]:
    """The app in its own process, which ends with the `with`; its output goes to `log`.

    Raises:
        RuntimeError: it does not start.
    """
    command = [sys.executable, "-m", "sinkscope.benchmarks.load_server"]
    command += [str(wanted.store_megabytes), str(wanted.queue_size), str(wanted.switch_ms)]
    pipe, line = subprocess.PIPE, ""
    for _ in range(TRIES):
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True)
        assert process.stdin is not None and process.stdout is not None
        late = threading.Timer(START_SECONDS, process.kill)
        late.start()
        try:
            line = process.stdout.readline()
            late.cancel()
            if line:
                yield Server(process, json.loads(line))
                return
        finally:
            late.cancel()
            with suppress(OSError):  # if it has ended already
                process.stdin.close()  # it ends by itself
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
            process.stdout.close()
        log.truncate(0)
    raise RuntimeError(f"the app did not start, {TRIES} times")


@dataclass
class LoadRun:
    """The parts in their order, and their measurements.

    Attributes:
        left: owner, and the time of the first sample in which none of its jobs was running.
        owners: of the jobs that were running at the last sample.
        noting: whether a part is running, not what comes before or after it.
        looks: the samples: when, and whether a job was running.
        lags: seconds by which this process's event loop was late.
        states: memory, threads and handles after the warm-up (`warm`) and at the end (`end`).
        spent: processor seconds during the main part.
    """

    wanted: LoadSettings
    warm: Seen = field(default_factory=Seen)
    main: Seen = field(default_factory=Seen)
    left: dict[str, float] = field(default_factory=dict)
    owners: set[str] = field(default_factory=set)
    looks: list[tuple[float, bool]] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    noting: bool = False
    unfinished: int = 0
    broken: str = ""

    async def run(self, server: Server) -> None:
        """Warm-up and main part, each followed by a count.

        Raises:
            RuntimeError: the app has ended.
        """
        self.about = server.about
        first = Browser(str(server.about["url"]))
        looking = asyncio.ensure_future(self._look(server))
        try:
            await first.read_page()
            for name, seen, minutes in (
                ("warm", self.warm, self.wanted.warm_minutes),
                ("end", self.main, self.wanted.minutes),
            ):
                await self._part(server, first, seen, 60 * minutes, looking)
                await self._settle(first, seen, looking)
                self.states[name] = {**resources_of(server.pid), **await server.state()}
        finally:
            looking.cancel()
            await first.close()

    async def _part(
        self,
        server: Server,
        browser: Browser,
        seen: Seen,
        seconds: float,
        looking: asyncio.Future[None],
    ) -> None:
        wanted = self.wanted
        images = tuple(sorted((PROJECT / "demo" / "examples").glob("*.png")))
        url = str(server.about["url"])
        crowd = Crowd(
            url, browser.page, images, wanted.clients, wanted.rate, seconds, wanted.tokens
        )
        self.looks, self.lags, self.noting = [], [], True
        before = _spent(server)
        asking = asyncio.ensure_future(crowd.ask(seen, seed=round(seconds)))
        await asyncio.wait({looking}, timeout=seconds)
        self.noting = False
        self.spent = {k: v - before[k] for k, v in _spent(server).items()}
        await asyncio.wait(
            {asking, looking}, timeout=PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        if looking.done():
            asking.cancel()
            looking.result()  # raises the reason
        if asking.done():
            asking.result()
            return
        self.unfinished += crowd.busy
        asking.cancel()
        await asyncio.wait({asking}, timeout=PATIENCE_SECONDS)

    async def _settle(self, browser: Browser, seen: Seen, looking: asyncio.Future[None]) -> None:
        """A pause with only light requests, so that idle threads end."""
        until = time.monotonic() + PATIENCE_SECONDS
        while self.owners and time.monotonic() < until and not looking.done():
            await asyncio.sleep(LOOK_SECONDS)
        until = time.monotonic() + self.wanted.settle_seconds
        while time.monotonic() < until and not looking.done():
            try:
                await browser.ask("token_maps", maps_of(browser.page.example))
            except (FailedError, RefusedError) as error:
                seen.error(error)
            await asyncio.sleep(1)

    async def _look(self, server: Server) -> None:
        """Record repeatedly whose jobs are running, and how late this process is."""
        while True:
            due = time.monotonic() + LOOK_SECONDS
            owners = set((await server.state())["owners"])
            now = time.monotonic()
            self.left.update(dict.fromkeys(self.owners - owners, now))
            for owner in owners:
                self.left.pop(owner, None)
            self.owners = owners
            due = max(due, now)
            await asyncio.sleep(due - now)
            if self.noting:
                self.looks.append((now, bool(owners)))
                self.lags.append(time.monotonic() - due)

    def found(self) -> dict[str, Any]:
        """All measurements as plain values."""
        now = time.monotonic()
        gone = {**self.warm.vanished, **self.main.vanished}
        after = [
            (now if owner in self.owners else self.left.get(owner, at)) - at
            for owner, at in gone.items()
        ]
        looks = [at for at, _ in self.looks]
        return {
            "threads": self.about.get("threads"),
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


def _spent(server: Server) -> dict[str, float]:
    return {
        "app": processor_seconds(server.pid),
        "clients": time.process_time(),
        "seconds": time.monotonic(),
    }


def spread(times: list[float]) -> dict[str, float]:
    """Count, median, 95th percentile and largest of some times in seconds."""
    ordered = sorted(times)
    if not ordered:
        return {"count": 0}
    at = [ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in (0.5, 0.95)]
    return {"median": at[0], "p95": at[1], "most": ordered[-1], "count": len(ordered)}
