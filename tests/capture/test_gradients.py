"""A session with gradients: values seen by probes are part of the graph, as in the eager model."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from sinkscope.capture.probes.rows import Rows
from sinkscope.capture.probes.values import Values
from sinkscope.capture.session import attached
from sinkscope.config import VARSettings
from sinkscope.interventions.base import Intervention
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle, load_model
from sinkscope.models.sites import MODULE_SITES, SiteSelection
from sinkscope.var_patch import VAR

pytestmark = pytest.mark.tiny
TOKEN = 71


@pytest.fixture(scope="module")
def handle(tiny_folder: Path) -> ModelHandle:
    """In float64 where possible: norms and softmax always use float32."""
    made = load_model(str(tiny_folder), device="cpu", dtype="float32")
    model = made.model.double()
    return dataclasses.replace(made, model=model, stack=made.family.text_stack(model))


@pytest.fixture(scope="module")
def inputs(handle: ModelHandle, photo: Image.Image) -> PromptInputs:
    made = handle.prepare([photo.resize((112, 84))], "What is there?")
    tensors = {**made.tensors, "pixel_values": made.tensors["pixel_values"].double()}
    return dataclasses.replace(made, tensors=tensors)


def log_probability(model: Any, inputs: PromptInputs, **options: Any) -> tuple[Tensor, Any]:
    out = model(**inputs.tensors, use_cache=False, **options)
    return torch.log_softmax(out.logits[0, -1], -1)[TOKEN], out


@pytest.fixture(scope="module")
def eager(handle: ModelHandle, inputs: PromptInputs) -> dict[tuple[str, int], Tensor]:
    """d log p of the plain eager model with respect to z and to each layer's attention matrix."""
    model: Any = copy.deepcopy(handle.model).requires_grad_(True)
    model.set_attn_implementation({"text_config": "eager"})
    kept: dict[tuple[str, int], Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(module: Any, args: Any) -> None:
            kept["z", layer] = args[0]

        return hook

    for index, layer in enumerate(model.model.language_model.layers):
        layer.mlp.down_proj.register_forward_pre_hook(keep(index))
    log, out = log_probability(model, inputs, output_attentions=True)
    kept.update({("rows", layer): weights for layer, weights in enumerate(out.attentions)})
    grads = torch.autograd.grad(log, list(kept.values()))
    return dict(zip(kept, grads, strict=True))


@pytest.mark.parametrize("positions", [None, range(4, 20), (2, 9, 30)])
def test_by_z_it_is_autograd_on_the_plain_eager_model(
    handle: ModelHandle,
    inputs: PromptInputs,
    eager: dict[tuple[str, int], Tensor],
    positions: Sequence[int] | None,
) -> None:
    """Several layers at once: the later ones do not cut the graph."""
    z = Values(SiteSelection("z", (0, 1, 3), positions))  # type: ignore[arg-type]
    with attached(handle, inputs, [z], gradients=True) as session:
        log, _ = log_probability(handle.model, inputs)
    found = torch.autograd.grad(log, list(session[z].values()))
    for layer, gradient in zip(session[z], found, strict=True):
        right = eager["z", layer]
        right = right if positions is None else right[:, list(positions)]
        assert right.abs().max() > 1e-6 or layer == 3  # in the last layer only one position matters
        torch.testing.assert_close(gradient, right, rtol=1e-3, atol=1e-6)


def test_by_attention_it_is_autograd_on_the_plain_eager_model(
    handle: ModelHandle, inputs: PromptInputs, eager: dict[tuple[str, int], Tensor]
) -> None:
    """The rows seen at prefill are those from which the output is computed."""
    end = inputs.layout.length
    rows, others = Rows((1, 2), (5, 6, end - 1)), Rows((1,), range(6, 9))
    with attached(handle, inputs, [rows, others], gradients=True) as session:
        log, _ = log_probability(handle.model, inputs)
    blocks = [*session[rows].blocks, *session[others].blocks]
    found = torch.autograd.grad(log, [block.values for block in blocks])
    assert len(session[rows]) == 6 and len(session[others]) == 3
    for block, gradient in zip(blocks, found, strict=True):
        right = eager["rows", block.layer][:, :, list(block.positions)]
        assert right.abs().max() > 1e-6
        # Eager's matrix also has a gradient at keys that a query cannot see; the weight there is 0.
        torch.testing.assert_close(gradient, right, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("site", MODULE_SITES)
def test_every_site_has_a_gradient(handle: ModelHandle, inputs: PromptInputs, site: str) -> None:
    """Against a difference quotient along a random direction."""
    end = inputs.layout.length
    at = SiteSelection(site, (1,), (end - 1,))  # type: ignore[arg-type]
    values = Values(at)
    with attached(handle, inputs, [values], gradients=True) as session:
        log, _ = log_probability(handle.model, inputs)
    (gradient,) = torch.autograd.grad(log, [session[values][1]])
    direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0)).double()
    quotient = _quotient(handle, inputs, at, direction, [])
    assert abs(quotient) > 1e-4
    assert float((gradient * direction).sum()) == pytest.approx(quotient, rel=5e-3)


def test_through_var(handle: ModelHandle, inputs: PromptInputs) -> None:
    """The rows changed by VAR are differentiable, however the fast correction works."""
    own = VARSettings((3, 40), 1.2, 0.2, 1.0, 0.0, layers=(1, 2))
    end = inputs.layout.length
    at = SiteSelection("z", (0,), range(end - 3, end))
    values, var = Values(at), VAR((own,))
    with attached(handle, inputs, [values], [var], gradients=True) as session:
        log, _ = log_probability(handle.model, inputs)
    assert session[var].report().changed
    (gradient,) = torch.autograd.grad(log, [session[values][0]])
    direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0)).double()
    quotient = _quotient(handle, inputs, at, direction, [VAR((own,))])
    assert float((gradient * direction).sum()) == pytest.approx(quotient, rel=5e-3)
    assert quotient != pytest.approx(_quotient(handle, inputs, at, direction, []), rel=1e-2)


def test_without_the_flag_nothing_is_recorded(handle: ModelHandle, inputs: PromptInputs) -> None:
    values = Values(SiteSelection("z"))
    with attached(handle, inputs, [values]) as session:
        assert not torch.is_grad_enabled()
        log, _ = log_probability(handle.model, inputs)
    assert not log.requires_grad
    assert not any(kept.requires_grad for kept in session[values].values())
    assert torch.is_grad_enabled()
    with attached(handle, inputs, [], gradients=True) as session:
        plain, _ = log_probability(handle.model, inputs)
    assert float(plain) == float(log)


def _quotient(
    handle: ModelHandle,
    inputs: PromptInputs,
    at: SiteSelection,
    direction: Tensor,
    interventions: list[Intervention],
) -> float:
    @dataclasses.dataclass(frozen=True, eq=False)
    class Moved(Intervention):
        edits: tuple[SiteSelection, ...]
        by: Tensor

        def edit(self, site: str, layer: int, values: Tensor, positions: Sequence[int]) -> Tensor:
            return values + self.by

    step, logs = 1e-3, []
    for sign in (1, -1):
        moved = Moved((at,), sign * step * direction)
        with attached(handle, inputs, [], [moved, *interventions]):
            logs.append(float(log_probability(handle.model, inputs)[0]))
    return (logs[0] - logs[1]) / (2 * step)
