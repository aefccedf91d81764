"""Interventions on rows in a running model, against dense attention matrices in the eager model.

An intervention only defines `rows`; the output of a fused prefill follows from one generic
correction. VAR's own fast correction is compared with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

from sinkscope.capture.probes.rows import Rows
from sinkscope.capture.probes.values import Values
from sinkscope.capture.session import attached
from sinkscope.config import VARSettings
from sinkscope.interventions.base import ActiveIntervention, Intervention
from sinkscope.interventions.var.intervention import VARIntervention
from sinkscope.models import attention
from sinkscope.models.attention import NAME
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle, load_model
from sinkscope.models.run_info import RunInfo
from sinkscope.models.sites import NO_END, SiteSelection
from sinkscope.var_patch import VAR

pytestmark = pytest.mark.tiny
NEW, DIMS = 4, (3, 40)


@pytest.fixture(scope="module")
def handle(tiny_folder: Path) -> ModelHandle:
    made = load_model(str(tiny_folder), device="cpu", dtype="float32")
    made.model.generation_config.eos_token_id = None
    return made


@pytest.fixture(scope="module")
def inputs(handle: ModelHandle, photo: Image.Image) -> PromptInputs:
    return handle.prepare([photo.resize((112, 84)), photo.resize((84, 56))], "What is there?")


@dataclass(frozen=True)
class Damp(Intervention):
    """Multiplies the attention to one key and leaves the rest, so rows no longer sum to 1."""

    key: int
    factor: float
    layers: tuple[int, ...] | None = None
    row_positions: range | None = None

    def rows(self, layer: int, rows: Tensor, first_position: int) -> Tensor:
        new = rows.clone()
        new[..., self.key] *= self.factor
        return new


def generate(handle: ModelHandle, inputs: PromptInputs) -> Any:
    return handle.model.generate(
        **inputs.tensors,
        max_new_tokens=NEW,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        output_attentions=handle.model.config.text_config._attn_implementation == "eager",
    )


@contextmanager
def eager(handle: ModelHandle, change: Any) -> Iterator[None]:
    """Eager attention whose whole matrices go through `change(layer, weights, first position)`."""
    real = modeling_qwen2_5_vl.eager_attention_forward

    def forward(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        output, weights = real(module, query, key, value, mask, **kwargs)
        if not hasattr(module, "layer_idx"):
            return output, weights
        new = change(module.layer_idx, weights, weights.shape[3] - weights.shape[2])
        repeated = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        return torch.matmul(new, repeated).transpose(1, 2), new

    modeling_qwen2_5_vl.eager_attention_forward = forward
    handle.model.set_attn_implementation({"text_config": "eager"})
    try:
        yield
    finally:
        modeling_qwen2_5_vl.eager_attention_forward = real
        handle.model.set_attn_implementation({"text_config": NAME})


@pytest.mark.parametrize("at_once", [1, 5, 10_000])
@pytest.mark.parametrize("where", ["after the image", "everywhere", "a few", "one layer"])
def test_rows_alone_are_enough(
    handle: ModelHandle,
    inputs: PromptInputs,
    where: str,
    at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unnormalised rows, at prefill and decode, equal dense matrices changed in eager attention."""
    monkeypatch.setattr(attention, "CHUNK", at_once)
    end, key = inputs.layout.length, inputs.layout.grids[0].positions[0] + 2
    span = {
        "everywhere": range(NO_END),
        "a few": range(key + 1, end - 3),
    }.get(where)
    layers = (2,) if where == "one layer" else None
    acts = span or range(inputs.layout.after_images, NO_END)

    def dense(layer: int, weights: Tensor, first: int) -> Tensor:
        new = weights.clone()
        for row in range(weights.shape[2]):
            if first + row in acts and (layers is None or layer in layers):
                new[:, :, row, key] *= 0.1
        return new

    with eager(handle, dense):
        right = generate(handle, inputs)
    rows = Rows(positions=range(end - 5, NO_END))
    damp = Damp(key, 0.1, layers, span)
    with attached(handle, inputs, [rows], [damp], new_tokens=NEW) as session:
        ours = generate(handle, inputs)
    assert torch.equal(ours.sequences, right.sequences)
    for a, b in zip(ours.logits, right.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)
    plain = generate(handle, inputs)
    assert (plain.logits[0] - ours.logits[0]).abs().max() > 1e-3
    for (layer, position), row in session[rows].items():
        step = max(0, position - end + 1)
        weights = right.attentions[step][layer]
        expected = weights[:, :, position if step == 0 else -1]
        torch.testing.assert_close(row, expected, rtol=0, atol=1e-5)
    sums = session[rows][2, end].sum(-1)
    assert (sums < 1 - 1e-4).any() == (where != "a few")


