"""The paired cluster bootstrap: against hand-made resampling, exact values, and by simulation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from sinkscope.evaluation.metrics.accuracy import Accuracy
from sinkscope.evaluation.metrics.tally import Array, Tally, ratio
from sinkscope.evaluation.statistics.bootstrap import (
    p_value,
    percentiles,
    resample,
    standard_error,
)
from tests.evaluation.metrics.made_up import judged, right_or_wrong


def _mean(of: Mapping[str, Array]) -> dict[str, Array]:
    return {"mean": ratio(of["sum"], of["n"])}


def tally(scores: Array) -> Tally:
    """One cluster a row of scores."""
    counts = np.stack([scores.sum(1), np.full(len(scores), scores.shape[1])], axis=1)
    return Tally(tuple(map(str, range(len(scores)))), ("sum", "n"), counts, _mean)


def test_independent_items_have_the_binomials_error() -> None:
    scores = [1.0] * 60 + [0.0] * 40
    draws = resample({"a": Accuracy().tally(right_or_wrong(scores))}, 20000, seed=1)
    values = draws.figures["a"]["accuracy"]
    assert values.mean() == pytest.approx(0.6, abs=0.002)
    assert values.std() == pytest.approx(np.sqrt(0.6 * 0.4 / 100), rel=0.03)


def test_clusters_stay_whole() -> None:
    """Ten clusters of ten equal answers carry the information of ten answers, not of a hundred."""
    given = [
        judged(float(i < 6), cluster=f"c{i}", number=10 * i + j)
        for i in range(10)
        for j in range(10)
    ]
    values = resample({"a": Accuracy().tally(given)}, 20000).figures["a"]["accuracy"]
    assert values.std() == pytest.approx(np.sqrt(0.6 * 0.4 / 10), rel=0.03)


def test_all_methods_are_drawn_alike() -> None:
    """Equal answers have no difference in any draw; answers higher by a constant differ by it."""
    rng = np.random.default_rng(0)
    scores = rng.random((40, 3))
    draws = resample({"a": tally(scores), "b": tally(scores), "c": tally(scores + 1)}, 500)
    assert np.abs(draws.difference("b", "a", "mean")).max() == 0
    assert draws.difference("c", "a", "mean") == pytest.approx(np.ones(500))
    assert p_value(draws.difference("b", "a", "mean")) == 1
    assert p_value(draws.difference("c", "a", "mean")) == pytest.approx(2 / 501)


def test_it_has_the_distribution_of_drawing_one_by_one() -> None:
    """Equal clusters are drawn together; a plain loop over clusters gives the same quantiles."""
    rng = np.random.default_rng(5)
    a, b = rng.integers(0, 2, (30, 2)).astype(float), rng.integers(0, 2, (30, 2)).astype(float)
    fast = resample({"a": tally(a), "b": tally(b)}, 20000, seed=2).difference("b", "a", "mean")
    drawn = rng.integers(0, 30, (20000, 30))
    slow = (b[drawn].sum((1, 2)) - a[drawn].sum((1, 2))) / 60
    for q in (0.025, 0.25, 0.5, 0.75, 0.975):
        assert np.quantile(fast, q) == pytest.approx(np.quantile(slow, q), abs=0.0168)
    assert fast.std() == pytest.approx(slow.std(), rel=0.03)


def test_the_seed_decides() -> None:
    tallies = {"a": tally(np.random.default_rng(0).random((20, 2)))}
    one, again, other = (resample(tallies, 50, seed).figures["a"]["mean"] for seed in (1, 1, 2))
    assert (one == again).all()
    assert (one != other).any()


def test_clusters_in_another_order_are_aligned_and_others_are_refused() -> None:
    scores = np.random.default_rng(0).random((5, 2))
    turned = Tally(
        ("4", "3", "2", "1", "0"), ("sum", "n"), tally(scores).counts[::-1].copy(), _mean
    )
    draws = resample({"a": tally(scores), "b": turned}, 100)
    assert draws.difference("b", "a", "mean") == pytest.approx(np.zeros(100))
    with pytest.raises(ValueError, match="did not answer the same clusters"):
        resample({"a": tally(scores), "b": tally(scores[:4])}, 100)
    with pytest.raises(ValueError, match="resamples is 0"):
        resample({"a": tally(scores)}, 0)


def test_undefined_draws_are_left_out() -> None:
    values = np.array([np.nan, 1.0, 2.0, 3.0])
    assert percentiles(values, 0.999).low == pytest.approx(1, abs=0.01)
    assert p_value(values) == pytest.approx(2 / 4)
    assert standard_error(values) == 1
    nothing = np.array([np.nan])
    assert np.isnan([percentiles(nothing).low, p_value(nothing), standard_error(nothing)]).all()


def test_coverage_and_false_positives_on_clustered_answers() -> None:
    """60 images with 4 questions each; an image is easy or hard for both methods. The rates are 95
    % and 5 %, up to the error of 400 simulations."""
    rng = np.random.default_rng(11)
    covered = rejected = 0
    for seed in range(400):
        easy = rng.normal(0, 1, 60)[:, None]
        chance = 1 / (1 + np.exp(-0.5 - easy))
        a = (rng.random((60, 4)) < chance).astype(float)
        b = np.where(rng.random((60, 4)) < 0.3, (rng.random((60, 4)) < chance), a).astype(float)
        found = resample({"a": tally(a), "b": tally(b)}, 600, seed).difference("b", "a", "mean")
        interval = percentiles(found)
        covered += interval.low <= 0 <= interval.high
        rejected += p_value(found) < 0.05
    assert 0.91 < covered / 400 < 0.985
    assert 0.02 < rejected / 400 < 0.09
