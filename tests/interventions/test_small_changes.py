"""The experiments' interventions, each against the same change written out by hand, and together
with VAR and capture in one session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sinkscope.capture.probes.rows import Rows
from sinkscope.capture.probes.values import Values
from sinkscope.capture.session import attached
from sinkscope.config import VARSettings
from sinkscope.interventions.base import Intervention
from sinkscope.interventions.damp import DampDims
from sinkscope.interventions.lower import LowerAttention
from sinkscope.interventions.project import ProjectOut
from sinkscope.interventions.scale import Scale
from sinkscope.interventions.swap import SwapTokens
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle, load_model
from sinkscope.models.run_info import RunInfo
from sinkscope.models.sites import NO_END, SiteSelection
from sinkscope.var_patch import VAR

pytestmark = pytest.mark.tiny
LAYER, TOKENS = 1, (3, 5, 9)


@pytest.fixture(scope="module")
def handle(tiny_folder: Path) -> ModelHandle:
    return load_model(str(tiny_folder), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def inputs(handle: ModelHandle, photo: Image.Image) -> PromptInputs:
    return handle.prepare([photo.resize((112, 84))], "What is there?")


def seen(
    handle: ModelHandle, inputs: PromptInputs, site: Any, *changes: Intervention
) -> tuple[Tensor, Tensor]:
    """The values at a site of the layer (N, D), and the logits of the last position."""
    probe = Values(SiteSelection(site, (LAYER,)))
    with attached(handle, inputs, [probe], changes) as session:
        logits = handle.model(**inputs.tensors, logits_to_keep=1).logits[0, -1]
    return session[probe][LAYER][0], logits


def basis(width: int, rank: int) -> Tensor:
    drawn = torch.randn(width, rank, generator=torch.Generator().manual_seed(1))
    return torch.linalg.qr(drawn)[0]


@pytest.mark.parametrize("site", ["block_in", "mlp_in", "z", "mlp_out"])
def test_project_out_takes_the_span_from_these_tokens_alone(
    handle: ModelHandle, inputs: PromptInputs, site: Any
) -> None:
    before, logits = seen(handle, inputs, site)
    q = basis(before.shape[-1], 3)
    change = ProjectOut(SiteSelection(site, (LAYER,), TOKENS), q)
    after, changed = seen(handle, inputs, site, change)
    right = before.clone()
    for token in TOKENS:
        right[token] -= q @ (q.T @ before[token])
    torch.testing.assert_close(after, right, rtol=1e-5, atol=1e-5)
    assert (after[list(TOKENS)] @ q).abs().max() < 1e-5
    others = [p for p in range(len(before)) if p not in TOKENS]
    assert torch.equal(after[others], before[others])
    assert not torch.equal(changed, logits)
    torch.testing.assert_close(seen(handle, inputs, site)[1], logits, rtol=0, atol=0)  # undone


def test_project_out_before_an_rms_norm_takes_the_span_from_behind_it(
    handle: ModelHandle, inputs: PromptInputs
) -> None:
    gamma = handle.stack.mlp(LAYER).norm.weight
    given = gamma.clone()
    q = basis(len(gamma), 2)
    try:
        gamma.copy_(torch.linspace(-1.5, 2, len(gamma)))  # negative ones count as well
        change = ProjectOut(
            SiteSelection("mlp_norm_in", (LAYER,), TOKENS), q / gamma[:, None], gamma.square()
        )
        plain = seen(handle, inputs, "mlp_in")[0]
        after = seen(handle, inputs, "mlp_in", change)[0]
        assert (plain[list(TOKENS)] @ q).abs().min() > 1e-3
        assert (after[list(TOKENS)] @ q).abs().max() < 1e-4
    finally:
        gamma.copy_(given)


def test_scale_cuts_to_a_limit_or_by_a_factor(handle: ModelHandle, inputs: PromptInputs) -> None:
    at = SiteSelection("mlp_out", (LAYER,), TOKENS)
    before = seen(handle, inputs, "mlp_out")[0]
    norms = before[list(TOKENS)].norm(dim=-1)
    limit = float(norms.sort().values[1])
    after = seen(handle, inputs, "mlp_out", Scale(at, limit))[0][list(TOKENS)]
    torch.testing.assert_close(after.norm(dim=-1), norms.clamp(max=limit), rtol=1e-5, atol=1e-6)
    cosine = torch.nn.functional.cosine_similarity(after, before[list(TOKENS)])
    torch.testing.assert_close(cosine, torch.ones(3), rtol=0, atol=1e-5)
    half = seen(handle, inputs, "mlp_out", Scale(at, factor=0.5))[0][list(TOKENS)]
    torch.testing.assert_close(half, before[list(TOKENS)] / 2)


def test_damp_and_swap(handle: ModelHandle, inputs: PromptInputs) -> None:
    before = seen(handle, inputs, "block_in")[0]
    damp = DampDims(SiteSelection("block_in", (LAYER,), TOKENS), (2, 7), 0.25)
    right = before.clone()
    for token in TOKENS:
        right[token, [2, 7]] *= 0.25
    torch.testing.assert_close(seen(handle, inputs, "block_in", damp)[0], right)
    for dims in (None, (2, 7)):
        swap = SwapTokens("block_in", (LAYER,), ((9, 3), (5, 11)), dims)
        where = slice(None) if dims is None else list(dims)
        right = before.clone()
        for one, other in ((9, 3), (5, 11)):
            right[one, where], right[other, where] = before[other, where], before[one, where]
        assert torch.equal(seen(handle, inputs, "block_in", swap)[0], right)


@pytest.mark.parametrize("keep_value", [False, True])
@pytest.mark.parametrize("renormalise", [False, True])
def test_lower_attention(
    handle: ModelHandle, inputs: PromptInputs, renormalise: bool, keep_value: bool
) -> None:
    keys, first, end = (3, 5), 9, inputs.layout.length
    if keep_value and not renormalise:
        with pytest.raises(ValueError, match="keep_value is given without renormalise"):
            LowerAttention(keys, 0.2, renormalise, keep_value)
        return
    rows = Rows((LAYER,), range(first, end))
    change = LowerAttention(keys, 0.2, renormalise, keep_value, (LAYER,), range(first, NO_END))
    found = []
    for changes in ([], [change]):
        with attached(handle, inputs, [rows], changes) as session:
            handle.model(**inputs.tensors)
        found.append(torch.stack([session[rows][LAYER, q][0] for q in range(first, end)]))
    plain, lowered = found
    right = plain.clone()
    right[..., list(keys)] *= 0.2
    if renormalise:
        right /= right.sum(-1, keepdim=True)
    if keep_value:
        right[..., list(keys)] = plain[..., list(keys)]
    torch.testing.assert_close(lowered, right, rtol=1e-5, atol=1e-6)
    if renormalise and not keep_value:
        torch.testing.assert_close(lowered.sum(-1), torch.ones_like(lowered[..., 0]))


def test_a_row_that_holds_only_lowered_keys_stays(
    handle: ModelHandle, inputs: PromptInputs
) -> None:
    rows = Rows((0,), (0,))  # query 0 sees only key 0
    change = LowerAttention((0,), 0.0, row_positions=range(NO_END))
    with attached(handle, inputs, [rows], [change]) as session:
        logits = handle.model(**inputs.tensors).logits
    row = session[rows][0, 0][0]
    assert bool((row[:, 0] == 1).all()) and bool((row[:, 1:] == 0).all())
    assert bool(torch.isfinite(logits).all())


class NoCopies(TorchDispatchMode):
    """Refuses operations that move a tensor between devices."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._to_copy.default, "a tensor was moved or converted"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("renormalise", "keep_value"), [(True, False), (True, True), (False, False)]
)
def test_lowered_rows_read_nothing_on_the_host(
    handle: ModelHandle, inputs: PromptInputs, renormalise: bool, keep_value: bool
) -> None:
    """Tensors on `meta` have no values: reading one, or needing a shape that depends on values,
    fails. The value that rows are lowered by is on their device before the run begins."""
    device, length = torch.device("meta"), inputs.layout.length
    change = LowerAttention((3, 5), 0.2, renormalise, keep_value)
    acting = change.begin(RunInfo(handle.info, (inputs.layout,), length, 4, device))
    with NoCopies():
        for count, keys in ((length, length), (1, length + 1), (1, length + 2)):
            rows = torch.empty(1, 3, count, keys, device=device)
            assert acting.rows(LAYER, rows, keys - count).shape == rows.shape


