"""Reduction, decision and tau on made-up statistics: hand-computed cases."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from sinkscope.sinks.finding.calibrate import (
    calibrate,
    flagged_shares,
    histograms,
    origins,
    phi_edges,
    sweep,
)
from sinkscope.sinks.finding.decide import decide, halvings, longest_run, resamplings, runs
from sinkscope.sinks.finding.reduce import totals, tracked, worth_tracking
from sinkscope.sinks.finding.stats import SampleStats
from sinkscope.sinks.settings import FindSettings

D, L, V = 100, 4, 20
SETTINGS = FindSettings(bootstrap=1000, halves=20)
MAGNITUDE = SETTINGS.min_magnitude(D)


def sample_stats(name: str = "a", **changed: torch.Tensor) -> SampleStats:
    """One sample in which one of 20 tokens stands out in each layer and no dimension is large."""
    group = torch.ones(L, V, dtype=torch.uint8)
    group[:, 0] = 2
    some = {field: torch.full((L, D), 0.5) for field in ("sink", "ordinary", "first", "text_max")}
    values: dict[str, Any] = {
        **some,
        "prominence": torch.full((L, D), 0.6),
        "ordinary_prominence": torch.full((L, D), 0.6),
        "first_prominence": torch.full((L, D), 0.6),
        "ordinary_square": torch.full((L, D), 0.34),
        "ordinary_max": torch.full((L, D), 2.0),
        "massive": torch.zeros(L, D, dtype=torch.int32),
        "received": torch.ones(L, V),
        "ratio": torch.ones(L, V),
        "group": group,
        "rms": torch.ones(L, V),
        "top_dims": torch.arange(16, dtype=torch.int32).repeat(L, V, 1) + 50,
        "top_values": torch.linspace(2, 1, 16).repeat(L, V, 1),
    }
    return SampleStats(name, "f", ("i",), tuple(range(L)), ((4, 5),), **{**values, **changed})


def with_dim(dim: int, layers: slice, size: float = 8.0, **also: torch.Tensor) -> SampleStats:
    """A sample in whose layers a dimension marks the token that stands out."""
    plain = sample_stats()
    sink, prominence = plain.sink.clone(), plain.prominence.clone()
    dims, values = plain.top_dims.clone(), plain.top_values.clone()
    sink[layers, dim], prominence[layers, dim] = size, 50.0
    dims[layers, 0, 0], values[layers, 0, 0] = dim, size
    return replace(
        plain, sink=sink, prominence=prominence, top_dims=dims, top_values=values, **also
    )


def decided(stats: list[SampleStats], settings: FindSettings = SETTINGS) -> dict[int, bool]:
    total = totals(stats, settings, D)
    dims = worth_tracking(total, settings, MAGNITUDE)
    values = tracked(stats, dims, settings, MAGNITUDE)
    decision = decide(total, values, settings, MAGNITUDE)
    return dict(zip(dims, decision.found.tolist(), strict=True))


def test_a_dimension_needs_enough_consecutive_layers() -> None:
    assert decided([with_dim(7, slice(1, 3))] * 6) == {7: True}
    assert decided([with_dim(7, slice(1, 2))] * 6) == {7: False}
    apart = [replace(with_dim(7, slice(0, 4, 2)))] * 6  # layers 0 and 2
    assert decided(apart) == {7: False}
    assert decided(apart, replace(SETTINGS, min_layers=1)) == {7: True}


def test_large_everywhere_marks_nothing() -> None:
    ordinary = sample_stats().ordinary_prominence.clone()
    ordinary[:, 7] = 40.0  # 50 on what stands out
    assert decided([with_dim(7, slice(0, 4), ordinary_prominence=ordinary)] * 6) == {7: False}


def test_large_but_not_isolated_is_no_sink_dimension() -> None:
    crowd = replace(with_dim(7, slice(0, 4)), prominence=torch.full((L, D), 8.0))
    assert decided([crowd] * 6) == {7: False}


def test_a_minority_of_samples_decides_nothing_however_large() -> None:
    stats = [with_dim(7, slice(0, 4), size=9.9)] * 4 + [sample_stats()] * 5
    assert decided(stats) == {7: False}
    assert decided(stats, replace(SETTINGS, min_consistency=0.4, min_share=0.2)) == {7: False}


def test_the_lower_end_of_the_interval_decides_not_the_mean() -> None:
    """7 of 12 samples have 8, the rest 0.5: the mean is 4.9, above the required 3.8, and its
    interval extends 2.1 to each side."""
    stats = [with_dim(7, slice(0, 4))] * 7 + [sample_stats()] * 5
    total = totals(stats, SETTINGS, D)
    assert float(total.sink[0, 7]) == pytest.approx((7 * 8 + 5 * 0.5) / 12)
    values = tracked(stats, (7,), SETTINGS, MAGNITUDE)
    decision = decide(total, values, SETTINGS, MAGNITUDE)
    low, high = float(decision.sink_low[0, 0]), float(decision.sink_high[0, 0])
    deviation = 7.5 * math.sqrt(7 * 5 / 144 / 12)
    assert low == pytest.approx(4.875 - 1.96 * deviation, abs=0.45)
    assert high == pytest.approx(4.875 + 1.96 * deviation, abs=0.45)
    assert float(total.sink[0, 7]) > MAGNITUDE > low and not bool(decision.passes.any())


def test_a_sample_without_sinks_counts_against_consistency_and_not_in_the_mean() -> None:
    group = torch.ones(L, V, dtype=torch.uint8)
    none = sample_stats("b", group=group, sink=torch.zeros(L, D), prominence=torch.zeros(L, D))
    total = totals([with_dim(7, slice(0, 4)), none], SETTINGS, D)
    assert total.with_sinks.tolist() == [1] * L
    assert float(total.sink[0, 7]) == 8.0 and float(total.consistency[0, 7]) == 0.5
    assert float(total.contrast[0, 7]) == pytest.approx(50 / 0.6)
    assert float(total.ordinary_spread[0, 7]) == pytest.approx(0.3, abs=1e-6)


def test_resamplings_and_halvings() -> None:
    drawn = resamplings(7, 500, 0)
    assert drawn.shape == (500, 7) and drawn.sum(-1).eq(7).all()
    assert drawn.mean() == 1 and torch.equal(drawn, resamplings(7, 500, 0))
    halves = halvings(7, 10, 0)
    assert halves.sum(-1).tolist() == [3.0] * 10 + [4.0] * 10
    assert (halves[:10] + halves[10:]).eq(1).all()


def test_runs() -> None:
    assert runs([True, False, True, True]) == [(0, 1), (2, 4)]
    assert runs([]) == runs([False]) == []
    passes = torch.tensor([[1, 0], [1, 0], [0, 0], [1, 1]], dtype=torch.bool)
    assert longest_run(passes).tolist() == [2, 1]


def test_chance_is_below_the_magnitude_of_any_size() -> None:
    for size in (64, 256, 1024, 3584, 8192):
        magnitude = FindSettings(min_share=0.01).min_magnitude(size)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(200, size, generator=generator)
        largest = (x.abs() / x.square().mean(-1, keepdim=True).sqrt()).amax(-1)
        assert float(largest.mean()) < magnitude < math.sqrt(size)


def test_phi_is_exact_above_the_kth_value_and_bounded_below() -> None:
    stats = with_dim(7, slice(1, 3))
    phi = stats.phi((7, 99))
    assert phi[1, 0] == 8.0 and phi[0, 0] == 1.0  # 1 is the 16th largest of the token
    assert stats.phi((50, 7))[1, 0] == 8.0 and stats.phi((50,))[0, 3] == 2.0


def test_tau_lies_between_ordinary_tokens_and_sinks() -> None:
    stats = [with_dim(7, slice(0, 4), size=8.0)] * 8 + [sample_stats()] * 2
    histogram = histograms(stats, (7,), D)
    assert histogram.vision.sum(-1).tolist() == [10 * V] * L
    found = calibrate(histogram, [1, 2])
    # Ordinary tokens are at 1.0, sinks at 8.0; a fifth of the tokens that stand out are not sinks.
    assert found.gap[0] == pytest.approx(1.0) and found.gap[1] == pytest.approx(8.0, abs=0.06)
    assert found.tau == pytest.approx(4.5, abs=0.1)
    assert found.sinks == 0.8 and found.ordinary == 0.0
    points = sweep(histogram, [1, 2], found.tau)
    own = next(p for p in points if p.tau == found.tau)
    assert own.flagged == pytest.approx(8 / (10 * V)) and own.by_layer == (own.flagged,) * L
    assert [p.flagged for p in points] == sorted((p.flagged for p in points), reverse=True)


def test_tau_ignores_sinks_among_the_ordinary_tokens() -> None:
    several = with_dim(7, slice(0, 4))
    dims, values = several.top_dims.clone(), several.top_values.clone()
    dims[:, 1:3, 0], values[:, 1:3, 0] = 7, 8.0  # not chosen, for more than top_percent are sinks
    stats = [replace(several, top_dims=dims, top_values=values)] * 5
    assert calibrate(histograms(stats, (7,), D), [0]).tau == pytest.approx(4.5, abs=0.1)


def test_edges_reach_the_largest_phi_in_readable_steps() -> None:
    for size in (64, 256, 3584, 8192):
        edges = phi_edges(size)
        assert edges[-1] >= math.sqrt(size) > edges[-2] and len(edges) <= 241
    assert flagged_shares(torch.tensor([1, 2, 1])).tolist() == [1.0, 0.75, 0.25, 0.0]


def test_origin_is_the_first_layer_at_whose_input_a_token_is_a_sink() -> None:
    early, late = with_dim(7, slice(0, 4)), with_dim(7, slice(2, 4))
    found = origins([early, late, late], (7,), 4.5, [2, 3])
    assert [(o.layer, o.tokens) for o in found] == [(0, 1), (2, 2)]
    assert sum(o.share for o in found) == pytest.approx(1.0)
