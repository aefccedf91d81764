"""The probability of a given answer in a forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sinkscope.capture.tokens import NOT_A_NUMBER


def answer_log_probabilities(logits: Tensor, answer: Sequence[int]) -> Tensor:
    """Natural logarithms of the probabilities of an answer's tokens.

    Args:
        logits: (B, T, vocabulary), any floating dtype, those that predict the T tokens.
        answer: ids of the tokens.

    Returns:
        float32 (B, T) on the CPU.

    Raises:
        ValueError: the model's output is not finite.
    """
    ids = torch.tensor(answer, device=logits.device)[:, None]
    rows = [torch.log_softmax(row.float(), dim=-1).gather(1, ids)[:, 0] for row in logits]
    log_probabilities = torch.stack(rows).cpu()
    if not bool(torch.isfinite(log_probabilities).all()):
        raise ValueError(NOT_A_NUMBER)
    return log_probabilities
