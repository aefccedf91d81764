"""Whether what does the work is alive: `/health`, and a watchdog that may end the process.

What works here: the server's event loop, Gradio's task that takes events from its queue, and the
threads of jobs. A process in which one of these is dead takes requests and answers nothing, so
whoever runs it (a container, systemd) has to be told: by 503, or by the process's end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sinkscope.jobs.runner import Runner
from sinkscope.web.runs.loaded_model import LoadedModel
from sinkscope.web.runs.store import RunStore

log = logging.getLogger(__name__)

PATH = "/health"
BEAT_SECONDS = 0.5
SILENT_SECONDS = 30.0  # of the event loop, after which it counts as dead
EXIT_CODE = 70  # EX_SOFTWARE
QUEUE_TASK = "Queue.start_processing"  # of Gradio


@dataclass
class Health:
    """How the app is; one object an app.

    Attributes:
        beat: when the event loop was last seen alive, on `time.monotonic`; 0 before it runs.
        queue_seen, queue_runs: whether Gradio's task that takes events was ever there, and is.
    """

    loaded: LoadedModel
    runner: Runner
    store: RunStore
    beat: float = 0.0
    queue_seen: bool = False
    queue_runs: bool = False
    began: float = field(default_factory=time.monotonic)

    def dead(self) -> tuple[str, ...]:
        """What is dead, in words; empty where all is well."""
        reasons = []
        if self.beat and time.monotonic() - self.beat > SILENT_SECONDS:
            reasons.append("the server's event loop does not run")
        if self.queue_seen and not self.queue_runs:
            reasons.append("the queue of events is not served any more")
        return (*reasons, *self.runner.stuck)

    def value(self) -> dict[str, Any]:
        """What `/health` says: plain values without a name of a user, a file or a prompt."""
        state, dead = self.loaded.state, self.dead()
        return {
            "status": "dead" if dead else "ok",
            "dead": list(dead),
            "model": {"phase": state.phase, "ready": state.working is not None},
            "queue": {"computing": self.runner.computing, "waiting": self.runner.line.length},
            "memory": {
                "process_bytes": psutil.Process().memory_info().rss,
                "runs_bytes": self.store.memory,
            },
            "seconds": round(time.monotonic() - self.began, 1),
        }

    async def watch_loop(self) -> None:
        """A task of the event loop, for as long as it runs."""
        while True:
            self.beat = time.monotonic()
            self.queue_runs = any(_is_queue(task) for task in asyncio.all_tasks())
            self.queue_seen = self.queue_seen or self.queue_runs
            await asyncio.sleep(BEAT_SECONDS)


def _is_queue(task: asyncio.Task[Any]) -> bool:
    return getattr(task.get_coro(), "__qualname__", "") == QUEUE_TASK and not task.done()


class HealthRoute:
    """Answers GET and HEAD of `/health`: 200, or 503 when something is dead."""

    def __init__(self, app: ASGIApp, health: Health) -> None:
        self.app, self._health = app, health

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != PATH:
            await self.app(scope, receive, send)
            return
        if scope["method"] not in ("GET", "HEAD"):
            answer = JSONResponse({"detail": "Allowed: GET, HEAD."}, 405)
        else:
            value = self._health.value()
            answer = JSONResponse(value, 503 if value["dead"] else 200)
        answer.headers["cache-control"] = "no-store"
        await answer(scope, receive, send)


class Watchdog:
    """A thread that looks at the app's health, says once what is dead, and may end the process.

    Args:
        health: of the app.
        ends: whether a dead worker ends the process, so that whatever started it starts another.
        every: seconds between two looks.
        end: ends the process; tests put their own here.
    """

    def __init__(
        self,
        health: Health,
        ends: bool,
        every: float = 1.0,
        end: Callable[[], object] = lambda: os._exit(EXIT_CODE),
    ) -> None:
        self._health, self._ends, self._every, self._end = health, ends, every, end
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._over.set()

    def _watch(self) -> None:
        reported: tuple[str, ...] = ()
        while not self._over.wait(self._every):
            dead = self._health.dead()
            if dead and dead != reported:
                log.critical("not working any more: %s", "; ".join(dead))
            reported = dead
            if dead and self._ends:
                sys.stderr.write(f"SinkScope ends, because {'; '.join(dead)}.\n")
                sys.stderr.flush()
                self._end()
                return
