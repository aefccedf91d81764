"""Laws that the method obeys on any attention, as property tests."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config import VARSettings
from redistribution.intervention import VARIntervention
from redistribution.sinks import sink_mask, sink_score
from var_patch import redistribute, select_rows

laws = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


@dataclasses.dataclass(frozen=True)
class Case:
    weights: torch.Tensor
    sinks: torch.Tensor
    vision: torch.Tensor
    settings: VARSettings
    first_query: int


@st.composite
def cases(draw: st.DrawFn, heads: int | None = None) -> Case:
    """Sharp random rows, causal or not, with random sinks and a vision span or two."""
    batch, keys = draw(st.integers(1, 3)), draw(st.integers(2, 24))
    heads = heads or draw(st.integers(1, 4))
    queries = draw(st.integers(1, keys))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    scores = torch.randn(batch, heads, queries, keys, generator=generator, dtype=torch.float64)
    scores = scores * draw(st.sampled_from([0.1, 1.0, 4.0, 30.0]))
    if draw(st.booleans()):
        position = torch.arange(keys - queries, keys)
        scores = scores.masked_fill(torch.arange(keys) > position[:, None], float("-inf"))
    sinks = torch.rand(batch, keys, generator=generator) < draw(st.sampled_from([0, 0.1, 0.5, 1.0]))
    vision = torch.rand(batch, keys, generator=generator) < draw(st.sampled_from([0.3, 0.8, 1.0]))
    own = VARSettings(
        dims=(0,),
        keep=draw(st.sampled_from([0.0, 0.3, 0.6, 0.99])),
        max_sink_share=draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])),
        min_image_mass=draw(st.sampled_from([0.0, 0.2, 0.7])),
        dialect=draw(st.sampled_from(["official", "paper"])),
    )
    return Case(torch.softmax(scores, -1), sinks, vision, own, draw(st.integers(0, queries)))


def run(case: Case, **change: object) -> torch.Tensor:
    case = dataclasses.replace(case, **change)  # type: ignore[arg-type]
    return redistribute(case.weights, case.sinks, case.vision, case.settings, case.first_query)


@laws
@given(cases())
def test_rows_keep_their_sum_and_stay_probabilities(case: Case) -> None:
    new = run(case)
    assert torch.allclose(new.sum(-1), case.weights.sum(-1), rtol=0, atol=1e-12)
    assert (new >= 0).all()


@laws
@given(cases())
def test_keep_1_is_the_identity(case: Case) -> None:
    assert torch.equal(
        run(case, settings=dataclasses.replace(case.settings, keep=1.0)), case.weights
    )


@laws
@given(cases())
def test_no_sinks_is_the_identity(case: Case) -> None:
    assert torch.equal(run(case, sinks=torch.zeros_like(case.sinks)), case.weights)


@laws
@given(cases())
def test_an_image_of_sinks_alone_changes_nothing(case: Case) -> None:
    assert torch.equal(run(case, sinks=case.sinks | case.vision), case.weights)


@laws
@given(cases(heads=4), st.permutations(range(4)))
def test_permuting_heads_commutes(case: Case, order: list[int]) -> None:
    permuted = run(case, weights=case.weights[:, order])
    assert torch.equal(permuted, run(case)[:, order])


@laws
@given(cases())
def test_batch_rows_do_not_mix(case: Case) -> None:
    whole = run(case)
    for row in range(case.weights.shape[0]):
        one = slice(row, row + 1)
        alone = run(case, weights=case.weights[one], sinks=case.sinks[one], vision=case.vision[one])
        assert torch.equal(whole[one], alone)


@laws
@given(cases())
def test_rows_before_the_first_query_stay(case: Case) -> None:
    new = run(case)
    assert torch.equal(new[:, :, : case.first_query], case.weights[:, :, : case.first_query])
    later = run(case, first_query=0)
    assert torch.equal(new[:, :, case.first_query :], later[:, :, case.first_query :])


@laws
@given(cases())
def test_what_changes_is_selected_and_moves_from_sinks_to_the_image(case: Case) -> None:
    new = run(case, first_query=0)
    selected = select_rows(case.weights, case.sinks, case.vision, case.settings)
    changed = (new != case.weights).any(-1)
    assert not (changed & ~selected).any()
    sinks = case.sinks[:, None, None, :]
    targets = (case.vision & ~case.sinks)[:, None, None, :]
    rise = new - case.weights
    assert (rise.masked_fill(~sinks, 0) <= 0).all()
    assert (rise.masked_fill(~targets, 0) >= 0).all()
    others = ~sinks & ~targets
    assert (rise.masked_fill(~others, 0) == 0).all()
    kept = (case.weights * case.settings.keep - new).masked_fill(~sinks, 0)
    assert (kept.abs().masked_fill(~changed[..., None], 0) <= 1e-12).all()


@laws
@given(cases())
def test_the_input_is_not_written_to(case: Case) -> None:
    before = case.weights.clone()
    run(case)
    assert torch.equal(case.weights, before)


@laws
@given(cases(), st.sampled_from([torch.float16, torch.bfloat16]))
def test_half_precision_differs_by_storage_rounding_alone(case: Case, dtype: torch.dtype) -> None:
    half = case.weights.to(dtype)
    new = run(case, weights=half)
    assert new.dtype == dtype
    wide = run(case, weights=half.float())
    assert torch.equal(new, wide.to(dtype))


@laws
@given(st.integers(0, 2**20), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_the_sink_score_is_bounded_and_scale_free(seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(3, 5, 16, generator=generator).to(dtype)
    hidden[0, 0, 3] = 6e4  # its square overflows float16
    score = sink_score(hidden, (3, 7))
    assert score.dtype == torch.float32
    assert (score >= 0).all()
    assert (score <= 4 + 1e-5).all()  # sqrt(16)
    assert score[0, 0] == pytest.approx(4, abs=1e-3)
    assert torch.equal(sink_mask(hidden, (3, 7), 3.0), score > 3.0)
    exact = float(score[1, 1])
    paper, official = (sink_mask(hidden, (3, 7), exact, d)[1, 1] for d in ("paper", "official"))
    assert (bool(paper), bool(official)) == (True, False)


@laws
@given(cases())
def test_the_running_form_equals_the_dense_one(case: Case) -> None:
    """`VARIntervention.rows` on sinks that it found itself, at decode."""
    keys = case.weights.shape[3]
    vision = torch.zeros(keys, dtype=torch.bool)
    vision[: keys // 2 + 1] = True
    hidden = torch.ones(1, keys, 4)
    hidden[0, case.sinks[0], 0] = 50.0
    own = dataclasses.replace(case.settings, tau=1.5, layers=(0,))
    run_of = VARIntervention([own], vision, 1, keys + 3)
    run_of.observe(0, hidden, 0)
    row = case.weights[:1, :, -1:]
    new = run_of.rows(0, row, keys - 1)
    expected = redistribute(row, case.sinks[:1], vision[None], own) if keys - 1 > keys // 2 else row
    assert torch.allclose(new, expected, rtol=0, atol=1e-12)