def test_they_compose_with_each_other_and_with_var(
    handle: ModelHandle, inputs: PromptInputs
) -> None:
    """In one session all act: VAR's sinks are scored on the stream as it was changed."""
    dims = (3, 40)
    var = VAR((VARSettings(dims, tau=1.2, keep=0.2, min_image_mass=0.0, max_sink_share=1.0),))
    damp = DampDims(SiteSelection("block_in", (2,), None), dims, 0.0)
    lower = LowerAttention((4,), 0.0, layers=(LAYER,))
    outputs, acted_on = [], []
    for changes in ([], [var], [lower], [lower, var], [damp, var]):
        with attached(handle, inputs, [], changes) as session:
            outputs.append(handle.model(**inputs.tensors).logits)
        if var in changes:
            acted_on.append(len(session[var].report().layers[0].scores))
    for one, other in ((0, 1), (0, 2), (1, 3), (2, 3)):
        assert not torch.equal(outputs[one], outputs[other]), (one, other)
    assert acted_on[0] > 0 and acted_on[2] == 0  # layer 2 is the first that VAR scores


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Scale(SiteSelection("mlp_out"), None), "Neither limit nor factor"),
        (lambda: Scale(SiteSelection("mlp_out"), -1.0), r"limit is -1.0; allowed: 0 or more"),
        (lambda: SwapTokens("block_in", (0,), ()), r"pairs is \(\)"),
        (lambda: SwapTokens("block_in", (0,), ((1, 2), (2, 3))), "each position once"),
        (lambda: LowerAttention((), 0.5), r"keys is \(\)"),
        (lambda: LowerAttention((1,), -0.5), "factor is -0.5"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            ProjectOut(SiteSelection("mlp_out", (0,)), torch.zeros(64, 0)),
            "no direction to take out",
        ),
        (
            ProjectOut(SiteSelection("mlp_out", (0,)), torch.ones(3, 1)),
            "basis has 3 rows; mlp_out of layer 0",
        ),
        (DampDims(SiteSelection("block_in", (0,)), ()), r"dims is \(\)"),
        (DampDims(SiteSelection("block_in", (0,)), (999,)), "dims has 999; block_in of layer 0"),
        (LowerAttention((9999,), 0.5), "keys has 9999; the prompt has positions 0 to"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    handle: ModelHandle, inputs: PromptInputs, change: Intervention, says: str
) -> None:
    with (
        pytest.raises(ValueError, match=says),
        attached(handle, inputs, interventions=[change]),
    ):
        handle.model(**inputs.tensors)
    handle.model(**inputs.tensors)  # nothing is left behind
