"""Laws of head selection and redistribution, on attention that hypothesis makes up."""

from __future__ import annotations

from dataclasses import dataclass, replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from sinkscope.config import VARSettings
from sinkscope.interventions.var.redistribute import redistribute
from sinkscope.interventions.var.selection import select_rows

law = settings(max_examples=40, deadline=None)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class World:
    """Attention rows (B, H, Q, K) with their masks and settings."""

    weights: Tensor
    sinks: Tensor
    vision: Tensor
    settings: VARSettings

    def apply(self, first_query: int | Tensor = 0) -> Tensor:
        return redistribute(self.weights, self.sinks, self.vision, self.settings, first_query)

    def selected(self) -> Tensor:
        return select_rows(self.weights, self.sinks, self.vision, self.settings)


@st.composite
def worlds(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = DTYPES) -> World:
    """From flat to nearly one-hot attention, any share of sinks and vision tokens, any settings."""
    batch, heads, queries = (draw(st.integers(1, 3)) for _ in range(3))
    keys = draw(st.integers(2, 24))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    scores = torch.randn(batch, heads, queries, keys, generator=generator, dtype=torch.float64)
    sharpness = draw(st.sampled_from((0.0, 1.0, 5.0, 40.0)))
    dtype = draw(st.sampled_from(dtypes))

    def mask(share: float) -> Tensor:
        return torch.rand(batch, keys, generator=generator) < share

    unit = st.sampled_from((0.0, 0.2, 0.5, 0.6, 0.9, 1.0))
    return World(
        torch.softmax(sharpness * scores, -1).to(dtype),
        mask(draw(st.sampled_from((0.0, 0.1, 0.4, 1.0)))),
        mask(draw(st.sampled_from((0.3, 0.7, 1.0)))),
        VARSettings(
            dims=(0,),
            keep=draw(unit),
            max_sink_share=draw(unit),
            min_image_mass=draw(unit),
            dialect=draw(st.sampled_from(("official", "paper"))),
        ),
    )


def slack(dtype: torch.dtype, keys: int) -> float:
    """What rounding each weight of a row once may add up to."""
    return 2 * float(torch.finfo(dtype).eps) * max(1.0, keys**0.5)


@law
@given(worlds())
def test_rows_keep_their_sum_and_sign(world: World) -> None:
    out = world.apply()
    assert out.dtype == world.weights.dtype
    assert bool((out >= 0).all())
    before, after = world.weights.double().sum(-1), out.double().sum(-1)
    assert float((before - after).abs().max()) <= slack(out.dtype, out.shape[3])


@law
@given(worlds())
def test_keep_one_is_the_identity(world: World) -> None:
    whole = replace(world, settings=replace(world.settings, keep=1.0))
    assert torch.equal(whole.apply(), world.weights)


@law
@given(worlds())
def test_no_sinks_is_the_identity(world: World) -> None:
    without = replace(world, sinks=torch.zeros_like(world.sinks))
    assert torch.equal(without.apply(), world.weights)
    assert not without.selected().any()


@law
@given(worlds())
def test_an_image_of_sinks_alone_changes_nothing(world: World) -> None:
    everything = replace(world, sinks=world.sinks | world.vision)
    assert torch.equal(everything.apply(), world.weights)


@law
@given(worlds())
def test_sinks_fall_targets_rise_the_rest_stays(world: World) -> None:
    out, changed = world.apply().double(), world.selected()[..., None]
    weights = world.weights.double()
    sinks = world.sinks[:, None, None]
    targets = (world.vision & ~world.sinks)[:, None, None]
    room = slack(world.weights.dtype, 1)
    assert bool((out <= weights + room)[(sinks & torch.ones_like(changed)).expand_as(out)].all())
    assert bool((out >= weights - room)[(targets & torch.ones_like(changed)).expand_as(out)].all())
    alone = (~sinks & ~targets) | ~changed
    assert torch.equal(out[alone.expand_as(out)], weights[alone.expand_as(out)])


