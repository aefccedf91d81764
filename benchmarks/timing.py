"""Paired timing: rounds of all variants, each compared with the plain run of its own round, so that
other load on the machine affects all of them."""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one run: to the first token, the median of the later tokens, and in total."""

    first: float
    each: float
    total: float


class Clock:
    """CPU time of this process (other programs do not count), or the time on a GPU's own stream."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[float | torch.cuda.Event] = []

    def mark(self) -> None:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.process_time())

    def timing(self) -> Timing:
        """From the marks: start, every token, end."""
        if self._cuda:
            torch.cuda.synchronize()
            start = self._marks[0]
            # On a GPU, all marks are events.
            seconds = [start.elapsed_time(mark) / 1000 for mark in self._marks]  # type: ignore[union-attr, arg-type]
        else:
            # Else all marks are seconds.
            seconds = [mark - self._marks[0] for mark in self._marks]  # type: ignore[operator]
        steps = [b - a for a, b in itertools.pairwise(seconds[1:-1])]
        return Timing(seconds[1], statistics.median(steps), seconds[-1])


def timed(run: Callable[[Callable[[], None]], object], device: torch.device) -> Timing:
    """Time one run; `run` is given a function to call after each token."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
    clock = Clock(device)
    clock.mark()
    run(clock.mark)
    clock.mark()
    return clock.timing()


def rounds(
    runs: Mapping[str, Callable[[Callable[[], None]], object]],
    repeats: int,
    device: torch.device,
    seldom: Sequence[str] = (),
) -> dict[str, list[Timing | None]]:
    """Run everything `repeats` times, interleaved; the order rotates between rounds.

    Args:
        runs: name -> run, which is given a function to call after each token.
        repeats: rounds.
        device: the device that is timed.
        seldom: names that run in every third round only (None in the others): slow ones, whose
            ratio is far from 1.
    """
    timings: dict[str, list[Timing | None]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(repeats):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            skipped = name in seldom and turn % 3
            timings[name].append(None if skipped else timed(runs[name], device))
    return timings


def settle(
    run: Callable[[Callable[[], None]], object],
    device: torch.device,
    most: int,
    within: float = 0.03,
) -> dict[str, float | int | None]:
    """Run until two successive runs take the same time; the first runs of a process are slower.

    Args:
        run: as in `rounds`.
        device: the device that is timed.
        most: maximum number of runs.
        within: relative difference that counts as the same.

    Returns:
        `runs`: how often it ran; `apart`: by how much the last two differed, None for one run.
    """
    last = timed(run, device).total
    apart: float | None = None
    for count in range(2, most + 1):
        now = timed(run, device).total
        last, apart = now, abs(now / last - 1)
        if apart <= within:
            return {"runs": count, "apart": apart}
    return {"runs": most, "apart": apart}


def ratio(
    of: Sequence[Timing | None], to: Sequence[Timing | None], part: str
) -> tuple[float, float]:
    """Compares one `part` of the timings: the median of the ratios within each round, and the ratio
    of the fastest runs, which other programs disturbed least."""
    pairs = [
        (getattr(a, part), getattr(b, part))
        for a, b in zip(of, to, strict=True)
        if a is not None and b is not None
    ]
    fastest = [getattr(timing, part) for timing in to if timing is not None]
    return (
        statistics.median(a / b for a, b in pairs),
        min(a for a, _ in pairs) / min(fastest),
    )


def median(timings: Sequence[Timing | None], part: str) -> float:
    """Median seconds of one part."""
    return float(
        statistics.median(getattr(timing, part) for timing in timings if timing is not None)
    )


def totals(runs: Mapping[str, Sequence[Timing | None]], unit: str) -> dict[str, dict[str, float]]:
    """For each variant its whole time, and the ratio to that of `unit`."""
    result = {}
    for name, timings in runs.items():
        typical, fastest = ratio(timings, runs[unit], "total")
        seconds = median(timings, "total")
        result[name] = {"ratio": typical, "ratio_of_fastest": fastest, "seconds": seconds}
    return result


def noise(timings: Sequence[Timing | None], part: str) -> float | None:
    """How far apart two runs of the same thing are: median of |next / previous - 1|."""
    seconds = [getattr(timing, part) for timing in timings if timing is not None]
    steps = [abs(b / a - 1) for a, b in itertools.pairwise(seconds)]
    return statistics.median(steps) if steps else None


def slope(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Least-squares slope of y over x; None for fewer than two points."""
    if len(set(x)) < 2:
        return None
    return statistics.linear_regression(x, y).slope
