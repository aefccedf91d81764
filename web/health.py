"""Whether the parts that do the work are alive: `/health`, and a watchdog that may end the process.

These parts are the server's event loop, Gradio's task that takes events from its queue, and the
threads of jobs. If one of them is dead, the process accepts requests but never answers them. What
runs the process (a container, systemd) learns this by status 503, or by the end of the process.
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
SILENT_SECONDS = 30.0  # an event loop silent this long counts as dead
EXIT_CODE = 70  # EX_SOFTWARE
QUEUE_TASK = "Queue.start_processing"  # Gradio's task


@dataclass
class Health:
    """The state of the app. Each app has one such object.

    Attributes:
        beat: time (`time.monotonic`) at which the event loop was last seen alive; 0 before it runs.
        queue_seen: whether Gradio's task that takes events has ever been seen.
        queue_runs: whether that task runs now.
    """

    loaded: LoadedModel
    runner: Runner
    store: RunStore
    beat: float = 0.0
    queue_seen: bool = False
    queue_runs: bool = False
    began: float = field(default_factory=time.monotonic)

    def dead(self) -> tuple[str, ...]:
        """What is dead, in words; empty if everything works."""
        reasons = []
        if self.beat and time.monotonic() - self.beat > SILENT_SECONDS:
            reasons.append("the server's event loop does not run")
        if self.queue_seen and not self.queue_runs:
            reasons.append("the queue of events is not served any more")
        return (*reasons, *self.runner.stuck)

    def value(self) -> dict[str, Any]:
        """The answer of `/health`: plain values, no names of users or files, no prompts."""
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
        """A task that runs as long as the event loop does."""
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
    """A thread that checks the app's health, reports once what is dead, and may end the process.

    Args:
        health: the health of the app.
        ends: whether a dead worker ends the process, so that its supervisor starts a new one.
        every: seconds between two checks.
        end: ends the process; tests pass their own function.
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
        """Start checking."""
        self._thread.start()

    def close(self) -> None:
        """Stop checking."""
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
