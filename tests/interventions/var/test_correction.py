"""The corrected fused output equals the dense form, in both variants and under any mask."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sinkscope.config import VARSettings
from sinkscope.interventions.var.attention_pass import AttentionPass, MarkedKeys
from sinkscope.interventions.var.correction import Form, correct_output
from sinkscope.interventions.var.redistribute import redistribute
from sinkscope.models import kernels
from sinkscope.models.kernels import attention_rows

SETTINGS = VARSettings(dims=(0,), max_sink_share=0.7, min_image_mass=0.2)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6}


@dataclass(frozen=True)
class Case:
    """One layer's attention: the queries are the last of the keys' positions."""

    query: Tensor
    key: Tensor
    value: Tensor
    sinks: Tensor
    vision: Tensor
    first_query: int
    mask: Tensor | None = None

    @property
    def scaling(self) -> float:
        return float(self.query.shape[-1] ** -0.5)


def make(
    dtype: torch.dtype,
    *,
    spans: tuple[tuple[int, int], ...] = ((8, 72),),
    keys: int = 170,
    queries: int | None = None,
    batch: int = 1,
    planted: bool = True,
    seed: int = 0,
) -> Case:
    """Random attention, 8 / 2 heads; `planted`: sinks that draw attention, one of them late."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    queries = keys if queries is None else queries
    query, key = normal(batch, 8, queries, 16), normal(batch, 2, keys, 16)
    value = normal(batch, 2, keys, 16)
    sinks = torch.zeros(batch, keys, dtype=torch.bool)
    vision = torch.zeros(batch, keys, dtype=torch.bool)
    for low, high in spans:
        vision[:, low:high] = True
    for b in range(batch):
        first = spans[0][0]
        sinks[b, [0, 3, first + 5 + b, first + 20 + 2 * b, keys - 20 - b]] = True
    if planted:
        toward = normal(1, 2, 1, 16)
        toward = toward / toward.norm(dim=-1, keepdim=True)
        query += 3 * toward.repeat_interleave(4, 1)
        key += torch.where(sinks[:, None, :, None], 4.0, 0.0).double() * toward
        key += torch.where((vision & ~sinks)[:, None, :, None], 2.0, 0.0).double() * toward
    return Case(
        query.to(dtype), key.to(dtype), value.to(dtype), sinks, vision, max(h for _, h in spans)
    )


def dense(case: Case, settings: VARSettings) -> tuple[Tensor, Tensor, float]:
    """Plain output, corrected output and largest effect, from the whole attention matrix."""
    start = case.key.shape[2] - case.query.shape[2]
    key = case.key.repeat_interleave(4, 1)
    value = case.value.repeat_interleave(4, 1)
    weights = attention_rows(case.query, key, case.scaling, case.mask, start)
    after = redistribute(
        weights, case.sinks, case.vision, settings, max(0, case.first_query - start)
    )
    plain, changed = weights.to(value.dtype) @ value, after.to(value.dtype) @ value
    return plain, changed, float((plain - changed).abs().max())


def check(case: Case, settings: VARSettings, form: Form, lse: Tensor | None = None) -> None:
    """Compare with the dense form in float64 on the same numbers."""
    plain, _, _ = dense(case, settings)
    wide = Case(
        case.query.double(),
        case.key.double(),
        case.value.double(),
        case.sinks,
        case.vision,
        case.first_query,
        case.mask,
    )
    _, expected, effect = dense(wide, settings)
    given = plain.clone()
    done = correct_output(
        AttentionPass(case.query, case.key, case.value, plain, case.scaling, case.mask),
        MarkedKeys(case.sinks, case.vision),
        settings,
        case.first_query,
        log_sum_exp=lse,
        form=form,
    )
    assert effect > 0.02, "the case does not test anything"
    assert torch.equal(plain, given), "the output given was written to"
    worst = float(((done.output.double() - expected).abs() / expected.abs().clamp_min(1)).max())
    assert worst <= TOLERANCE[case.query.dtype]
    assert torch.equal(
        done.output.masked_fill(done.selected[..., None], 0),
        plain.masked_fill(done.selected[..., None], 0),
    )
    assert bool((done.moved >= 0).all()) and float(done.moved.max()) > 0.01
    assert float(done.moved[~done.selected].abs().sum()) == 0


