"""Chefer's relevance: gradient-weighted attention, multiplied through all layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sinkscope.capture.trace import GenerationTrace
from sinkscope.jobs.job import Progress
from sinkscope.methods.base import Axes, MapStack, Needs, Target
from sinkscope.methods.layerwise import Layers, RecomputedLayer, attached_layers
from sinkscope.methods.passes import FromPasses, no_output_projection
from sinkscope.methods.row_gradients import Of, objective
from sinkscope.methods.unembed import no_final_norm
from sinkscope.models.kernels import attention_rows, pack
from sinkscope.models.stack import TextStack

if TYPE_CHECKING:
    from sinkscope.methods.passes import Passes

BLOCK_BYTES = 1 << 20  # float32 rows of one layer that exist at once


@dataclass(frozen=True)
class Chefer(FromPasses):
    """Relevance of each vision token for the row that predicted the token:

        A'_l = mean over heads of relu(g_l * A_l),   g_l = d log p / d A_l
        R = I;  R <- R + A'_l R, layer by layer;  map = row of (R - I)

    over all positions of prompt and answer. Only one row of R is needed, so it is computed from the
    last layer down, r <- r + r A'_l, which is also the order of the gradients. Each layer is run
    again from its stored input: g of a block of rows is (d log p / d output) V^T, and A of the
    block is computed with it. No tensor of heads by positions by positions exists, and never more
    than one layer of the graph.

    Attributes:
        of: the differentiated value: the token's log-probability, or its logit as in the published
            code. The logit also counts what would raise all other tokens.
    """

    of: Of = "log_p"

    name = "chefer"
    source = "arXiv 2103.15679 (Chefer et al., Generic Attention-model Explainability)"
    needs: Needs = "gradients"
    unit = "relevance"
    description = "relevance per patch (gradient-weighted attention through all layers)"
    reads_var = False

    def __post_init__(self) -> None:
        if self.of not in ("log_p", "logit"):
            raise ValueError(f"of is {self.of!r}; allowed: log_p, logit.")

    def lacking(self, stack: TextStack) -> str | None:
        return no_final_norm(stack) or no_output_projection(stack)

    def explain(
        self,
        run: GenerationTrace,
        target: Target,
        session: Passes | None = None,
        progress: Progress | None = None,
    ) -> MapStack:
        assert session is not None
        total = len(target.tokens)
        session.tell(progress, 0, total, "Reading prompt and answer", "tokens")
        vision, maps = run.layout.vision_positions(), []
        with attached_layers(session) as layers:
            for done, token in enumerate(target.tokens):
                session.tell(progress, done, total, "Relevance through all layers", "tokens")
                row = self._row(layers, session.position(token), session.answer[token])
                maps.append(row.cpu()[vision])
        values = torch.stack(maps).float().numpy()
        normalisation = "gradient of " + ("log p" if self.of == "log_p" else "the logit")
        axes: Axes = (("token", target.tokens),)
        return MapStack(values, axes, run.layout, self.unit, normalisation=normalisation)

    def _row(self, layers: Layers, position: int, token: int) -> Tensor:
        """(N,): the row of R of one position, without its own 1."""
        gradient = layers.gradient_at_top(
            position, lambda logits: objective(logits, token, self.of)
        )  # (1, N, D)
        row: Tensor | None = None
        for layer in reversed(range(layers.count)):
            again = layers.recompute(layer, gradient)
            gradient = again.gradient
            if row is None:
                row = again.weighed.new_zeros(gradient.shape[1])
                row[position] = 1
            row = row.to(again.weighed.device)
            row = row + _propagate(again, row, position)
        assert row is not None, "a model has layers"
        row[position] -= 1
        return row


def _propagate(again: RecomputedLayer, row: Tensor, position: int) -> Tensor:
    """r A' of a layer, (N,): a block of the rows up to `position`, which sees no later
    positions."""
    heads = again.query.shape[1]
    size = max(1, BLOCK_BYTES // (4 * heads * (position + 1)))
    first = int(row.nonzero()[0])  # in the last layer only `position`
    propagated = torch.zeros_like(row)
    for low in range(first, position + 1, size):
        high = min(low + size, position + 1)
        key, value = again.key[:, :, :high], again.value[:, :, :high]
        mask = again.mask(low, high)
        weights = attention_rows(again.query[:, :, low:high], key, again.scale, mask, low)
        weighed = again.weighed[:, :, low:high]  # (1, H, R, Dh)
        by_weight = torch.matmul(pack(weighed, key.shape[1]), value.transpose(2, 3).to(weighed))
        weights.mul_(by_weight.view_as(weights)).relu_()
        propagated[:high] += row[low:high] @ weights[0].mean(dim=0).to(row)
    return propagated
