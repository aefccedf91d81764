"""AGCAM: positive gradients of the weights, each times the sigmoid of its score."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sinkscope.methods.gradient_attention import RowGradientMethod
from sinkscope.methods.row_gradients import RowGradient


@dataclass(frozen=True)
class AGCAM(RowGradientMethod):
    """relu(d log p / d A) * sigmoid(q k^T / sqrt(d)), for each layer and head.

    The gradient is that of the weights after the softmax, the sigmoid is of the scores before it,
    as in the published code, so no patch is small only because another one is large. The published
    code sums the maps of all layers and heads; here they are averaged, which is the same up to a
    factor. The published code takes the gradient of the logit (`of="logit"`).
    """

    name = "agcam"
    source = "arXiv 2402.04563 (Attention Guided CAM, AAAI 2024)"
    unit = "nats per attention mass"
    description = "positive gradient of log p times the sigmoid of the attention score per patch"

    def combine(self, row: RowGradient) -> torch.Tensor:
        return torch.relu(row.gradient) * torch.sigmoid(row.scores)
