"""Which tokens are attention sinks: two criteria on the residual stream.

Both read the hidden state at the INPUT of a decoder layer, before its layer norm, and both compute
in float32: the square of a massive activation overflows float16, and the score would come out as 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from sinkscope.config import Dialect

# Before it, hidden states are close to the embeddings and sinks have not formed (arXiv 2503.03321).
FIRST_LAYER = 2
EPSILON = 1e-6  # inside the root of the RMS, as in the published code
BLOCK_TOKENS = 512  # tokens whose float32 copy exists at once: a few megabytes at any prompt length


def sink_score(hidden: Tensor, dims: Sequence[int]) -> Tensor:
    """Sink score phi(x) = max over d in dims of |x[d]| / sqrt(mean(x^2) + 1e-6) (arXiv 2503.03321).

    Args:
        hidden: (..., D) residual stream, any floating dtype.
        dims: sink dimensions, indices into D.

    Returns:
        (...) float32, unitless, from 0 to sqrt(D).

    Raises:
        ValueError: `hidden` is no floating tensor with a last dimension, or a dim lies outside it.
    """
    if hidden.ndim == 0 or not hidden.is_floating_point():
        raise ValueError(
            f"hidden has shape {tuple(hidden.shape)} and dtype {hidden.dtype}; "
            "allowed: a floating tensor (..., hidden size)."
        )
    size = hidden.shape[-1]
    wanted = [int(d) for d in dims]
    if not wanted or any(d < 0 or d >= size for d in wanted):
        raise ValueError(
            f"dims is {tuple(wanted)}; allowed: one or more indices from 0 to {size - 1}."
        )
    flat = hidden.reshape(-1, size)
    starts = range(0, max(1, len(flat)), BLOCK_TOKENS)
    blocks = [flat[low : low + BLOCK_TOKENS] for low in starts]
    return torch.cat([_score(block, wanted) for block in blocks]).view(hidden.shape[:-1])


def _score(hidden: Tensor, dims: list[int]) -> Tensor:
    """(N, D) -> (N,)."""
    states = hidden.to(torch.float32)
    scale = torch.rsqrt(states.pow(2).mean(-1) + EPSILON)
    # The maximum is taken before scaling: scaling by a positive number keeps the order, so no
    # (N, D) quotient is made.
    return states[:, dims].abs().amax(-1) * scale


def sink_mask(
    hidden: Tensor, dims: Sequence[int], tau: float, dialect: Dialect = "official"
) -> Tensor:
    """Which tokens are sinks: phi > tau (dialect `official`) or phi >= tau (dialect `paper`).

    Args:
        hidden: (..., D) residual stream at a decoder layer's input, any floating dtype.
        dims: sink dimensions, indices into D.
        tau: threshold on the sink score; phi never exceeds sqrt(D).
        dialect: whose comparison to use.

    Returns:
        (...) bool.

    Raises:
        ValueError: as `sink_score`; or an unknown dialect.
    """
    return above_threshold(sink_score(hidden, dims), tau, dialect)


def above_threshold(scores: Tensor, tau: float, dialect: Dialect) -> Tensor:
    """The sink test on scores at hand: (...) float -> (...) bool; strict in `official` only."""
    if dialect not in get_args(Dialect):
        raise ValueError(f"dialect is {dialect!r}; allowed: {', '.join(get_args(Dialect))}.")
    return scores > tau if dialect == "official" else scores >= tau


def massive_activations(
    hidden: Tensor, dims: Sequence[int] | None = None, minimum: float = 100.0, ratio: float = 1000.0
) -> Tensor:
    """Tokens with a massive activation: some |x[d]| >= minimum and >= ratio x median |x|.

    From Sun et al. 2024 (arXiv 2402.17762). A criterion that needs no calibrated tau; a
    function for studies of your own: neither capture nor VAR uses it.

    Args:
        hidden: (..., D) residual stream, any floating dtype.
        dims: dimensions to look at; None looks at all of them.
        minimum: smallest magnitude that counts, in the residual stream's own units.
        ratio: smallest multiple of the token's median magnitude that counts.

    Returns:
        (...) bool.

    Raises:
        ValueError: a dim lies outside the hidden size.
    """
    size = hidden.shape[-1]
    wanted = list(range(size)) if dims is None else [int(d) for d in dims]
    if not wanted or any(d < 0 or d >= size for d in wanted):
        raise ValueError(
            f"dims is {tuple(wanted)}; allowed: one or more indices from 0 to {size - 1}."
        )
    magnitude = hidden.to(torch.float32).abs()
    largest = (magnitude if dims is None else magnitude[..., wanted]).amax(-1)
    return (largest >= minimum) & (largest >= ratio * magnitude.median(-1).values)
