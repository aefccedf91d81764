"""Logits and log-probabilities of a few tokens from hidden states, a few states at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sinkscope.models.stack import Norm, Projection, TextStack

BLOCK_BYTES = 1 << 24  # float32 logits of the whole vocabulary that exist at once


def no_final_norm(stack: TextStack) -> str | None:
    """Why a model's final norm is not available; None if it is."""
    if stack.final_norm is None:
        return "the model's family does not define the norm before its output head"
    return None


def lacking(stack: TextStack) -> str | None:
    """Why a model's hidden states cannot be unembedded; None if they can."""
    if (why := no_final_norm(stack)) is not None:
        return why
    try:
        stack.unembedding  # noqa: B018
    except ValueError as error:
        return str(error).rstrip(".")
    return None


def normed(stack: TextStack, hidden: Tensor) -> Tensor:
    """The final norm of the residual stream (..., D)."""
    norm: Norm | None = stack.final_norm
    assert norm is not None  # `lacking`
    return norm(hidden)


def logits_of(stack: TextStack, states: Tensor, ids: Sequence[int]) -> Tensor:
    """Logits of some tokens: float32 or wider (..., ids).

    Args:
        stack: the model's.
        states: (..., D), after the final norm.
        ids: of the vocabulary.
    """
    head = Projection(stack.output_head)
    index = torch.tensor(list(ids), device=head.weight.device)
    wide = torch.promote_types(states.dtype, torch.float32)
    logits = (states.to(head.weight.device) @ head.weight[index].T).to(wide)
    return logits if head.bias is None else logits + head.bias[index].to(wide)


def log_probabilities(stack: TextStack, states: Tensor, ids: Sequence[int]) -> Tensor:
    """log p of some tokens (n, ids), a few states at a time.

    Args:
        stack: the model's.
        states: (n, D), after the final norm.
        ids: of the vocabulary.
    """
    size = max(1, BLOCK_BYTES // (4 * stack.unembedding.shape[0]))
    index = torch.tensor(list(ids), device=states.device)
    parts = []
    for some in torch.split(states, size):
        logits: Tensor = stack.output_head(some)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        parts.append(logits[:, index] - logits.logsumexp(dim=-1, keepdim=True))
    return torch.cat(parts)


def ranks(stack: TextStack, states: Tensor, ids: Sequence[int]) -> Tensor:
    """Rank of some tokens, 0 for the most probable: float32 (n, ids); arguments as
    `log_probabilities`."""
    size = max(1, BLOCK_BYTES // (4 * stack.unembedding.shape[0]))
    parts = []
    for some in torch.split(states, size):
        logits: Tensor = stack.output_head(some)
        parts.append(
            torch.stack([(logits > logits[:, one, None]).sum(-1) for one in ids], dim=1).float()
        )
    return torch.cat(parts)
