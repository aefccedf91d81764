"""The clients of `benchmarks load`: clients with jobs, some of which disconnect, and explorers at a
steady rate. All of them run in one event loop, in another process than the app.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sinkscope.benchmarks.load_protocol import (
    Browser,
    FailedError,
    Page,
    RefusedError,
    StoppedError,
)

PAUSE_SECONDS = 1.5  # mean, between two actions of a client
COMING_SECONDS = 10.0  # in which all of them have started
BUSY_SECONDS = (2.0, 6.0)  # "try again in a little while"
# The requests of explorers, repeated in this order.
CYCLE = ("token_maps", "open_run", "token_maps", "payload", "token_maps", "open_run", "page")
KEPT_RUNS = 200  # the ids that explorers choose from
MOST_ERRORS = 50  # different ones whose text is kept


@dataclass
class Seen:
    """The outcome of everything so far. Times are seconds of `time.monotonic`.

    Attributes:
        jobs: `turned away` (before they queue) or `joined`; each joined job is later `completed`,
            `stopped`, `refused` (by the queue), `failed`, or its client has `vanished`.
        errors: their texts, with counts.
        vanished: session and time.
        times: seconds of explorers' requests by kind, from their due time.
        runs: ids of finished runs, the latest last.
    """

    jobs: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    vanished: dict[str, float] = field(default_factory=dict)
    times: dict[str, list[float]] = field(default_factory=lambda: {k: [] for k in CYCLE})
    runs: list[str] = field(default_factory=list)

    def error(self, error: BaseException) -> None:
        words = str(error) if isinstance(error, FailedError) else f"{type(error).__name__}: {error}"
        words = words if words in self.errors or len(self.errors) < MOST_ERRORS else "others"
        self.errors[words] += 1

    def kept(self, run: str) -> None:
        self.runs = [*self.runs[1 - KEPT_RUNS :], run]


@dataclass(frozen=True)
class Crowd:
    """The clients of a run and its length.

    Attributes:
        url: of the app.
        page: its layout.
        images: images of the questions.
        clients: their number; the first fifth of them disconnect repeatedly.
        rate: requests of explorers per second.
        seconds: length of the run.
        tokens: maximum length of an answer.
        tasks: one for each client, while it is active.
    """

    url: str
    page: Page
    images: tuple[Path, ...]
    clients: int
    rate: float
    seconds: float
    tokens: int
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def ask(self, seen: Seen, seed: int) -> None:
        """Run all of them, until the time is over and each has finished what it began."""
        until = time.monotonic() + self.seconds
        vanishing = round(self.clients / 5)
        everybody = [
            self._client(seen, random.Random(f"{seed} {n}"), until, n < vanishing)
            for n in range(self.clients)
        ]
        tasks = [asyncio.ensure_future(one) for one in (*everybody, self._explore(seen, until))]
        self.tasks.extend(tasks)
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    @property
    def busy(self) -> int:
        """How many have not finished yet."""
        return sum(not task.done() for task in self.tasks)

    # --- clients ---------------------------------------------------------------------------------

    async def _client(self, seen: Seen, rng: random.Random, until: float, vanishes: bool) -> None:
        await asyncio.sleep(rng.uniform(0, min(COMING_SECONDS, self.seconds / 3)))
        while time.monotonic() < until:
            browser = Browser(self.url, self.page)
            try:
                await self._session(browser, seen, rng, until, vanishes)
            except (RefusedError, FailedError) as error:
                seen.error(error)
                await asyncio.sleep(PAUSE_SECONDS)
            finally:
                await browser.close()

    async def _session(
        self, browser: Browser, seen: Seen, rng: random.Random, until: float, vanishes: bool
    ) -> None:
        """One visit: it ends when the time is over, or when the client disconnects."""
        await browser.get("/")
        image = await browser.upload(rng.choice(self.images))
        while time.monotonic() < until:
            leaves = rng.uniform(0, 4) if vanishes and rng.random() < 0.5 else None
            try:
                run = await self._answer(browser, image, seen, rng, leaves)
            except RefusedError:
                await asyncio.sleep(rng.uniform(*BUSY_SECONDS))
                continue
            except FailedError as error:
                seen.error(error)
                run = None
            if browser.session in seen.vanished:
                return
            if run:
                await self._look(browser, run, rng)
                seen.kept(run)
            await asyncio.sleep(rng.expovariate(1 / PAUSE_SECONDS))

    async def _answer(
        self,
        browser: Browser,
        image: Any,
        seen: Seen,
        rng: random.Random,
        leaves: float | None,
    ) -> str | None:
        """Ask, from the page or through the API; returns the run's id if there is one to open.

        Some stop their job at a random moment. If `leaves` is given, the client closes its
        connections after so many seconds, unless the job has ended.
        """
        prompt, tokens = f"Describe the image. ({rng.randrange(1000)})", rng.randint(4, self.tokens)
        name, stop = ("generate", "stop") if rng.random() < 0.5 else ("answer", "stop_answer")
        if name == "generate":
            data = self.page.generate(image, prompt, tokens)
        else:
            data = self.page.answer(image, prompt, rng.random() < 0.5, tokens)
        stops = rng.uniform(0, 4) if leaves is None and rng.random() < 0.2 else None
        reading = asyncio.ensure_future(self._read(browser, name, data, seen))
        try:
            limit = leaves if stops is None else stops
            over = bool((await asyncio.wait({reading}, timeout=limit))[0])
            if not over and leaves is not None:
                reading.cancel()
                await asyncio.wait({reading})
                await browser.close()
                seen.vanished[browser.session] = time.monotonic()
                return None
            if not over:
                await browser.stop(stop)
            try:
                run = await reading
            except StoppedError:
                if over:
                    raise FailedError("a job that nobody stopped was stopped") from None
                return None
        finally:
            reading.cancel()
        return run if over else None  # a stopped job may have kept nothing

    async def _read(self, browser: Browser, name: str, data: list[Any], seen: Seen) -> str | None:
        """Wait for the end of the job, and count it."""
        run, became = None, "turned away"
        try:
            async for event in browser.job(name, data):
                if event == "joined":
                    seen.jobs["joined"] += 1
                    became = "failed"
                else:
                    run = event or run
            became = "completed"
        except StoppedError:
            became = "stopped"
            raise
        except RefusedError:
            became = "refused" if became == "failed" else became
            raise
        except asyncio.CancelledError:
            became = "vanished" if became == "failed" else became
            raise
        finally:
            seen.jobs[became] += 1
        return run

    async def _look(self, browser: Browser, run: str, rng: random.Random) -> None:
        """The requests of a user after a finished run."""
        value = await browser.ask("open_run", {"run": run})
        await browser.get(f"/{value['data']['url']}")
        for _ in range(rng.randint(0, 2)):
            await browser.ask("token_maps", maps_of(run))
            await asyncio.sleep(rng.expovariate(1 / PAUSE_SECONDS))

    # --- explorers -------------------------------------------------------------------------------

    async def _explore(self, seen: Seen, until: float) -> None:
        """Requests at a steady rate. Each is sent when it is due, whether or not others are
        answered, and timed from its due time."""
        if not self.rate:
            return
        browsers = [Browser(self.url, self.page) for _ in range(8)]
        rng, sent = random.Random(0), set[asyncio.Task[None]]()
        number, due = 0, time.monotonic()
        try:
            while due < until:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                kind = CYCLE[number % len(CYCLE)]
                run = rng.choice([self.page.example, *seen.runs[-KEPT_RUNS:]])
                asking = _timed(EXPLORE[kind], browsers[number % 8], run, kind, due, seen)
                task = asyncio.ensure_future(asking)
                sent.add(task)
                task.add_done_callback(sent.discard)
                number, due = number + 1, due + 1 / self.rate
            if sent:
                await asyncio.wait(sent, timeout=60)
        finally:
            for task in sent:
                task.cancel()
            for browser in browsers:
                with suppress(Exception):
                    await browser.close()


def maps_of(run: str) -> dict[str, Any]:
    return {"run": run, "variant": "baseline", "start": 0, "stop": 1, "whole": True}


async def _ask_maps(browser: Browser, run: str) -> None:
    await browser.ask("token_maps", maps_of(run))


async def _ask_open(browser: Browser, run: str) -> str:
    return str((await browser.ask("open_run", {"run": run}))["data"]["url"])


async def _ask_page(browser: Browser, run: str) -> None:
    await browser.get("/")


async def _timed(
    ask: Callable[[Browser, str], Awaitable[Any]],
    browser: Browser,
    run: str,
    kind: str,
    due: float,
    seen: Seen,
) -> None:
    try:
        if kind == "payload":  # resolving its address is not timed
            path = f"/{await _ask_open(browser, run)}"
            due = time.monotonic()
            await browser.get(path)
        else:
            await ask(browser, run)
    except (FailedError, RefusedError) as error:
        seen.error(error)
        return
    seen.times[kind].append(time.monotonic() - due)


EXPLORE: dict[str, Callable[[Browser, str], Awaitable[Any]]] = {
    "token_maps": _ask_maps,
    "open_run": _ask_open,
    "payload": _ask_open,
    "page": _ask_page,
}