def test_rows_that_stay_keep_the_fused_output_bit_for_bit(
    handle: ModelHandle, inputs: PromptInputs
) -> None:
    @dataclass(frozen=True)
    class Same(Intervention):
        def rows(self, layer: int, rows: Tensor, first_position: int) -> Tensor:
            return rows * 1.0  # a new tensor with the old numbers

    key, end = inputs.layout.grids[0].positions[0], inputs.layout.length
    outputs = {}
    for name, change in (
        ("plain", []),
        ("same", [Same()]),
        ("damp", [Damp(key, 0.1, (2,), range(end - 2, NO_END))]),
    ):
        probe = Values(SiteSelection("attn_out", (2,)))
        with attached(handle, inputs, [probe], change) as session:
            handle.model(**inputs.tensors)
        outputs[name] = session[probe][2]
    assert torch.equal(outputs["plain"], outputs["same"])
    assert torch.equal(outputs["plain"][:, :-2], outputs["damp"][:, :-2])
    assert not torch.equal(outputs["plain"][:, -2:], outputs["damp"][:, -2:])


# --- VAR's fast correction and the generic one ---------------------------------------------------


class _Slow(VARIntervention):
    """VAR with only `rows`."""

    correct = ActiveIntervention.correct


@dataclass(frozen=True)
class SlowVAR(VAR):
    def begin(self, run: RunInfo) -> VARIntervention:
        made = super().begin(run)
        made.__class__ = _Slow
        return made


@pytest.fixture(scope="module")
def var(handle: ModelHandle, inputs: PromptInputs) -> VARSettings:
    """A tau between two scores, for which a few tokens are sinks and several heads qualify."""
    probe = VARSettings(DIMS, tau=0.0, layers=(1, 2), min_image_mass=0.0, max_sink_share=1.0)
    every = VAR((probe,))
    with attached(handle, inputs, interventions=[every]) as session:
        handle.model(**inputs.tensors)
    scores = sorted(s for layer in session[every].report().layers for s in layer.scores)
    cut = int(0.9 * len(scores))
    tau = (scores[cut] + scores[cut + 1]) / 2
    return VARSettings(DIMS, tau=tau, keep=0.3, layers=(1, 2), min_image_mass=0.05)


@pytest.mark.parametrize("dialect", ["official", "paper"])
def test_the_fast_correction_is_the_generic_one(
    handle: ModelHandle,
    inputs: PromptInputs,
    var: VARSettings,
    dialect: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = VARSettings(var.dims, var.tau, var.keep, 0.5, 0.05, dialect, var.layers)
    monkeypatch.setattr("sinkscope.interventions.var.correction.FEW_WEIGHTS", 0)  # by log-sum-exps
    found = {}
    for name, kind in (("fast", VAR), ("generic", SlowVAR)):
        var_here, stream = kind((own,)), Values(SiteSelection("block_out"))
        with attached(handle, inputs, [stream], [var_here], new_tokens=NEW) as session:
            logits = generate(handle, inputs).logits
        found[name] = (session[stream], logits, session[var_here].report())
    for layer in range(handle.info.layers):
        torch.testing.assert_close(
            found["fast"][0][layer], found["generic"][0][layer], rtol=0, atol=2e-5
        )
    for a, b in zip(found["fast"][1], found["generic"][1], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)
    assert found["fast"][2].changed
    for mine, other in zip(found["fast"][2].layers, found["generic"][2].layers, strict=True):
        assert mine.positions == other.positions
        assert (mine.selected, mine.moved) == pytest.approx((other.selected, other.moved), abs=1e-5)


def test_the_fast_correction_is_taken_only_where_var_is_alone(
    handle: ModelHandle, inputs: PromptInputs, var: VARSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together with another change, rows pass through both, in order."""
    corrected: list[int] = []
    real = VARIntervention.correct

    def counted(self: VARIntervention, layer: int, *rest: Any) -> Tensor:
        corrected.append(layer)
        return real(self, layer, *rest)

    monkeypatch.setattr(VARIntervention, "correct", counted)
    key = inputs.layout.grids[0].positions[0]
    damp = Damp(key, 0.0, (2,))
    end = inputs.layout.length
    rows = Rows((1, 2), (end - 1,))
    own = VAR((var,))
    with attached(handle, inputs, [rows], [own, damp]) as session:
        handle.model(**inputs.tensors)
    assert corrected == [1]
    assert (session[rows][2, end - 1][..., key] == 0).all()
    assert session[rows][1, end - 1].sum(-1) == pytest.approx(1.0), "VAR's rows keep their sum"
    before = Rows((2,), (end - 1,))
    other = VAR((var,))
    with attached(handle, inputs, [before], [other]) as alone:
        handle.model(**inputs.tensors)
    expected = alone[before][2, end - 1].clone()
    expected[..., key] = 0
    torch.testing.assert_close(session[rows][2, end - 1], expected, rtol=0, atol=1e-6)
