"""How large a dimension is relative to its token's rms, m = |x[d]| / rms(x), and relative to the
token's other dimensions."""

from __future__ import annotations

import torch
from torch import Tensor

from sinkscope.models.sink_score import EPSILON
from sinkscope.sinks.finding.stats import TOP

# A massive activation after Sun et al. (arXiv 2402.17762), see models.sink_score.
MASSIVE, MASSIVE_RATIO = 100.0, 1000.0


def relative(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """m float32 (..., D) = |x[d]| / rms(x), and rms (...), of hidden (..., D) in any floating
    dtype."""
    states = hidden.to(torch.float32)
    square = torch.linalg.vector_norm(states, dim=-1).square() / states.shape[-1]
    rms = (square + EPSILON).sqrt()
    return states.abs().div_(rms[..., None]), rms


def background(m: Tensor, largest: Tensor | None = None) -> Tensor:
    """float32 (...): rms of m (..., D) over all dimensions except the K largest, which are given or
    found here.

    It is a sum over the others and not a difference of sums: massive dimensions make up nearly all
    of the total, so a difference would consist of their rounding errors.
    """
    kept = min(TOP, m.shape[-1] // 4)
    if largest is None:
        largest = m.topk(kept, dim=-1).indices
    rest = m.scatter(-1, largest[..., :kept], 0.0)
    norm: Tensor = torch.linalg.vector_norm(rest, dim=-1) / (m.shape[-1] - kept) ** 0.5
    return norm.clamp_(min=EPSILON)
