"""The queue of jobs for the model."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sinkscope.jobs.job import Job


class QueueFullError(ValueError):
    """Too many jobs are waiting."""


@dataclass(eq=False)
class _Place:
    owner: object
    arrived: int


class JobQueue:
    """Sessions take turns; the jobs of each session stay in order.

    However many jobs a session has queued, it delays another by at most one job in addition to the
    running one.

    Args:
        longest: how many may wait, in addition to the running one.
        share: how many of one session may wait; None: no limit per session.
    """

    def __init__(self, longest: int, share: int | None = None) -> None:
        self._longest, self._share = longest, share
        self._waiting: list[_Place] = []
        self._turn: _Place | None = None
        self._served: dict[object, int] = {}  # when each queued session had its last turn
        self._counter = itertools.count(1)
        self._changed = threading.Condition()

    @property
    def length(self) -> int:
        """How many wait, not counting the running one."""
        with self._changed:
            return len(self._waiting)

    @contextmanager
    def place(self, owner: str | None = None) -> Iterator[Callable[[float], int]]:
        """A place in the queue; call the returned function to get the number of jobs before it (0:
        its turn).

        Args:
            owner: the job's session; a job without one ("" or None) counts as its own session.

        Raises:
            QueueFullError: more are waiting than is allowed, of all sessions or of this one.
        """
        with self._changed:
            self._check(owner)
            place = _Place(owner or object(), next(self._counter))
            self._waiting.append(place)
            self._advance()

        def before(timeout: float) -> int:
            with self._changed:
                now = self._before(place)
                if now:
                    self._changed.wait_for(lambda: self._before(place) != now, timeout)
                return self._before(place)

        try:
            yield before
        finally:
            with self._changed:
                self._leave(place)

    def _check(self, owner: str | None) -> None:
        if len(self._waiting) >= self._longest and self._turn is not None:
            raise QueueFullError(
                f"{len(self._waiting) + 1} runs are waiting already; try again in a little while."
            )
        of_owner = sum(place.owner == owner for place in self._waiting) if owner else 0
        if self._share is not None and of_owner >= self._share:
            raise QueueFullError(
                f"{of_owner} runs of this session are waiting already; allowed: {self._share}. "
                "Wait for one of them, or stop them."
            )

    def _order(self) -> list[_Place]:
        """The waiting jobs, in the order of service if nothing changes.

        Next is a session other than the running one, if there is one: the one that arrived, or had
        a turn, longest ago. So a series of new sessions cannot block a waiting one.
        """
        places: dict[object, deque[_Place]] = {}
        for place in self._waiting:
            places.setdefault(place.owner, deque()).append(place)
        served = dict(self._served)
        current = None if self._turn is None else self._turn.owner
        order: list[_Place] = []
        now = itertools.count(max([0, *served.values(), *(p.arrived for p in self._waiting)]) + 1)
        while places:
            current = min(
                places,
                key=lambda one: (
                    one == current,
                    max(places[one][0].arrived, served.get(one, 0)),
                ),
            )
            order.append(places[current].popleft())
            served[current] = next(now)
            if not places[current]:
                del places[current]
        return order

    def _before(self, place: _Place) -> int:
        return 0 if place is self._turn else 1 + self._order().index(place)

    def _advance(self) -> None:
        """Give the turn to the next job, if none is running."""
        if self._turn is None and self._waiting:
            self._give_turn(self._order()[0])
        self._changed.notify_all()

    def _give_turn(self, place: _Place) -> None:
        self._waiting.remove(place)
        self._turn = place
        self._served[place.owner] = next(self._counter)

    def _leave(self, place: _Place) -> None:
        if place is self._turn:
            order = self._order()  # records its session's turn
            self._turn = None
            if order:
                self._give_turn(order[0])
        else:
            self._waiting.remove(place)
        if all(one.owner != place.owner for one in (*self._waiting, self._turn) if one):
            self._served.pop(place.owner, None)
        self._changed.notify_all()


def turns(before: Callable[[float], int], job: Job) -> Iterator[int]:
    """The number of jobs before a job, whenever it changes, until it is 0 or the job is stopped."""
    last_position = -1
    while (position := before(0.5)) > 0 and not job.stopped:
        if position != last_position:
            yield position
        last_position = position
