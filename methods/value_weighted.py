"""Value-weighted attention: the weight of a vision token times the norm of its value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from sinkscope.capture.probes.rows import Rows
from sinkscope.capture.probes.values import Values
from sinkscope.capture.trace import GenerationTrace
from sinkscope.jobs.job import Progress
from sinkscope.methods.base import Axes, MapStack, Needs, Target
from sinkscope.methods.passes import FromPasses, no_output_projection
from sinkscope.models.sites import SiteSelection
from sinkscope.models.stack import TextStack

if TYPE_CHECKING:
    from sinkscope.methods.passes import Passes


@dataclass(frozen=True)
class ValueWeighted(FromPasses):
    """The norm of a vision token's contribution to the residual stream of the row.

        apart:     a_hj |v_hj W_O,h|                for each layer and head
        together:  |sum over heads of a_hj v_hj W_O,h|     for each layer

    a is the row that predicted the token, v_hj the value of token j, W_O,h the part of the output
    projection that belongs to head h. Values of sinks are small, so a sink's large weight counts
    for little here.

    Attributes:
        heads: each head's norm, or the norm of the sum over a layer's heads.
    """

    heads: Literal["apart", "together"] = "apart"

    name = "value_weighted"
    source = "arXiv 2004.10102 (Kobayashi et al., Attention is Not Only a Weight)"
    needs: Needs = "forward"
    unit = "norm of what is read"

    def __post_init__(self) -> None:
        if self.heads not in ("apart", "together"):
            raise ValueError(f"heads is {self.heads!r}; allowed: apart, together.")

    def lacking(self, stack: TextStack) -> str | None:
        return no_output_projection(stack)

    def explain(
        self,
        run: GenerationTrace,
        target: Target,
        session: Passes | None = None,
        progress: Progress | None = None,
    ) -> MapStack:
        assert session is not None
        session.tell(progress, 0, 1, "Reading rows and values")
        places = {token: session.position(token) for token in target.tokens}
        rows = Rows(positions=tuple(sorted(set(places.values()))))
        values = Values(SiteSelection("v", None, session.vision_range()))
        seen = session.read(rows, values)
        stack, vision = session.handle.stack, session.vision()
        weighted = []  # of each layer: (T, H or nothing, V)
        for layer, value in seen[values].items():
            weights = torch.stack(
                [
                    seen[rows][layer, places[token]][0][:, vision.to(value.device)]
                    for token in target.tokens
                ]
            )  # (T, H, V)
            output = stack.attention_output(layer).weight.to(weights.dtype)  # (D, H * Dh)
            per_head = (
                value[0].to(weights.dtype).repeat_interleave(stack.heads // stack.kv_heads, dim=1)
            )  # (V, H, Dh)
            if self.heads == "apart":
                weighted.append(weights * _norms(per_head, output).T)
            else:
                mixed = torch.einsum("thv,vhd->tvhd", weights, per_head).flatten(2)
                weighted.append((mixed @ output.T).norm(dim=-1))
        values_made = torch.stack([one.float().cpu() for one in weighted], dim=1)
        axes: Axes = (("token", target.tokens), ("layer", tuple(seen[values])))
        if self.heads == "apart":
            axes = (*axes, ("head", tuple(range(stack.heads))))
        flat = values_made.reshape(-1, run.layout.vision_tokens).numpy()
        return MapStack(flat, axes, run.layout, self.unit)


def _norms(values: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """|v W_O,h| of values (V, H, Dh) and W_O (D, H * Dh): (V, H), a head at a time."""
    width = values.shape[-1]
    return torch.stack(
        [
            (values[:, head] @ output[:, head * width : (head + 1) * width].T).norm(dim=-1)
            for head in range(values.shape[1])
        ],
        dim=1,
    )
