"""What runs the page's jobs: each waits for its turn, computes in a thread, and streams how far.

    for event in runner.run(Job(session, "sinks"), work):
        match event: Waiting(before), At(stage, done, total, text), Done(result)

Whatever ends the generator (the result, an error, a closed page) ends the job with it.
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

from sinkscope.jobs.job import At, Job, NobodyThereError, Stopped
from sinkscope.jobs.line import Line, turns

TICK_SECONDS = 1.0  # between two events of a job that says nothing, so that a clock can move

STUCK_SECONDS = 120.0  # that a job which shall end may take for the step it is at

Work = Callable[[Job], Any]
Deserted = Callable[[str, float], bool]  # session, since when its job is known (time.monotonic)
Withdrawn = Callable[[], bool]


@dataclass(frozen=True)
class Waiting:
    """So many jobs come before this one."""

    before: int


@dataclass(frozen=True)
class Done:
    """The job is over, with what `work` gave."""

    result: Any


class StoppedWaiting(Stopped):
    """The job was stopped before its turn came; nothing was computed."""

    def __init__(self) -> None:
        super().__init__(0, 0)


class WorkerLostError(RuntimeError):
    """A job's thread has ended without a word, or by an exit that was meant for the process."""


@dataclass(frozen=True)
class _Failed:
    error: Exception


@dataclass(frozen=True)
class _Worker:
    """A job's thread, and whether it has said how the job ended. Whoever streams the job may take a
    while to hear it, and the thread is over meanwhile."""

    thread: threading.Thread
    told: threading.Event

    @property
    def lost(self) -> bool:
        over = self.thread.ident is not None and not self.thread.is_alive()
        return over and not self.told.is_set()


class Runner:
    """The jobs of one app.

    Args:
        longest: how many jobs may wait for the model.
        seconds: how long one job may compute; None for as long as it takes.
        share: how many of these one session may have waiting; None: all.

    Attributes:
        deserted: says whether nobody of a session is there any more (`web.server.presence`); None
            where nobody can know that. Its jobs end then, those in the line and those that compute.
        withdrawing: called where a job is made, gives what says whether the question behind it was
            withdrawn since (`web.server.events`); the job ends then.
    """

    def __init__(
        self, longest: int, seconds: float | None = None, share: int | None = None
    ) -> None:
        self.line = Line(longest, share)
        self.seconds = seconds
        self.deserted: Deserted | None = None
        self.withdrawing: Callable[[], Withdrawn | None] = lambda: None
        self._under_way: list[Job] = []
        self._threads: dict[Job, _Worker] = {}
        self._lock = threading.Lock()

    def job(self, owner: str, kind: str) -> Job:
        """A job under this app's time limit, for as long as somebody of its session is there and
        wants it."""
        job = Job(owner, kind, self.seconds)
        asked = [self.withdrawing()]
        if self.deserted is not None and owner:
            asked.append(partial(self.deserted, owner, time.monotonic()))
        if told := [one for one in asked if one is not None]:
            job.stop_event.deserted = lambda: any(one() for one in told)
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
        """What is wrong with the threads of jobs, in words: those that have ended without a word,
        and those that should have ended long ago."""
        with self._lock:
            workers = list(self._threads.items())
        found = []
        for job, worker in workers:
            since = job.stop_event.since
            if since is not None and time.monotonic() - since > STUCK_SECONDS:
                found.append(f"a job ({job.kind}) does not end")
            elif worker.lost and since is None:
                found.append(f"the thread of a job ({job.kind}) is dead")
        return tuple(found)

    def stop(self, owner: str, kind: str | None = None) -> None:
        """Stop the jobs of one kind, or of every kind, that this session owns; nobody else's. ""
        owns nothing."""
        for job in self.under_way:
            if owner and job.owner == owner and kind in (None, job.kind):
                job.stop(owner)

    def run(self, job: Job, work: Work, *, waits: bool = True) -> Iterator[Waiting | At | Done]:
        """Run `work(job)` in a thread of its own and stream what becomes of it.

        An `At` comes with a report or a stage, the latest one where several have come, and after
        each second without one. The thread has ended when the generator has: the next in line
        finds the model free.

        Args:
            job: of which nothing else runs.
            work: what computes; it stops when `job.stop_event` is set.
            waits: whether it takes a place in the line in front of the model.

        Raises:
            LineIsFullError: more are waiting than is allowed.
            StoppedWaiting: it was stopped before its turn.
            NobodyThereError: nobody of its session is there any more.
            WorkerLostError: `work` wanted to end the process (SystemExit, KeyboardInterrupt).
            Exception: whatever else `work` raised.
        """
        place = self.line.place(job.owner) if waits else nullcontext(_at_once)
        with self._known(job), place as before:
            for position in turns(before, job):
                yield Waiting(position)
            if job.stopped:
                raise _nobody() if job.deserted else StoppedWaiting()
            events: queue.Queue[At | Done | _Failed] = queue.Queue()
            job.listen(events.put)
            told = threading.Event()
            thread = threading.Thread(
                # in the context of whoever asks, so that the work knows whose it is
                target=copy_context().run,
                args=(_worked, job, work, events, told),
                name=f"job {job.kind}",
                daemon=True,
            )
            del work  # the thread alone decides how long what it holds takes memory
            with job:
                with self._lock:
                    self._threads[job] = _Worker(thread, told)
                thread.start()
                try:
                    yield from _streamed(job, events, thread)
                finally:
                    job.close()
                    thread.join()
                    with self._lock:
                        del self._threads[job]

    def result(self, job: Job, work: Work, *, waits: bool = True) -> Any:
        """The same at one go: what `work` gave."""
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


def _nobody() -> NobodyThereError:
    return NobodyThereError("Nobody was there any more to read the result, so it was stopped.")


def _worked(
    job: Job, work: Work, events: queue.Queue[At | Done | _Failed], told: threading.Event
) -> None:
    try:
        events.put(Done(work(job)))
    except Exception as error:  # handed to the generator, which raises it
        events.put(_Failed(error))
    except BaseException as error:
        # Whoever streams the job is a task of the server, which an exit would take with it.
        lost = WorkerLostError(f"a job ({job.kind}) was ended by {type(error).__name__}")
        lost.__cause__ = error
        events.put(_Failed(lost))
    told.set()


def _streamed(
    job: Job, events: queue.Queue[At | Done | _Failed], thread: threading.Thread
) -> Iterator[At | Done]:
    while True:
        try:
            event = events.get(timeout=TICK_SECONDS)
        except queue.Empty:
            if not thread.is_alive() and events.empty():
                raise WorkerLostError(f"the thread of a job ({job.kind}) is dead") from None
            event = job.at  # only the clock moves
        while isinstance(event, At) and not events.empty():  # the latest is enough
            event = events.get()
        if not isinstance(event, At) and job.deserted:
            raise _nobody()
        if isinstance(event, _Failed):
            raise event.error
        yield event
        if isinstance(event, Done):
            return
