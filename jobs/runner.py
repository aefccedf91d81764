"""What runs the page's jobs: each waits for its turn, computes in a thread, and streams how far.

    for event in runner.run(Job(session, "sinks"), work):
        match event: Waiting(before), At(stage, done, total, text), Done(result)

Whatever ends the generator (the result, an error, a closed page) ends the job with it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from sinkscope.jobs.job import At, Job, Stopped
from sinkscope.jobs.line import Line, turns

TICK_SECONDS = 1.0  # between two events of a job that says nothing, so that a clock can move

Work = Callable[[Job], Any]


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


@dataclass(frozen=True)
class _Failed:
    error: BaseException


class Runner:
    """The jobs of one app.

    Args:
        longest: how many jobs may wait for the model.
        seconds: how long one job may compute; None for as long as it takes.
    """

    def __init__(self, longest: int, seconds: float | None = None) -> None:
        self.line = Line(longest)
        self.seconds = seconds
        self._under_way: list[Job] = []
        self._lock = threading.Lock()

    def job(self, owner: str, kind: str) -> Job:
        """A job under this app's time limit."""
        return Job(owner, kind, self.seconds)

    @property
    def under_way(self) -> tuple[Job, ...]:
        """The jobs that wait or compute."""
        with self._lock:
            return tuple(self._under_way)

    def stop(self, owner: str, kind: str) -> None:
        """Stop the jobs of one kind that this session owns; nobody else's. "" owns nothing."""
        for job in self.under_way:
            if owner and (job.owner, job.kind) == (owner, kind):
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
            BaseException: whatever `work` raised.
        """
        place = self.line.place() if waits else nullcontext(_at_once)
        with self._known(job), place as before:
            for position in turns(before, job):
                yield Waiting(position)
            if job.stopped:
                raise StoppedWaiting
            events: queue.Queue[At | Done | _Failed] = queue.Queue()
            job.listen(events.put)
            thread = threading.Thread(
                target=_worked, args=(job, work, events), name=f"job {job.kind}", daemon=True
            )
            del work  # the thread alone decides how long what it holds takes memory
            with job:
                thread.start()
                try:
                    yield from _streamed(job, events)
                finally:
                    job.close()
                    thread.join()

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


def _worked(job: Job, work: Work, events: queue.Queue[At | Done | _Failed]) -> None:
    try:
        events.put(Done(work(job)))
    except BaseException as error:  # handed to the generator, which raises it
        events.put(_Failed(error))


def _streamed(job: Job, events: queue.Queue[At | Done | _Failed]) -> Iterator[At | Done]:
    while True:
        try:
            event = events.get(timeout=TICK_SECONDS)
        except queue.Empty:
            event = job.at  # only the clock moves
        while isinstance(event, At) and not events.empty():  # the latest is enough
            event = events.get()
        if isinstance(event, _Failed):
            raise event.error
        yield event
        if isinstance(event, Done):
            return
