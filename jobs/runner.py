"""Runs the page's jobs: each waits for its turn, computes in a thread, and streams its progress.

    for event in runner.run(Job(session, "sinks"), work):
        match event: Waiting(before), At(stage, done, total, text), Done(result)

When the generator ends (result, error, closed page), the job ends with it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any

from sinkscope.jobs.job import Job, JobProgress, NoClientError, Stopped
from sinkscope.jobs.job_queue import JobQueue, turns

TICK_SECONDS = 1.0  # between two events of a silent job, so that a clock can advance

STUCK_SECONDS = 120.0  # limit for the current step of a stopped job

Work = Callable[[Job], Any]
Deserted = Callable[[str, float], bool]  # session, since when its job is known (time.monotonic)
Withdrawn = Callable[[], bool]


@dataclass(frozen=True)
class Waiting:
    """`before` jobs come before this one."""

    before: int


@dataclass(frozen=True)
class Done:
    """The job is over, with the result of `work`."""

    result: Any


class StoppedWaiting(Stopped):
    """The job was stopped before its turn came; nothing was computed."""

    def __init__(self) -> None:
        super().__init__(0, 0)


class WorkerLostError(RuntimeError):
    """A job's thread has ended without a result, or by an exit meant for the process."""


@dataclass(frozen=True)
class _Failed:
    error: Exception


@dataclass(frozen=True)
class _Worker:
    """A job's thread, and whether it has reported how the job ended. The generator that streams the
    job may read this report only after the thread has ended."""

    thread: threading.Thread
    reported: threading.Event

    @property
    def lost(self) -> bool:
        over = self.thread.ident is not None and not self.thread.is_alive()
        return over and not self.reported.is_set()