@law
@given(worlds(dtypes=(torch.float64,)))
def test_what_the_method_says_row_by_row(world: World) -> None:
    """The definition again, one row at a time in plain Python numbers."""
    own = world.settings
    out, selected = world.apply(), world.selected()
    for b, h, q in torch.cartesian_prod(*(torch.arange(n) for n in selected.shape)).tolist():
        row = world.weights[b, h, q].tolist()
        sinks, vision = world.sinks[b].tolist(), world.vision[b].tolist()
        image = sum(a for a, v in zip(row, vision, strict=True) if v)
        on_visual = sum(a for a, s, v in zip(row, sinks, vision, strict=True) if s and v)
        # Summed by itself: as a difference it would have few digits left where sinks hold all.
        targets = sum(a for a, s, v in zip(row, sinks, vision, strict=True) if v and not s)
        if own.dialect == "official":
            margin = own.max_sink_share - on_visual / (image + 1e-6 * sum(vision) + 1e-300)
            acts = any(s and v for s, v in zip(sinks, vision, strict=True))
        else:
            margin = targets / image - (1 - own.max_sink_share) if image else -1.0
            acts = any(sinks)
        near = min(abs(margin), abs(image - own.min_image_mass)) < 1e-9
        if not near:
            assert selected[b, h, q] == (acts and margin >= 0 and image >= own.min_image_mass)
        if not selected[b, h, q] or targets < 1e-12:
            continue
        freed = (1 - own.keep) * sum(a for a, s in zip(row, sinks, strict=True) if s)
        expected = [
            own.keep * a if s else a * (1 + freed / targets) if v else a
            for a, s, v in zip(row, sinks, vision, strict=True)
        ]
        assert out[b, h, q].tolist() == pytest.approx(expected, abs=1e-12)


@law
@given(worlds(), st.permutations([0, 1, 2]))
def test_permuting_heads_commutes(world: World, three: list[int]) -> None:
    order = [head for head in three if head < world.weights.shape[1]]
    permuted = replace(world, weights=world.weights[:, order])
    assert torch.equal(permuted.apply(), world.apply()[:, order])


@law
@given(worlds())
def test_batch_rows_do_not_mix(world: World) -> None:
    together = world.apply()
    for b in range(world.weights.shape[0]):
        one = slice(b, b + 1)
        alone = replace(
            world, weights=world.weights[one], sinks=world.sinks[one], vision=world.vision[one]
        )
        assert torch.equal(alone.apply(), together[one])


@law
@given(worlds(), st.integers(0, 4))
def test_rows_before_first_query_stay(world: World, first: int) -> None:
    out = world.apply(first)
    assert torch.equal(out[:, :, :first], world.weights[:, :, :first])
    assert torch.equal(out[:, :, first:], world.apply()[:, :, first:])
    each = torch.arange(world.weights.shape[0]) + first
    for b, row in enumerate(each.tolist()):
        assert torch.equal(world.apply(each)[b], world.apply(row)[b])


@law
@given(worlds(dtypes=(torch.float64,)))
def test_the_dialects_agree_away_from_the_boundary(world: World) -> None:
    """rho_official = 1 - rho_paper and p_official = 1 - p_paper, which our settings carry already.

    They differ by 1e-6 a vision token in the denominator, in layers with text sinks alone, and in
    rows that do not see the image at all.
    """
    official = replace(world, settings=replace(world.settings, dialect="official"))
    paper = replace(world, settings=replace(world.settings, dialect="paper"))
    vision = world.weights * world.vision[:, None, None]
    share = (vision * world.sinks[:, None, None]).sum(-1) / vision.sum(-1)
    bound = 2e-6 * world.vision.sum(-1)[:, None, None] / vision.sum(-1)
    comparable = ((share - world.settings.max_sink_share).abs() > bound + 1e-9) & (
        world.sinks & world.vision
    ).any(-1)[:, None, None]
    assert torch.equal(official.selected()[comparable], paper.selected()[comparable])
    assert torch.equal(official.apply()[comparable], paper.apply()[comparable])


def test_text_sinks_alone_divide_the_dialects() -> None:
    weights = torch.tensor([[[[0.5, 0.1, 0.2, 0.2]]]])
    sinks = torch.tensor([[True, False, False, False]])
    vision = torch.tensor([[False, True, True, False]])
    own = VARSettings(dims=(0,), keep=0.6)
    assert torch.equal(redistribute(weights, sinks, vision, own), weights)
    out = redistribute(weights, sinks, vision, replace(own, dialect="paper"))
    expected = torch.tensor([0.3, 0.1 + 0.2 / 3, 0.2 + 0.4 / 3, 0.2])
    torch.testing.assert_close(out[0, 0, 0], expected)