@pytest.mark.parametrize("form", ["rows", "lse"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("planted", [True, False])
@pytest.mark.parametrize("dialect", ["official", "paper"])
def test_equals_the_dense_form(form: Form, dtype: torch.dtype, planted: bool, dialect: str) -> None:
    settings = replace(SETTINGS, dialect=dialect)
    check(make(dtype, planted=planted), settings, form)


@pytest.mark.parametrize("form", ["rows", "lse"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_batch_rows_with_their_own_sinks_and_two_images(form: Form, dtype: torch.dtype) -> None:
    check(make(dtype, spans=((4, 40), (50, 80)), batch=3), SETTINGS, form)


@pytest.mark.parametrize("form", ["rows", "lse"])
@pytest.mark.parametrize("queries", [100, 98, 97, 70])
def test_queries_behind_a_cached_prefix(form: Form, queries: int) -> None:
    """The image's end, position 72, lies before, at and after the first computed query."""
    check(make(torch.float64, queries=queries), SETTINGS, form)


@pytest.mark.parametrize("form", ["rows", "lse"])
def test_an_image_at_the_very_start(form: Form) -> None:
    check(make(torch.float64, spans=((0, 60),)), SETTINGS, form)


def left_padded(case: Case, pads: tuple[int, ...], additive: bool) -> Case:
    keys, queries = case.key.shape[2], case.query.shape[2]
    position = torch.arange(keys - queries, keys)
    seen = torch.arange(keys) <= position[:, None]
    mask = torch.stack([seen & (torch.arange(keys) >= pad) for pad in pads])[:, None]
    # A row of padding sees nothing; as in transformers its mask is opened, so that no row is NaN.
    mask = mask | ~mask.any(-1, keepdim=True)
    if additive:
        blocked = torch.finfo(case.query.dtype).min
        mask = torch.zeros(mask.shape, dtype=case.query.dtype).masked_fill(~mask, blocked)
    return replace(case, mask=mask)


@pytest.mark.parametrize("form", ["rows", "lse"])
@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_left_padding(form: Form, additive: bool, dtype: torch.dtype) -> None:
    check(left_padded(make(dtype, batch=2), (0, 6), additive), SETTINGS, form)


def test_a_mask_shared_by_the_batch() -> None:
    case = left_padded(make(torch.float64, batch=2), (2,), additive=False)
    assert case.mask is not None and case.mask.shape[0] == 1
    check(case, SETTINGS, "lse")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_log_sum_exp_of_the_first_pass_is_used(dtype: torch.dtype) -> None:
    case = make(dtype)
    key, value = case.key.repeat_interleave(4, 1), case.value.repeat_interleave(4, 1)
    _, lse = kernels.attend_with_lse(case.query, key, value, case.scaling, causal=True)
    check(case, SETTINGS, "lse", lse)
    with pytest.raises(AssertionError):
        check(case, SETTINGS, "lse", lse + 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_no_digits_are_lost_where_sinks_hold_the_image(dtype: torch.dtype) -> None:
    """Targets with only 1e-4 of the image's attention are not computed as a difference."""
    case = make(dtype)
    key = case.key.clone()
    on_image = case.sinks[0] & case.vision[0]
    toward = case.query.mean((0, 1, 2))
    key[:, :, on_image] += 12 * toward / toward.norm()
    settings = replace(SETTINGS, max_sink_share=1.0)
    check(replace(case, key=key), settings, "lse")


def test_queries_inside_the_image_need_rows() -> None:
    """Queries before the image's end see only a part of it; `auto` detects that and stays exact."""
    case = replace(make(torch.float64), first_query=30)
    check(case, SETTINGS, "auto")
    with pytest.raises(ValueError, match="vision token comes after the first query"):
        check(case, SETTINGS, "lse")


def test_a_mask_that_hides_vision_tokens_needs_rows() -> None:
    case = make(torch.float64)
    position = torch.arange(170)
    window = (position <= position[:, None]) & (position > position[:, None] - 110)
    case = replace(case, mask=window[None, None])
    check(case, SETTINGS, "auto")
    with pytest.raises(ValueError, match="hides vision tokens"):
        check(case, SETTINGS, "lse")


def test_more_sinks_than_a_handful_need_rows() -> None:
    case = make(torch.float64, spans=((8, 100),))
    sinks = case.sinks.clone()
    sinks[:, 10:80] = True
    case = replace(case, sinks=sinks)
    check(case, replace(SETTINGS, max_sink_share=1.0), "auto")
    with pytest.raises(ValueError, match="more than 64 sinks"):
        check(case, SETTINGS, "lse")


def test_rows_that_do_not_fit_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinkscope.interventions.var.correction.BLOCK_WEIGHTS", 8 * 170 * 7)
    check(make(torch.float64), SETTINGS, "rows")


@pytest.mark.parametrize("form", ["rows", "lse"])
def test_what_leaves_the_output_alone(form: Form) -> None:
    """No sinks, only sinks, keep = 1, no row after the image: not one bit changes."""
    case = make(torch.float32)
    plain, _, _ = dense(case, SETTINGS)

    def corrected(settings: VARSettings = SETTINGS, **change: object) -> Tensor:
        c = replace(case, **change)  # type: ignore[arg-type]
        return correct_output(
            AttentionPass(c.query, c.key, c.value, plain, c.scaling),
            MarkedKeys(c.sinks, c.vision),
            settings,
            c.first_query,
            form=form,
        ).output

    assert torch.equal(corrected(sinks=torch.zeros_like(case.sinks)), plain)
    some = torch.zeros_like(case.sinks)
    some[:, 12:20] = True
    assert torch.equal(
        corrected(replace(SETTINGS, max_sink_share=1.0), sinks=some, vision=some), plain
    )
    assert torch.equal(corrected(replace(SETTINGS, keep=1.0)), plain)
    assert torch.equal(corrected(first_query=170), plain)
    assert not torch.equal(corrected(), plain)


@pytest.mark.parametrize("form", ["rows", "lse"])
def test_half_precision_is_corrected_to_storage_rounding(form: Form) -> None:
    case = make(torch.bfloat16)
    wide = replace(
        case, query=case.query.double(), key=case.key.double(), value=case.value.double()
    )
    plain, expected, effect = dense(wide, SETTINGS)
    out = correct_output(
        AttentionPass(case.query, case.key, case.value, plain.bfloat16(), case.scaling),
        MarkedKeys(case.sinks, case.vision),
        SETTINGS,
        case.first_query,
        form=form,
    ).output
    assert out.dtype == torch.bfloat16
    error = (out.double() - expected).abs() / expected.abs().clamp_min(1)
    assert effect > 0.1
    assert float(error.max()) < 2**-7


def test_auto_takes_the_faster_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many rows use log-sum-exps, few use rows; the two differ only in their last bits."""
    taken: list[int] = []
    real = kernels.attend_with_lse

    def counted(query: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        taken.append(query.shape[2])
        return real(query, *args, **options)

    monkeypatch.setattr(kernels, "attend_with_lse", counted)
    check(make(torch.float64), SETTINGS, "auto")
    assert taken and set(taken) == {170 - 72}
    taken.clear()
    check(make(torch.float64, queries=20), SETTINGS, "auto")
    assert not taken


def test_wrong_masks_are_refused() -> None:
    case = make(torch.float32)
    attended = AttentionPass(case.query, case.key, case.value, torch.zeros_like(case.query), 1.0)
    with pytest.raises(ValueError, match="sinks has dtype"):
        correct_output(attended, MarkedKeys(case.sinks.float(), case.vision), SETTINGS)
    with pytest.raises(ValueError, match="vision has shape"):
        correct_output(attended, MarkedKeys(case.sinks, case.vision[:, :-1]), SETTINGS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("queries", [170, 100])
def test_on_a_gpu(queries: int) -> None:
    case = make(torch.float32, queries=queries)
    _, expected, _ = dense(case, SETTINGS)
    plain, _, _ = dense(case, SETTINGS)
    out = correct_output(
        AttentionPass(*(x.cuda() for x in (case.query, case.key, case.value, plain)), case.scaling),
        MarkedKeys(case.sinks.cuda(), case.vision.cuda()),
        SETTINGS,
        case.first_query,
        form="lse",
    ).output
    torch.testing.assert_close(out.cpu(), expected, rtol=0, atol=5e-6)
