"""Right-or-wrong items that do not depend on each other: intervals, test, power; and Holm's
correction.

n items, of which the second method fixes b, breaks c, and leaves the rest unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sinkscope.evaluation.statistics.settings import ALPHA, CONFIDENCE

POWER = 0.8


@dataclass(frozen=True)
class Interval:
    """Ends of a two-sided confidence interval; NaN if there is none."""

    low: float
    high: float


def scipy_stats() -> Any:
    """scipy.stats, imported when it is first needed.

    Raises:
        ValueError: scipy is not installed.
    """
    try:
        from scipy import stats
    except ImportError as error:
        raise ValueError(
            "The statistics need the package scipy: pip install 'sinkscope[eval]'."
        ) from error
    return stats


def wilson(right: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a share (JASA 1927). Unlike the normal one it stays within 0 and 1
    and is not empty at 0 of n."""
    if n <= 0:
        return Interval(math.nan, math.nan)
    interval = scipy_stats().binomtest(right, n).proportion_ci(confidence, method="wilson")
    return Interval(float(interval.low), float(interval.high))


def mcnemar(fixed: int, broken: int) -> float:
    """Two-sided p of McNemar's exact test (Psychometrika 1947): of b + c changed items, b or more
    extreme are fixed, if both directions are equally likely. 1 if nothing changed."""
    if fixed + broken == 0:
        return 1.0
    return float(scipy_stats().binomtest(fixed, fixed + broken, 0.5).pvalue)


def paired_difference(
    both: int, fixed: int, broken: int, neither: int, confidence: float = CONFIDENCE
) -> Interval:
    """Interval of the difference (b - c) / n of two shares on the same items: Newcombe's method 10
    (Statistics in Medicine 17, 1998), from Wilson's intervals of both and their correlation."""
    n = both + fixed + broken + neither
    if n == 0:
        return Interval(math.nan, math.nan)
    second, first = (both + fixed) / n, (both + broken) / n
    of_second = wilson(both + fixed, n, confidence)
    of_first = wilson(both + broken, n, confidence)
    margins = (both + fixed) * (broken + neither) * (both + broken) * (fixed + neither)
    product = float(both * neither - fixed * broken)
    if product > 0:
        product = max(product - n / 2, 0.0)
    phi = product / math.sqrt(margins) if margins else 0.0

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(one**2 - 2 * phi * one * other + other**2, 0.0))

    low = reach(second - of_second.low, of_first.high - first)
    high = reach(of_second.high - second, first - of_first.low)
    return Interval(second - first - low, second - first + high)


def detectable_share(changed: int, n: int, alpha: float = ALPHA, power: float = POWER) -> float:
    """The smallest true difference of two shares that McNemar's test on n such items shows with
    this power, if as many items change as did here.

    Connor (Biometrics 1987): n D^2 = (z_a sqrt(d) + z_b sqrt(d - D^2))^2, with d the share of
    changed items; one more is added to these, so that "nothing changed" is not taken for certainty.
    Never less than what the exact test can show at all: at alpha 0.05 six items changed, all in one
    direction.
    """
    if n <= 0:
        return math.nan
    norm = scipy_stats().norm
    share = min((changed + 1) / (n + 1), 1.0)
    z_alpha, z_power = float(norm.ppf(1 - alpha / 2)), float(norm.ppf(power))

    def enough(difference: float) -> bool:
        rest = math.sqrt(max(share - difference**2, 0.0))
        wanted = z_alpha * math.sqrt(share) + z_power * rest
        return n * difference**2 >= wanted**2

    fewest = math.ceil(math.log2(2 / alpha)) / n
    low, high = 0.0, math.sqrt(share)
    if not enough(high):
        return 1.0 if fewest > 1 else max(high, fewest)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return min(max(high, fewest), 1.0)


def detectable(error: float, alpha: float = ALPHA, power: float = POWER) -> float:
    """The smallest true difference that a test at `alpha` shows with this power, where the
    difference has this standard error: (z_(1 - alpha/2) + z_power) x error."""
    norm = scipy_stats().norm
    return float(norm.ppf(1 - alpha / 2) + norm.ppf(power)) * error


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Scandinavian Journal of Statistics 1979): p-values that hold for
    all of them at once, in the order given. NaN stays NaN and does not count."""
    order = sorted((i for i, p in enumerate(values) if not math.isnan(p)), key=lambda i: values[i])
    adjusted, highest = [math.nan] * len(values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * values[i]))
        adjusted[i] = highest
    return adjusted
