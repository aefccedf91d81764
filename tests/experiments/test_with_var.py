"""The experiments' interventions together with VAR, against plain transformers in float64.

VAR's attention is written out here from docs/method.md; the change of the residual stream moves the
sink scores that VAR reads, and a change of attention acts on the rows that VAR made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from PIL import Image
from torch import Tensor

from sinkscope.capture.session import attached
from sinkscope.config import VARSettings
from sinkscope.interventions.base import Intervention
from sinkscope.interventions.lower import LowerAttention
from sinkscope.interventions.project import ProjectOut
from sinkscope.interventions.var.var import VAR
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle, load_model
from sinkscope.models.sites import NO_END, SiteSelection
from tests.experiments.reference import Changes, Plain, Seen
from tests.tiny_model import save_model

pytestmark = pytest.mark.tiny
DIMS, LAYERS, KEEP, MOST_SINK_SHARE, LEAST_IMAGE_MASS = (3, 17), (1, 2), 0.3, 0.6, 0.05


@dataclass(frozen=True)
class Pair:
    """One model in two forms, and a prompt."""

    handle: ModelHandle
    plain: Plain
    inputs: PromptInputs

    @property
    def tensors(self) -> dict[str, Tensor]:
        given = self.inputs.tensors
        return {n: t.double() if t.is_floating_point() else t for n, t in given.items()}

    @property
    def after(self) -> int:
        return self.inputs.layout.after_images

    def var_weights(self, tau: float, layer: int, weights: Tensor) -> Tensor:
        """(H, N, N): the rows after the image under VAR, dialect official."""
        vision = torch.zeros(weights.shape[-1], dtype=torch.bool)
        vision[self.inputs.layout.vision_positions()] = True
        sinks = scores(self.plain._seen, layer) > tau
        if layer not in LAYERS or not (sinks & vision).any():
            return weights
        mass = weights[..., vision].sum(-1)
        chosen = weights[..., sinks & vision].sum(-1) <= MOST_SINK_SHARE * mass
        chosen &= mass >= LEAST_IMAGE_MASS
        chosen[:, : self.after] = False
        freed = (1 - KEEP) * weights[..., sinks].sum(-1)
        new = weights.clone()
        new[..., sinks] *= KEEP
        rest = vision & ~sinks
        new[..., rest] *= (1 + freed / weights[..., rest].sum(-1))[..., None]
        return torch.where(chosen[..., None], new, weights)

    def output(self, *changes: Intervention) -> Tensor:
        with attached(self.handle, self.inputs, (), changes):
            logits: Tensor = self.handle.model(**self.tensors).logits[0]
        return logits


def scores(seen: Seen, layer: int) -> Tensor:
    """(N,): phi."""
    states = seen.residual[layer]
    peak = states[:, list(DIMS)].abs().amax(-1)
    phi: Tensor = peak / (states.square().mean(-1) + 1e-6).sqrt()
    return phi


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = save_model(tmp_path_factory.mktemp("with_var"), seed=9, layers=4)
    handle = load_model(str(folder), device="cpu", dtype="float32")
    handle.model.double()
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 255, (112, 112, 3), dtype=torch.uint8, generator=generator)
    inputs = handle.prepare([Image.fromarray(pixels.numpy())], "Where is the star?")
    return Pair(handle, Plain(folder, "vl"), inputs)


@pytest.mark.parametrize("site", ["mlp_out", "mlp_in", "block_in"])
def test_a_projection_and_lowered_attention_with_var(
    pair: Pair, site: Literal["mlp_out", "mlp_in", "block_in"]
) -> None:
    at = tuple(pair.inputs.layout.vision_positions()[[2, 5, 9]].tolist())
    keys = tuple(pair.inputs.layout.vision_positions()[:4].tolist())
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(64, 3, generator=generator, dtype=torch.float64))[0]
    start = pair.plain.run(pair.tensors)
    assert start.logits is not None
    high = scores(start, 2)[pair.inputs.layout.vision_positions()].sort(descending=True).values
    tau = float(high[3:5].mean())

    def projected(layer: int, values: Tensor) -> Tensor:
        if layer != 1:
            return values
        new = values.clone()
        new[list(at)] -= (values[list(at)] @ basis) @ basis.T
        return new

    def attention(layer: int, weights: Tensor) -> Tensor:
        new = pair.var_weights(tau, layer, weights)
        if layer != 2:
            return new
        lowered = new.clone()
        lowered[:, pair.after :, list(keys)] *= 0.2
        return lowered * (new.sum(-1) / lowered.sum(-1))[..., None]

    name = {"mlp_out": "mlp", "mlp_in": "x", "block_in": "residual"}[site]
    wanted = pair.plain.run(pair.tensors, Changes(**{name: projected}, weights=attention)).logits
    var = VAR((VARSettings(DIMS, tau, KEEP, MOST_SINK_SHARE, LEAST_IMAGE_MASS, layers=LAYERS),))
    project = ProjectOut(SiteSelection(site, (1,), at), basis)
    lower = LowerAttention(keys, 0.2, layers=(2,), row_positions=range(pair.after, NO_END))
    both = pair.output(var, project, lower)
    torch.testing.assert_close(both, wanted, rtol=0, atol=1e-6)
    for less in ((project, lower), (var, lower), (var, project)):  # each of them counts
        assert float((pair.output(*less) - both).abs().max()) > 1e-4
    torch.testing.assert_close(pair.output(), start.logits, rtol=0, atol=1e-6)  # and is undone
