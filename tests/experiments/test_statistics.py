"""Sums, intervals, controls and verdicts on their own, against the same written out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sinkscope.experiments.bootstrap import Interval, Resampling
from sinkscope.experiments.controls import (
    nearest_tokens,
    orthonormal,
    random_basis,
    random_tokens,
)
from sinkscope.experiments.decompose_mlp_in import effective_rank
from sinkscope.experiments.neurons import Energy, JointShares, NoNeuronsError, dims_for, median
from sinkscope.experiments.roles import groups, sinks_of
from sinkscope.experiments.settings import StudySettings, token_groups
from sinkscope.experiments.streaming import (
    BLOCKS,
    Mean,
    Rows,
    Spread,
    Vectors,
    concentration,
)
from sinkscope.experiments.verdict import Causal, is_causal, specific, verdict
from sinkscope.models.family import PromptLayout, Segment
from sinkscope.models.views import ImageGrid, View
from tests.experiments.reference import auc, mean_norm, spread

RESAMPLING = Resampling(6, 400, 0.9, 0)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def test_norm_and_spread_are_those_of_all_vectors_together() -> None:
    samples = [drawn(n, 3, 16, seed=n) + 2 for n in (1, 3, 2)]
    running = Vectors()
    for sample in samples:
        running.add(sample)
    everything = torch.cat(samples)
    for part in range(3):
        vectors = list(everything[:, part])
        assert float(running.norm()[part]) == pytest.approx(mean_norm(vectors), rel=1e-12)
        assert float(running.spread()[part]) == pytest.approx(spread(vectors), rel=1e-12)
        norms = everything[:, part].norm(dim=-1)
        assert float(running.deviation()[part]) == pytest.approx(float(norms.std(correction=0)))


def test_a_spread_knows_its_ends() -> None:
    same, opposite, one = Vectors(), Vectors(), Vectors()
    vector = drawn(1, 9)
    for _ in range(4):
        same.add(3 * vector)  # the direction does not depend on the length
    opposite.add(torch.cat([vector, -vector]))
    one.add(vector)
    assert float(same.spread()) < 1e-12
    assert float(opposite.spread()) == pytest.approx(1 / 3)  # 1 / sqrt(D): they cancel
    with pytest.raises(ValueError, match="needs two or more; there is 1"):
        one.spread()


def test_a_resampled_spread_is_that_of_the_drawn_samples() -> None:
    samples = [drawn(n, 8, seed=n) + 1 for n in (2, 1, 3)]
    kept = Spread()
    for sample in samples:
        kept.add(sample)
    weights = torch.tensor([[1.0, 1, 1], [0, 2, 1], [3, 0, 0]], dtype=torch.float64)
    for row, found in zip(weights.tolist(), kept.resampled(weights), strict=True):
        vectors = [v for w, sample in zip(row, samples, strict=True) for v in int(w) * list(sample)]
        assert float(found) == pytest.approx(spread(vectors), rel=1e-10)


def test_of_many_samples_the_spread_keeps_blocks_and_says_the_same() -> None:
    samples = [drawn(1 + n % 3, 8, seed=n) + 1 for n in range(2 * BLOCKS + 40)]
    kept, few = Spread(), Spread()
    for index, sample in enumerate(samples):
        kept.add(sample)
        if index < BLOCKS:
            few.add(sample)
    resampling = Resampling(len(samples), 300, 0.9, 0)
    found = kept.interval(resampling)
    assert found.value == pytest.approx(spread(list(torch.cat(samples))), rel=1e-10)
    assert found.low < found.value < found.high
    exact = few.interval(Resampling(BLOCKS, 300, 0.9, 0))
    assert exact == Resampling(BLOCKS, 300, 0.9, 0).of(few.resampled)
    # Blocks resample about like samples: with twice the samples, the interval is sqrt(2) narrower.
    ratio = (found.high - found.low) / (exact.high - exact.low)
    assert 0.5 < ratio < 0.95
    assert len(kept._sums) <= BLOCKS


@pytest.mark.parametrize("rank", [1, 2, 12])
def test_rows_that_come_bit_by_bit_decompose_as_all_together(rank: int) -> None:
    left, right = drawn(200, rank), drawn(rank, 12, seed=1)
    g = left @ right
    rows = Rows()
    for part in g.split(7):
        rows.add(part)
        assert sum(map(len, rows._rows)) <= rank + Rows.BLOCK + 7
    singular, vectors = rows.decomposed()
    _, right_values, right_vectors = torch.linalg.svd(g, full_matrices=False)
    assert rows.count == 200 and len(singular) == rank
    torch.testing.assert_close(singular, right_values[:rank], rtol=1e-10, atol=0)
    cosines = (vectors * right_vectors[:rank]).sum(-1).abs()
    torch.testing.assert_close(cosines, torch.ones(rank).double(), rtol=1e-9, atol=0)


def test_a_mean_leaves_out_what_is_no_number() -> None:
    mean = Mean()
    for values in ((1.0, math.nan, math.nan), (3.0, 5.0, math.nan)):
        mean.add(torch.tensor(values))
    assert mean.value()[:2].tolist() == [2, 5] and bool(mean.value()[2].isnan())


def test_concentration_is_not_the_spread() -> None:
    flat, massive = torch.ones(1, 64), torch.ones(1, 64)
    massive[0, 7] = 1000.0
    assert float(concentration(flat)) == pytest.approx(4 / 64)
    assert float(concentration(massive)) > 0.9999


def test_intervals_hold_the_value_and_shrink_with_certainty() -> None:
    values = torch.tensor([1.0, 1.1, 0.9, 1.2, 0.8, 1.0])
    found = RESAMPLING.mean(values)
    assert found.value == pytest.approx(1.0) and found.low < 1 < found.high
    certain = RESAMPLING.mean(torch.ones(6))
    assert (certain.low, certain.high) == (1, 1)
    holed = RESAMPLING.mean(torch.tensor([1.0, math.nan, 1, 1, 1, 1]))
    assert (holed.value, holed.low) == (1, 1)
    ratio = RESAMPLING.ratio(values, 2 * values)
    assert ratio.value == pytest.approx(0.5) and ratio.low == pytest.approx(0.5)
    alone = Resampling(1, 100, 0.95, 0).mean(torch.tensor([3.0]))
    assert alone.value == 3 and math.isnan(alone.low) and str(alone) == "3"


def test_a_random_basis_is_orthogonal_to_the_found_one() -> None:
    found = orthonormal(torch.cat([drawn(20, 3), torch.zeros(20, 1), drawn(20, 3)], 1))
    assert found.shape == (20, 3)  # a zero column and repeated ones span nothing more
    other = random_basis(found, 4)
    torch.testing.assert_close(found.T @ other, torch.zeros(3, 3).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(other.T @ other, torch.eye(3).double(), atol=1e-12, rtol=0)
    assert not torch.equal(other, random_basis(found, 5))
    one, two = drawn(20, 2).unbind(1)
    mixed = orthonormal(torch.stack([one, 2 * one, one + two], 1))  # the second repeats the first
    assert mixed.shape == (20, 2)
    torch.testing.assert_close(mixed @ (mixed.T @ two), two)
    with pytest.raises(ValueError, match="leave no room"):
        random_basis(orthonormal(drawn(5, 3)), 0)
    with pytest.raises(ValueError, match="all zero"):
        orthonormal(torch.zeros(5, 2))


def test_random_and_nearest_tokens() -> None:
    among = list(range(10, 40))
    assert random_tokens(among, 4, 1) == random_tokens(among, 4, 1)
    assert len({random_tokens(among, 4, seed) for seed in range(5)}) > 1
    with pytest.raises(ValueError, match="4 were asked for at random, but there are only 3"):
        random_tokens(among[:3], 4, 0)
    near = nearest_tokens(among, (12, 38), 3, 0)
    assert len(near) == 2 and near[0] <= 15 and near[1] >= 35
    assert nearest_tokens([5], (1, 2), 3, 0) == (5,)


def test_auc_counts_pairs_and_ties_half() -> None:
    above = [torch.tensor([3.0, 1.0]), torch.tensor([2.0])]
    below = [torch.tensor([1.0, 0.5]), torch.tensor([2.0, 2.5])]
    found = specific(above, below, Resampling(2, 200, 0.9, 0))
    assert found.auc.value == pytest.approx(auc([3, 1, 2], [1, 0.5, 2, 2.5]))
    assert found.margin == pytest.approx((1 - 2.5) / float(torch.cat(below).std(correction=0)))
    apart = specific([torch.tensor([9.0])], [torch.tensor([1.0, 2.0])], Resampling(1, 100, 0.9, 0))
    assert apart.auc.value == 1 and apart.margin == pytest.approx(7 / 0.5)


@pytest.mark.parametrize(
    ("removed", "control", "holds"),
    [
        ((0.9, 0.85, 0.95), (0.1, 0.05, 0.15), True),
        ((0.79, 0.7, 0.85), (0.1, 0.05, 0.15), False),  # too little disappears
        ((0.9, 0.85, 0.95), (0.21, 0.2, 0.25), False),  # a control has too large an effect
        ((0.9, 0.1, 1.7), (0.1, 0.0, 0.3), False),  # intervals overlap
        ((0.9, math.nan, math.nan), (0.1, math.nan, math.nan), False),  # one sample
    ],
)
def test_causal_by_the_default_thresholds(removed: tuple, control: tuple, holds: bool) -> None:
    found = Causal(Interval(0.3, 0.2, 0.4), Interval(*removed), {"random": Interval(*control)})
    assert is_causal(found, StudySettings()) is holds
    said = verdict(StudySettings(), "factor", found)
    assert said.causal is holds and said.word == ("open" if holds else "negative")
    assert "80%" in said.thresholds[0] and ("yes" if holds else "no") in said.text[0]


def test_without_an_excess_there_is_nothing_to_take_away() -> None:
    found = Causal(Interval(0.01, -0.02, 0.04), Interval(1.5, 0.9, 2.0), {})
    said = verdict(StudySettings(), "factor", found)
    assert said.word == "negative" and "nothing to take away" in said.text[0]


def test_both_conditions_make_it_positive() -> None:
    causal = Causal(Interval(0.3, 0.2, 0.4), Interval(0.9, 0.85, 0.95), {})
    good = specific([torch.tensor([9.0])] * 2, [torch.tensor([1.0, 2.0])] * 2, RESAMPLING_2)
    bad = specific([torch.tensor([1.0])] * 2, [torch.tensor([1.0, 2.0])] * 2, RESAMPLING_2)
    assert verdict(StudySettings(), "factor", causal, good).word == "positive"
    assert verdict(StudySettings(), "factor", causal, bad).word == "negative"
    assert verdict(StudySettings(), "factor", None, good).word == "open"


RESAMPLING_2 = Resampling(2, 100, 0.9, 0)


def held(samples: list[torch.Tensor], count: int | None) -> JointShares:
    """Two passes over samples of z."""
    energy = Energy()
    for z in samples:
        energy.add(z)
    made = JointShares(energy.order, count)
    for z in samples:
        made.add(z)
    return made


def test_the_top_neurons_are_the_fewest_that_suffice() -> None:
    z = torch.full((1, 128), 0.1)
    z[0, 5], z[0, 9] = 4.0, -5.0
    few, two = held([z], None), held([z], 2)
    assert few.top(0.55, 0).tolist() == [9]
    assert few.top(0.9, 0).tolist() == [9, 5]
    assert two.top(0.55, 0).tolist() == [9, 5]
    with pytest.raises(NoNeuronsError, match=r"layer 3 the 4 strongest hold 97% .* 99% are needed"):
        few.top(0.99, 3)  # 128 / 32
    assert few.enough(0.97) and not few.enough(0.99)
    assert dims_for(z.double(), 0.5).tolist() == [1] and dims_for(z.double(), 0.75).tolist() == [2]


def test_more_neurons_of_a_small_mlp_count_only_if_they_hold_nearly_everything() -> None:
    """Two of 48 random neurons often hold 55 % of the energy, and almost never 90 %."""
    z = torch.full((1, 48), 0.1)
    z[0, 5], z[0, 9] = 4.0, -4.0
    shared = held([z], None)
    assert sorted(shared.top(0.55, 0).tolist()) == [5, 9] and shared.enough(0.55)
    z[0, :5] = 1.2  # the two hold 82 %
    chance = held([z], None)
    assert not chance.enough(0.55)
    with pytest.raises(NoNeuronsError, match=r"the 1 strongest hold 4\d% .* 55% are needed"):
        chance.top(0.55, 0)
    assert sorted(held([z], 2).top(0.55, 0).tolist()) == [5, 9]  # if two are asked for


def test_of_an_even_number_of_samples_the_median_lies_between_the_two_in_the_middle() -> None:
    assert median(torch.tensor([0.9, 0.1, 0.5, 0.6])) == pytest.approx(0.55)
    # Shares of neuron 0; the lower one would not reach 0.55.
    z = [torch.tensor([[strong, 1 - strong]]).sqrt() for strong in (0.5, 0.62)]
    assert held(z, 1).top(0.55, 0).tolist() == [0]


def test_effective_ranks() -> None:
    assert effective_rank(torch.ones(5)) == pytest.approx((5, 5))
    assert effective_rank(torch.tensor([1.0, 0, 0])) == pytest.approx((1, 1))


def layout(length: int = 30, start: int = 4, side: int = 4) -> PromptLayout:
    stop = start + side * side
    view = View(range(start, stop), side, side, (0, 0, 8, 8))
    grid = ImageGrid((view,), (8, 8), (8, 8))
    segments = (
        Segment("system", 0, start),
        Segment("image", start, stop, 0),
        Segment("user", stop, length),
    )
    return PromptLayout(length, segments, (grid,))


def test_sinks_are_flagged_in_half_of_the_layers_that_flag_any() -> None:
    flagged = torch.zeros(6, 5, dtype=torch.bool)
    flagged[0, 3] = True  # before the third layer nothing counts
    flagged[2:5, 0] = True
    flagged[2, 1] = True
    flags = sinks_of(flagged)  # layers 2, 3 and 4 flag any
    assert flags.sinks.tolist() == [True, False, False, False, False]
    assert flags.ordinary.tolist() == [False, False, True, False, True]
    assert not sinks_of(torch.zeros(6, 5, dtype=torch.bool)).sinks.any()


def test_groups_of_a_prompt() -> None:
    flagged = torch.zeros(4, 16, dtype=torch.bool)
    flagged[:, 2] = flagged[:, 9] = True
    tokens = ("sinks", "ordinary", "first", "last", 7)
    found, others = groups(tokens, layout(), sinks_of(flagged), 0)
    assert found["sinks"] == (6, 13) and len(found["ordinary"]) == 2
    assert not set(found["ordinary"]) & {6, 13} and set(found["ordinary"]) <= set(others)
    assert found["first"] == (0,) and found["last"] == (29,) and found["tok7"] == (7,)
    assert set(others) == set(range(4, 20)) - {6, 13}
    with pytest.raises(ValueError, match="tokens has 30, but the prompt has positions 0 to 29"):
        groups((30,), layout(), None, 0)


@pytest.mark.parametrize("wrong", ["sink", "0,0", "", "-1", (1, "x"), (True,), 5])
def test_tokens_that_are_none_are_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"tokens is .*; allowed: sinks, ordinary, first, last"):
        StudySettings(tokens=wrong)  # type: ignore[arg-type]
    assert token_groups("tokens", "sinks, 8") == ("sinks", 8)
