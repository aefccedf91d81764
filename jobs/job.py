"""One long run: its owner, its progress, and whether it should end.

The computing function does not know `Job`. It takes two arguments, `on_progress` and `stop`, which
a job has as `report` and `stop_event`, and raises `Stopped` when it was ended before there was a
result:

    with Job(owner=session, seconds=600) as job:
        findings = find(handle, samples, **job.hooks)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Progress = Callable[[int, int, str], None]  # done, total, what is being done
Reason = Literal["", "stop", "deadline", "closed", "left"]


class Stopped(Exception):  # noqa: N818  (no error: it was asked for)
    """The run was asked to stop and did, before it had a result.

    Attributes:
        done, total: steps finished so far, and steps in all.
        what: what the steps are, in the plural.
    """

    def __init__(self, done: int, total: int, what: str = "samples") -> None:
        super().__init__(f"Stopped after {done} of {total} {what}.")
        self.done, self.total, self.what = done, total, what


class NoClientError(ValueError):
    """No client is left to read the result, so the job was ended."""


class NotOwnerError(ValueError):
    """A session tried to stop another session's job."""


@dataclass(frozen=True)
class JobProgress:
    """The progress of a job.

    Attributes:
        stage: which part of the job, such as "Finding"; "" if it has only one.
        done, total: steps of this stage; a total of 0 means unknown. text: the current step.
    """

    stage: str = ""
    done: int = 0
    total: int = 0
    text: str = ""


LOOK_SECONDS = 0.2  # between two checks whether a client is still connected, while waiting


class StopEvent(threading.Event):
    """An event that is also set once its deadline is over, or no client is left to read the result;
    both are checked whenever it is queried."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self.reason: Reason = ""
        self.since: float | None = None  # when it was set, on the clock
        self.deadline: float | None = None  # on the clock; None: never
        self.deserted: Callable[[], bool] | None = None  # whether no client is left

    def set(self, reason: Reason = "stop") -> None:
        """Set it; the first reason is kept."""
        self.reason = self.reason or reason
        self.since = self._clock() if self.since is None else self.since
        super().set()

    def is_set(self) -> bool:
        if not super().is_set():
            if self.deadline is not None and self._clock() >= self.deadline:
                self.set("deadline")
            elif self.deserted is not None and self.deserted():
                self.set("left")
        return super().is_set()

    def wait(self, timeout: float | None = None) -> bool:
        until = None if timeout is None else time.monotonic() + timeout
        while not self.is_set():
            left = None if until is None else max(0.0, until - time.monotonic())
            if left == 0.0:
                return False
            ticks = [] if left is None else [left]
            if self.deadline is not None:
                ticks.append(max(0.0, self.deadline - self._clock()))
            if self.deserted is not None:
                ticks.append(LOOK_SECONDS)
            super().wait(min(ticks, default=None))
        return True


class Job:
    """One long run. `with job:` is the time in which it computes; leaving it ends the job.

    Args:
        owner: the browser session whose job it is. None, on the command line and in a notebook:
            any holder of the job may stop it.
        kind: such as "answer"; a session's Stop applies to jobs of one kind.
        seconds: how long it may compute, from `with` on; None: no limit. Waiting in the queue
            does not count.
        on_progress: called with each report.
        clock: of the deadline, in seconds.

    Attributes:
        stop_event: set by Stop, at the deadline, and when the job is over: the `stop` of the
            computing function.
        at: the latest report.
    """

    def __init__(
        self,
        owner: str | None = None,
        kind: str = "",
        seconds: float | None = None,
        on_progress: Progress | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if seconds is not None and not seconds > 0:
            raise ValueError(f"seconds is {seconds!r}; allowed: a number above 0, or None.")
        self.owner, self.kind, self.seconds = owner, kind, seconds
        self.stop_event = StopEvent(clock)
        self.at = JobProgress()
        self._clock = clock
        self._told = on_progress
        self._listener: Callable[[JobProgress], None] | None = None

    def __enter__(self) -> Job:
        if self.seconds is not None:
            self.stop_event.deadline = self._clock() + self.seconds
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- for the computation ---------------------------------------------------------------------

    @property
    def hooks(self) -> dict[str, Any]:
        """The two arguments of every function that takes long: `find(..., **job.hooks)`."""
        return {"on_progress": self.report, "stop": self.stop_event}

    def report(self, done: int, total: int, text: str = "") -> None:
        """Report progress; from any thread."""
        self.at = JobProgress(self.at.stage, done, total, text)
        if self._told is not None:
            self._told(done, total, text)
        if self._listener is not None:
            self._listener(self.at)

    def enter(self, stage: str) -> None:
        """Begin another stage, whose steps count from 0."""
        self.at = JobProgress(stage)
        if self._listener is not None:
            self._listener(self.at)

    def check(self, what: str = "samples") -> None:
        """Raises `Stopped` once the job should end."""
        if self.stopped:
            raise Stopped(self.at.done, self.at.total, what)

    # --- for observers ---------------------------------------------------------------------------

    def listen(self, listener: Callable[[JobProgress], None]) -> None:
        """Set the callback for reports and stages: the generator that streams the job."""
        self._listener = listener

    def stop(self, by: str | None = None) -> None:
        """End the job after its current step.

        Raises:
            NotOwnerError: it is the job of another session.
        """
        if by != self.owner:
            raise NotOwnerError("This job is another browser's; only that one can stop it.")
        self.stop_event.set("stop")

    def close(self) -> None:
        """Mark the job as over, or as no longer waited for."""
        self.stop_event.set("closed")

    @property
    def stopped(self) -> bool:
        """Whether it should end: by Stop, by its deadline, or because no client waits for it."""
        return self.stop_event.is_set()

    @property
    def late(self) -> bool:
        """Whether its deadline ended it."""
        return self.stopped and self.stop_event.reason == "deadline"

    @property
    def deserted(self) -> bool:
        """Whether it was ended because no client was left."""
        return self.stopped and self.stop_event.reason == "left"

    @property
    def ended_by(self) -> str:
        """Why it was ended, as the start of a sentence: "Stopped", or the time limit."""
        if not self.late or self.seconds is None:
            return "Stopped"
        return f"Stopped at the time limit of {duration_text(self.seconds)}"


def duration_text(seconds: float) -> str:
    """A time in words: "90 seconds", "10 minutes"."""
    if seconds < 120:
        return f"{seconds:g} {'second' if seconds == 1 else 'seconds'}"
    return f"{round(seconds / 60, 1):g} minutes"