def test_thresholds_count_when_met_exactly() -> None:
    """Sums of powers of two are exact, so equality is real here."""
    weights = torch.tensor([[[[0.25, 0.25, 0.5]]]], dtype=torch.float64)
    sinks = torch.tensor([[True, False, False]])
    vision = torch.tensor([[True, True, False]])
    paper = VARSettings(dims=(0,), max_sink_share=0.5, min_image_mass=0.5, dialect="paper")
    assert select_rows(weights, sinks, vision, paper).item()
    above = replace(paper, min_image_mass=0.5 + 1e-12)
    assert not select_rows(weights, sinks, vision, above).item()
    below = replace(paper, max_sink_share=0.5 - 1e-12)
    assert not select_rows(weights, sinks, vision, below).item()
    # official: 1e-6 a vision token in the denominator leaves room below one half
    assert select_rows(weights, sinks, vision, replace(below, dialect="official")).item()
    lower = replace(paper, dialect="official", max_sink_share=0.5 - 2e-6)
    assert not select_rows(weights, sinks, vision, lower).item()
    none = torch.tensor([[[[0.0, 0.5, 0.5]]]], dtype=torch.float64)  # a share of 0, and 0 allowed
    strict = replace(lower, max_sink_share=0.0)
    assert select_rows(none, sinks, vision, strict).item()


def test_rows_of_padding_stay_what_they_are() -> None:
    """A query row that sees nothing is NaN after softmax; it neither changes nor spreads."""
    weights = torch.softmax(torch.randn(1, 1, 3, 6), -1)
    weights[0, 0, 1] = float("nan")
    sinks = torch.tensor([[True, False, True, False, False, False]])
    vision = torch.tensor([[False, False, True, True, True, False]])
    own = VARSettings(dims=(0,), max_sink_share=1.0, min_image_mass=0.0)
    out = redistribute(weights, sinks, vision, own)
    assert out[0, 0, 1].isnan().all()
    assert not out[0, 0, [0, 2]].isnan().any()
    assert not torch.equal(out[0, 0, [0, 2]], weights[0, 0, [0, 2]])


def test_targets_with_next_to_nothing_do_not_overflow() -> None:
    weights = torch.tensor([[[[0.5, 0.5, 1e-41, 0.0]]]])
    sinks = torch.tensor([[True, True, False, False]])
    vision = torch.tensor([[False, True, True, True]])
    own = VARSettings(dims=(0,), max_sink_share=1.0)
    assert torch.equal(redistribute(weights, sinks, vision, own), weights)


def test_the_input_is_not_written_to() -> None:
    weights = torch.softmax(torch.randn(1, 2, 3, 6), -1)
    copy = weights.clone()
    sinks = torch.tensor([[True, False, True, False, False, False]])
    vision = torch.tensor([[False, False, True, True, True, False]])
    own = VARSettings(dims=(0,), max_sink_share=1.0, min_image_mass=0.0)
    assert not torch.equal(redistribute(weights, sinks, vision, own), copy)
    assert torch.equal(weights, copy)


WEIGHTS = torch.full((2, 1, 3, 4), 0.25)
NONE = torch.zeros(2, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("weights", "sinks", "vision", "first", "complaint"),
    [
        (WEIGHTS[0], NONE, NONE, 0, r"weights has shape \(1, 3, 4\)"),
        (WEIGHTS.long(), NONE, NONE, 0, "weights has .*int64"),
        (WEIGHTS, NONE.float(), NONE, 0, "sinks has dtype torch.float32; allowed: torch.bool"),
        (WEIGHTS, NONE, NONE.int(), 0, "vision has dtype torch.int32"),
        (WEIGHTS, NONE[:1], NONE, 0, r"sinks has shape \(1, 4\); allowed.*\(2, 4\)"),
        (WEIGHTS, NONE, NONE[:, :3], 0, r"vision has shape \(2, 3\)"),
        (WEIGHTS, NONE, NONE, -1, "first_query is -1"),
        (WEIGHTS, NONE, NONE, 1.5, "first_query is 1.5"),
        (WEIGHTS, NONE, NONE, torch.tensor([1, 2, 3]), "first_query has shape"),
        (WEIGHTS, NONE, NONE, torch.tensor([0.5, 1.0]), "first_query has .*float32"),
    ],
)
def test_bad_input_is_named(
    weights: Tensor, sinks: Tensor, vision: Tensor, first: int | Tensor, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        redistribute(weights, sinks, vision, VARSettings(dims=(0,)), first)
