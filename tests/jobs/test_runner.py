"""The runner of the page's jobs: their order, their ends, and that nothing is left of them."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator

import pytest

from sinkscope.jobs.job import Job, JobProgress, NoClientError, Stopped
from sinkscope.jobs.job_queue import QueueFullError
from sinkscope.jobs.runner import Done, Runner, StoppedWaiting, Waiting, WorkerLostError


@pytest.fixture
def runner() -> Iterator[Runner]:
    made = Runner(2)
    yield made
    assert made.under_way == ()
    with made.line.place() as before:  # nobody is left in the queue
        assert before(0) == 0


def until_stopped(job: Job) -> str:
    job.report(0, 5, "begun")
    assert job.stop_event.wait(30)
    return "part"


def test_progress_and_then_the_result(runner: Runner) -> None:
    go_on = threading.Event()

    def work(job: Job) -> int:
        job.enter("Adding")
        job.report(1, 2, "one")
        assert go_on.wait(30)
        return 7

    events = runner.run(runner.job("me", "sum"), work)
    seen = []
    for event in events:
        seen.append(event)
        if isinstance(event, JobProgress) and event.done == 1:
            go_on.set()
    assert seen[-1] == Done(7) and JobProgress("Adding", 1, 2, "one") in seen
    assert runner.result(Job("me"), work) == 7


def test_a_quiet_job_lets_a_clock_move(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinkscope.jobs.runner.TICK_SECONDS", 0.01)
    go_on = threading.Event()
    events = runner.run(Job("me"), lambda job: go_on.wait(30))
    assert [next(events), next(events)] == [JobProgress(), JobProgress()]
    go_on.set()
    assert list(events)[-1] == Done(True)


def test_an_error_of_the_worker_is_the_generators(runner: Runner) -> None:
    def broken(job: Job) -> None:
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        list(runner.run(Job("me"), broken))
    assert runner.result(Job("me"), lambda job: "the next one works") == "the next one works"


def test_a_closed_generator_ends_the_job_and_waits_for_its_thread(runner: Runner) -> None:
    ended = threading.Event()

    def work(job: Job) -> None:
        until_stopped(job)
        ended.set()

    job = runner.job("me", "x")
    events = runner.run(job, work)
    next(events)
    events.close()  # as when the page is closed
    assert ended.is_set() and job.stopped and not job.late
    assert not [t for t in threading.enumerate() if t.name == "job x"]


def test_stop_is_for_the_owners_jobs_of_this_kind(runner: Runner) -> None:
    job = runner.job("me", "answer")
    events = runner.run(job, until_stopped)
    next(events)
    for owner, kind in (("you", "answer"), ("me", "sinks"), ("", "answer")):
        runner.stop(owner, kind)
        assert not job.stopped
    runner.stop("me", "answer")
    assert list(events)[-1] == Done("part")


def test_a_job_without_a_session_is_stopped_by_nobody_else(runner: Runner) -> None:
    job = runner.job("", "answer")
    events = runner.run(job, until_stopped)
    next(events)
    runner.stop("", "answer")
    assert not job.stopped
    events.close()


def test_what_is_stopped_without_a_result_raises(runner: Runner) -> None:
    def work(job: Job) -> None:
        until_stopped(job)
        job.check("questions")

    events = runner.run(runner.job("me", "x"), work)
    next(events)
    runner.stop("me", "x")
    with pytest.raises(Stopped, match="after 0 of 5 questions"):
        list(events)


def test_the_time_limit_of_the_app_ends_a_job() -> None:
    runner = Runner(1, seconds=0.02)
    job = runner.job("me", "x")
    assert runner.result(job, until_stopped) == "part"
    assert job.late and "time limit of 0.02 seconds" in job.ended_by


def test_first_come_first_served(runner: Runner) -> None:
    first = runner.run(Job("a", "x"), until_stopped)
    next(first)
    second = runner.run(Job("b", "x"), lambda job: "second")
    third = runner.run(Job("c", "x"), lambda job: "third")
    assert next(second) == Waiting(1) and next(third) == Waiting(2)
    with pytest.raises(QueueFullError, match="3 runs are waiting"):
        next(runner.run(Job("d", "x"), lambda job: "fourth"))
    # A job that needs no model does not wait for it.
    assert runner.result(Job("e", "x"), lambda job: "a file", waits=False) == "a file"
    first.close()
    assert next(third) == Waiting(1)
    assert list(second)[-1] == Done("second")
    assert list(third)[-1] == Done("third")


def test_a_job_stopped_in_line_is_never_begun(runner: Runner) -> None:
    begun = []
    first = runner.run(Job("a", "x"), until_stopped)
    next(first)
    second = runner.run(Job("b", "x"), begun.append)
    next(second)
    runner.stop("b", "x")
    with pytest.raises(StoppedWaiting):
        list(second)
    assert begun == []
    first.close()


def test_nothing_that_a_job_held_is_left(runner: Runner) -> None:
    class Large:
        pass

    held = Large()
    left = weakref.ref(held)
    events = runner.run(Job("me", "x"), lambda job, held=held: until_stopped(job))  # type: ignore[misc]
    next(events)
    del held
    assert left() is not None
    events.close()
    del events
    gc.collect()
    assert left() is None


@pytest.mark.parametrize("ending", [SystemExit(3), KeyboardInterrupt()])
def test_an_exit_in_a_worker_ends_its_job_alone(runner: Runner, ending: BaseException) -> None:
    def work(job: Job) -> None:
        raise ending

    with pytest.raises(WorkerLostError, match=type(ending).__name__):
        list(runner.run(Job("a", "x"), work))
    assert runner.result(Job("a", "x"), lambda job: 3) == 3


def test_a_job_of_a_session_that_left_ends_in_the_line_and_at_work(runner: Runner) -> None:
    gone: set[str] = set()
    begun = []
    runner.deserted = lambda owner, since: owner in gone
    first = runner.run(runner.job("a", "x"), until_stopped)
    next(first)
    second = runner.run(runner.job("b", "y"), begun.append)
    assert next(second) == Waiting(1)
    gone.add("b")
    with pytest.raises(NoClientError):
        list(second)
    assert not begun
    gone.add("a")
    with pytest.raises(NoClientError):  # although the work returned a part
        list(first)
    assert runner.result(runner.job("", "x"), lambda job: 3) == 3  # no owner, no client


def test_stop_of_every_kind(runner: Runner) -> None:
    mine = [runner.run(runner.job("a", kind), until_stopped) for kind in ("x", "y")]
    other = runner.run(runner.job("b", "x"), lambda job: "theirs")
    for events in (*mine, other):
        next(events)
    runner.stop("a")
    assert list(mine[0])[-1] == Done("part")
    with pytest.raises(StoppedWaiting):
        list(mine[1])
    assert list(other)[-1] == Done("theirs")


def test_a_job_that_does_not_end_is_stuck(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    events = runner.run(runner.job("a", "deaf"), lambda job: go_on.wait(30))
    next(events)
    runner.stop("a")
    assert runner.stuck == ()
    monkeypatch.setattr("sinkscope.jobs.runner.STUCK_SECONDS", 0.0)
    assert runner.stuck == ("a job (deaf) does not end",)
    go_on.set()
    list(events)
    assert runner.stuck == ()


def test_a_thread_that_has_told_its_result_is_not_dead(runner: Runner) -> None:
    over = threading.Event()
    events = runner.run(runner.job("a", "answer"), lambda job: over.wait(30))
    next(events)
    (worker,) = runner._threads.values()
    over.set()
    worker.thread.join(30)  # and the stream has not been read yet
    assert runner.stuck == ()
    assert next(events) == Done(True)
    assert runner.stuck == ()  # nor closed the stream
    list(events)


def test_a_thread_that_ends_without_a_word_is_dead(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sinkscope.jobs.runner._worked", lambda *_: None)
    events = runner.run(runner.job("a", "answer"), lambda job: None)
    with pytest.raises(WorkerLostError, match="dead"):
        for _ in events:
            assert runner.stuck == ("the thread of a job (answer) is dead",)