class Runner:
    """The jobs of one app.

    Args:
        longest: how many jobs may wait for the model.
        seconds: how long one job may compute; None: no limit.
        share: how many of these one session may have waiting; None: all.

    Attributes:
        deserted: whether a session has no client left (`web.server.presence`); None where
            this is unknown. Its jobs then end, both queued and running ones.
        withdrawing: called where a job is made; returns a function that tells whether the
            request behind it was withdrawn since (`web.server.events`); then the job ends.
    """

    def __init__(
        self, longest: int, seconds: float | None = None, share: int | None = None
    ) -> None:
        self.line = JobQueue(longest, share)
        self.seconds = seconds
        self.deserted: Deserted | None = None
        self.withdrawing: Callable[[], Withdrawn | None] = lambda: None
        self._under_way: list[Job] = []
        self._threads: dict[Job, _Worker] = {}
        self._lock = threading.Lock()

    def job(self, owner: str, kind: str) -> Job:
        """A job with this app's time limit, while its session has a client that wants it."""
        job = Job(owner, kind, self.seconds)
        asked = [self.withdrawing()]
        if self.deserted is not None and owner:
            asked.append(partial(self.deserted, owner, time.monotonic()))
        if reasons := [one for one in asked if one is not None]:
            job.stop_event.deserted = lambda: any(one() for one in reasons)
        return job

    @property
    def under_way(self) -> tuple[Job, ...]:
        """The jobs that wait or compute."""
        with self._lock:
            return tuple(self._under_way)

    @property
    def computing(self) -> int:
        """How many jobs have a thread."""
        with self._lock:
            return len(self._threads)

    @property
    def stuck(self) -> tuple[str, ...]:
        """Problems with the threads of jobs, in words: those that ended without reporting a
        result, and those that should have ended long ago."""
        with self._lock:
            workers = list(self._threads.items())
        jobs = []
        for job, worker in workers:
            since = job.stop_event.since
            if since is not None and time.monotonic() - since > STUCK_SECONDS:
                jobs.append(f"a job ({job.kind}) does not end")
            elif worker.lost and since is None:
                jobs.append(f"the thread of a job ({job.kind}) is dead")
        return tuple(jobs)

    def stop(self, owner: str, kind: str | None = None) -> None:
        """Stop the jobs of one kind, or of every kind, of this session, never of another. "" owns
        nothing."""
        for job in self.under_way:
            if owner and job.owner == owner and kind in (None, job.kind):
                job.stop(owner)

    def run(
        self, job: Job, work: Work, *, waits: bool = True
    ) -> Iterator[Waiting | JobProgress | Done]:
        """Run `work(job)` in its own thread and stream its events.

        A `JobProgress` comes with a report or a stage (the latest if several have come), and after
        each second without one. The thread ends before the generator, so the next job finds the
        model free.

        Args:
            job: not running elsewhere.
            work: the computation; it stops when `job.stop_event` is set.
            waits: whether it queues for the model.

        Raises:
            QueueFullError: more are waiting than is allowed.
            StoppedWaiting: it was stopped before its turn.
            NoClientError: its session has no client left.
            WorkerLostError: `work` tried to end the process (SystemExit, KeyboardInterrupt).
            Exception: whatever else `work` raised.
        """
        place = self.line.place(job.owner) if waits else nullcontext(_at_once)
        with self._known(job), place as before:
            for position in turns(before, job):
                yield Waiting(position)
            if job.stopped:
                raise _nobody() if job.deserted else StoppedWaiting()
            events: queue.Queue[JobProgress | Done | _Failed] = queue.Queue()
            job.listen(events.put)
            changed = threading.Event()
            thread = threading.Thread(
                # in the caller's context, so that the work knows its user
                target=copy_context().run,
                args=(_worked, job, work, events, changed),
                name=f"job {job.kind}",
                daemon=True,
            )
            del work  # only the thread keeps its objects alive
            with job:
                with self._lock:
                    self._threads[job] = _Worker(thread, changed)
                thread.start()
                try:
                    yield from _streamed(job, events, thread)
                finally:
                    job.close()
                    thread.join()
                    with self._lock:
                        del self._threads[job]

    def result(self, job: Job, work: Work, *, waits: bool = True) -> Any:
        """The same in one call: the result of `work`."""
        *_, last = self.run(job, work, waits=waits)
        assert isinstance(last, Done)
        return last.result

    @contextmanager
    def _known(self, job: Job) -> Iterator[None]:
        with self._lock:
            self._under_way.append(job)
        try:
            yield
        finally:
            job.close()
            with self._lock:
                self._under_way.remove(job)


def _at_once(timeout: float) -> int:
    return 0


def _nobody() -> NoClientError:
    return NoClientError("Nobody was there any more to read the result, so it was stopped.")


def _worked(
    job: Job,
    work: Work,
    events: queue.Queue[JobProgress | Done | _Failed],
    changed: threading.Event,
) -> None:
    try:
        events.put(Done(work(job)))
    except Exception as error:  # handed to the generator, which raises it
        events.put(_Failed(error))
    except BaseException as error:
        # The job is streamed by a task of the server, which an exit would end.
        lost = WorkerLostError(f"a job ({job.kind}) was ended by {type(error).__name__}")
        lost.__cause__ = error
        events.put(_Failed(lost))
    changed.set()


def _streamed(
    job: Job, events: queue.Queue[JobProgress | Done | _Failed], thread: threading.Thread
) -> Iterator[JobProgress | Done]:
    while True:
        try:
            event = events.get(timeout=TICK_SECONDS)
        except queue.Empty:
            if not thread.is_alive() and events.empty():
                raise WorkerLostError(f"the thread of a job ({job.kind}) is dead") from None
            event = job.at  # only the clock moves
        while isinstance(event, JobProgress) and not events.empty():  # the latest is enough
            event = events.get()
        if not isinstance(event, JobProgress) and job.deserted:
            raise _nobody()
        if isinstance(event, _Failed):
            raise event.error
        yield event
        if isinstance(event, Done):
            return
