"""Raw attention: the row that produced the token, for every captured layer and head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sinkscope.attention_processor import Rows
from sinkscope.capture.trace import GenerationTrace
from sinkscope.jobs.job import Progress
from sinkscope.methods.base import Axes, MapStack, Method, Target, rows_of

if TYPE_CHECKING:
    from sinkscope.methods.base import Session


class Attention(Method):
    """The share of attention that each vision token got."""

    name = "attention"

    def explain(
        self,
        run: GenerationTrace,
        target: Target,
        session: Session | None = None,
        progress: Progress | None = None,
    ) -> MapStack:
        rows = rows_of(run, target.source)
        axes: Axes = (("token", target.tokens), ("layer", rows.layers), ("head", rows.heads))
        values = attention_of(rows, target.tokens).flatten(0, 2)
        return MapStack(values.numpy(), axes, rows.layout, self.unit)


def attention_of(rows: Rows, tokens: tuple[int, ...]) -> torch.Tensor:
    """float32 (tokens, L, H, V), a copy."""
    return rows.attention[list(tokens)].float()
