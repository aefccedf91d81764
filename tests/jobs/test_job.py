"""One job: its owner, Stop, deadline and progress."""

from __future__ import annotations

import threading

import pytest

from sinkscope.jobs.job import Job, JobProgress, NotOwnerError, Stopped, duration_text


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def computing(steps: int, on_progress: object = None, stop: threading.Event | None = None) -> int:
    """The computing function knows two arguments and no job."""
    for done in range(steps):
        if stop is not None and stop.is_set():
            raise Stopped(done, steps, "questions")
        if callable(on_progress):
            on_progress(done + 1, steps, f"question {done}")
    return steps


def test_hooks_are_the_two_arguments_of_what_computes() -> None:
    reports: list[tuple[int, int, str]] = []
    with Job(on_progress=lambda *at: reports.append(at)) as job:
        job.enter("Asking")
        assert computing(2, **job.hooks) == 2
    assert reports == [(1, 2, "question 0"), (2, 2, "question 1")]
    assert job.at == JobProgress("Asking", 2, 2, "question 1")
    assert isinstance(job.stop_event, threading.Event)


def test_a_job_is_over_when_it_is_left() -> None:
    with Job(seconds=5) as job:
        assert not job.stopped
    assert job.stopped and not job.late and job.ended_by == "Stopped"
    with pytest.raises(Stopped, match="after 0 of 3 questions"):
        computing(3, **job.hooks)


def test_only_the_owner_stops_a_job() -> None:
    mine = Job("me")
    for other in ("you", "", None):
        with pytest.raises(NotOwnerError, match="only that one can stop it"):
            mine.stop(other)
        assert not mine.stopped
    mine.stop("me")
    assert mine.stopped
    nobodys = Job()
    nobodys.stop()  # any holder may stop it
    assert nobodys.stopped


def test_the_deadline_counts_from_the_turn_and_says_so() -> None:
    clock = Clock()
    job = Job("me", seconds=600, clock=clock)
    clock.now += 1e6  # waiting in the queue
    assert not job.stopped
    with job:
        clock.now += 599.5
        assert not job.stopped
        job.report(4, 9)
        job.check()
        clock.now += 0.5
        with pytest.raises(Stopped) as stopped:
            job.check()
        assert (stopped.value.done, stopped.value.total) == (4, 9)
        job.stop("me")  # too late to be the reason
    assert job.late and job.ended_by == "Stopped at the time limit of 10 minutes"


def test_stop_before_the_deadline_is_no_deadline() -> None:
    clock = Clock()
    with Job(seconds=1, clock=clock) as job:
        job.stop()
        clock.now += 5
        assert job.stopped and not job.late


def test_whoever_waits_for_stop_is_woken_by_the_deadline() -> None:
    with Job(seconds=0.01) as job:
        assert job.stop_event.wait(60)
        assert job.late


def test_a_finished_job_is_not_late() -> None:
    clock = Clock()
    with Job(seconds=1, clock=clock) as job:
        pass
    clock.now += 5
    assert not job.late


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_deadline_must_lie_ahead(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds is"):
        Job(seconds=seconds)


def test_times_in_words() -> None:
    assert [duration_text(s) for s in (1, 90, 120, 150, 3600)] == [
        "1 second",
        "90 seconds",
        "2 minutes",
        "2.5 minutes",
        "60 minutes",
    ]
