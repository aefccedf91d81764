"""The order of the queue: sessions take turns, and none has more than its share of places."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from sinkscope.jobs.job_queue import JobQueue, QueueFullError


class Queued:
    """Places in the queue by name; the first letter is the session."""

    def __init__(self, line: JobQueue) -> None:
        self.line = line
        self.stacks: dict[str, ExitStack] = {}
        self.before: dict[str, object] = {}

    def come(self, *names: str) -> None:
        for name in names:
            stack = self.stacks[name] = ExitStack()
            self.before[name] = stack.enter_context(self.line.place(name[0]))

    def go(self, name: str) -> None:
        self.stacks.pop(name).close()
        del self.before[name]

    def order(self) -> str:
        places = {self.before[name](0): name for name in self.before}  # type: ignore[operator]
        assert sorted(places) == list(range(len(places)))
        return " ".join(places[n] for n in sorted(places))


@contextmanager
def queued(line: JobQueue) -> Iterator[Queued]:
    made = Queued(line)
    try:
        yield made
    finally:
        for stack in made.stacks.values():
            stack.close()
        assert line.length == 0 and not line._served


def test_a_session_with_many_jobs_delays_another_by_one() -> None:
    with queued(JobQueue(20)) as line:
        line.come("a1", "a2", "a3", "a4", "b1", "b2")
        assert line.order() == "a1 b1 a2 b2 a3 a4"
        line.go("a1")
        assert line.order() == "b1 a2 b2 a3 a4"
        line.come("c1")
        assert line.order() == "b1 a2 b2 c1 a3 a4"
        line.go("b1")
        assert line.order() == "a2 b2 c1 a3 a4"
        line.go("c1")  # it leaves before its turn
        assert line.order() == "a2 b2 a3 a4"


def test_sessions_that_are_new_each_time_do_not_hold_up_one_that_waits() -> None:
    with queued(JobQueue(20)) as line:
        line.come("a1", "a2", "b1")
        line.go("a1")
        line.come("c1", "d1")
        line.go("b1")
        assert line.order() == "a2 c1 d1"


def test_one_session_has_its_share_of_the_line() -> None:
    with queued(JobQueue(20, share=2)) as line:
        line.come("a1", "a2", "a3")
        with pytest.raises(QueueFullError, match=r"2 runs of this session .* allowed: 2"):
            line.come("a4")
        line.come("b1", "b2")
        line.go("a1")
        line.go("b1")
        line.come("b3")


def test_the_line_is_as_long_as_it_may_be() -> None:
    with queued(JobQueue(2)) as line:
        line.come("a1", "b1", "c1")
        with pytest.raises(QueueFullError, match="3 runs are waiting"):
            line.come("d1")


def test_jobs_of_nobody_share_with_no_other() -> None:
    line = JobQueue(9, share=1)
    with line.place(), line.place(), line.place(None), line.place("") as last:
        assert last(0) == 3
