"""Intervals, tests and power against hand-computed and published values, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sinkscope.evaluation.statistics.intervals import (
    detectable,
    detectable_share,
    holm,
    mcnemar,
    paired_difference,
    wilson,
)


@pytest.mark.parametrize(("right", "n"), [(8, 10), (0, 10), (10, 10), (611, 1000), (1, 1)])
def test_wilson_by_its_formula(right: int, n: int) -> None:
    z, p = float(stats.norm.ppf(0.975)), right / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    found = wilson(right, n)
    assert found.low == pytest.approx(centre - half, abs=1e-12)
    assert found.high == pytest.approx(centre + half, abs=1e-12)
    assert 0 <= found.low < found.high <= 1


def test_wilson_of_nothing() -> None:
    assert math.isnan(wilson(0, 0).low)


@pytest.mark.parametrize(
    ("fixed", "broken", "p"),
    [
        (10, 2, 2 * (1 + 12 + 66) / 2**12),
        (0, 5, 2 / 2**5),  # five of five are not enough for 0.05
        (6, 0, 2 / 2**6),
        (3, 3, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_by_the_binomial_sum(fixed: int, broken: int, p: float) -> None:
    assert mcnemar(fixed, broken) == pytest.approx(p)
    assert mcnemar(broken, fixed) == pytest.approx(p)


def test_newcombes_own_example() -> None:
    """Newcombe 1998, method 10, cells 36, 12, 2, 0: 0.0569 to 0.3404."""
    found = paired_difference(36, 12, 2, 0)
    assert (found.low, found.high) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    turned = paired_difference(36, 2, 12, 0)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


def test_nothing_changed_is_no_certainty() -> None:
    found = paired_difference(54, 0, 0, 0)
    assert found.low == pytest.approx(-0.0664, abs=5e-5)
    assert found.high == pytest.approx(0.0664, abs=5e-5)


def test_holm_by_hand() -> None:
    """Sorted 0.01, 0.02, 0.03 x 3, 2, 1 = 0.03, 0.04, 0.03, each at least the one before."""
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    kept = holm([0.02, math.nan, 0.03])
    assert math.isnan(kept[1])
    assert [kept[0], kept[2]] == pytest.approx([0.04, 0.04])


@pytest.mark.parametrize(("n", "changed"), [(200, 40), (1000, 100)])
def test_the_detectable_difference_has_about_the_power_it_promises(n: int, changed: int) -> None:
    """The exact test is slightly conservative, so 0.8 becomes about 0.75; half the difference has
    far less power."""
    rng = np.random.default_rng(7)
    share, d = changed / n, detectable_share(changed, n)

    def power(true: float) -> float:
        cells = rng.multinomial(n, [1 - share, (share + true) / 2, (share - true) / 2], 250)
        return float(np.mean([mcnemar(int(b), int(c)) < 0.05 for _, b, c in cells]))

    assert 0.68 < power(d) < 0.9
    assert power(d / 2) < 0.4


def test_what_a_small_sample_cannot_show() -> None:
    assert detectable_share(0, 20) == pytest.approx(6 / 20)  # six changed items, all one way
    assert detectable_share(5, 5) == 1.0
    assert math.isnan(detectable_share(0, 0))
    assert detectable(0.01) == pytest.approx(0.01 * (1.959964 + 0.841621), rel=1e-5)


def test_false_positives_and_coverage_under_the_null() -> None:
    rng = np.random.default_rng(3)
    cells = rng.multinomial(150, [0.5, 0.1, 0.1, 0.3], 400)
    p = np.array([mcnemar(int(b), int(c)) for _, b, c, _ in cells])
    assert 0.005 < (p < 0.05).mean() < 0.065
    within = [
        (found := paired_difference(*map(int, four))).low <= 0 <= found.high for four in cells
    ]
    assert 0.92 < np.mean(within) < 0.985
