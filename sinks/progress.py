"""What long runs over many samples share: how they tell their progress and how they stop."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]  # done, total, what is being done


class Stopped(Exception):  # noqa: N818  (no error: the user asked for it)
    """The run was asked to stop and did, after the sample (or batch) it was at.

    What was measured lies in the work folder, if one was given; the same call takes it from there.

    Attributes:
        done, total: samples measured so far, and samples in all.
    """

    def __init__(self, done: int, total: int) -> None:
        super().__init__(f"Stopped after {done} of {total} samples.")
        self.done, self.total = done, total
