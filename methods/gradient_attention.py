"""Gradient x attention: weights that would raise the token's log-probability if they were
larger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sinkscope.capture.trace import GenerationTrace
from sinkscope.jobs.job import Progress
from sinkscope.methods.base import Axes, MapStack, Needs, Target
from sinkscope.methods.passes import FromPasses
from sinkscope.methods.row_gradients import Of, RowGradient, row_gradients

if TYPE_CHECKING:
    from sinkscope.methods.passes import Passes


@dataclass(frozen=True)
class RowGradientMethod(FromPasses):
    """Base class of methods computed from a row and its gradient; see `row_gradients`.

    Attributes:
        of: the differentiated value: the token's log-probability, or its logit.
    """

    of: Of = "log_p"

    needs: Needs = "gradients"
    reads_var = False

    def __post_init__(self) -> None:
        if self.of not in ("log_p", "logit"):
            raise ValueError(f"of is {self.of!r}; allowed: log_p, logit.")

    def combine(self, row: RowGradient) -> torch.Tensor:
        """The values (L, H, V)."""
        raise NotImplementedError

    def explain(
        self,
        run: GenerationTrace,
        target: Target,
        session: Passes | None = None,
        progress: Progress | None = None,
    ) -> MapStack:
        assert session is not None
        parts = [self.combine(row) for row in row_gradients(session, target, self.of, progress)]
        values = torch.stack(parts).float()  # (T, L, H, V)
        info = session.handle.info
        axes: Axes = (
            ("token", target.tokens),
            ("layer", tuple(range(info.layers))),
            ("head", tuple(range(info.heads))),
        )
        flat = values.reshape(-1, run.layout.vision_tokens).numpy()
        normalisation = "gradient of " + ("log p" if self.of == "log_p" else "the logit")
        return MapStack(flat, axes, run.layout, self.unit, normalisation=normalisation)


@dataclass(frozen=True)
class GradientAttention(RowGradientMethod):
    """A * relu(d log p / d A), for each layer and head of the row that predicted the token.

    To first order, the decrease of the token's log-probability if that weight were removed; weights
    whose removal would increase it are 0.
    """

    name = "gradient_attention"
    source = "arXiv 2204.11073 (Grad-SAM)"
    unit = "nats"
    description = "attention times the positive gradient of log p per patch, in nats"

    def combine(self, row: RowGradient) -> torch.Tensor:
        return row.weights * torch.relu(row.gradient)
