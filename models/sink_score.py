"""Which tokens are attention sinks: two criteria on the residual stream.

Both read the hidden state at the INPUT of a decoder layer, before its layer norm, and both compute
in float32: the square of a massive activation overflows float16, and the score would come out as 0.

In a run, probes and interventions ask the run's `ScoreBook`: each layer is read once, by three
kernels, for all readers, and nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from sinkscope.config import Dialect
from sinkscope.models import kernels

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
        ValueError: `hidden` is not a floating tensor with a last dimension, or a dim is out of
            range.
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
    index = torch.tensor(wanted, device=hidden.device)
    return Norms.of(hidden, index).scores()


@dataclass(frozen=True)
class Norms:
    """The terms that the sink scores of some tokens are computed from.

    Attributes:
        whole: (...) float32 or float64, L2 norm of each token's state.
        peak: (...) float32, largest |x[d]| over the sink dimensions.
        size: of the state, D.
    """

    whole: Tensor
    peak: Tensor
    size: int

    @staticmethod
    def of(hidden: Tensor, dims: Tensor) -> Norms:
        """Of hidden (..., D); `dims` are indices on its device."""
        size = hidden.shape[-1]
        some = hidden.index_select(-1, dims)
        if kernels.is_on_host(hidden.device):
            peak = some.abs().amax(-1)
        else:  # the same in one kernel, which takes many times as long on a CPU
            peak = torch.linalg.vector_norm(some, float("inf"), dim=-1)
        return Norms(_norm(hidden), peak.to(torch.float32), size)

    def scores(self) -> Tensor:
        """(...) float32, phi."""
        return self.inverse().mul_(self.peak).float()

    def inverse(self) -> Tensor:
        """(...) float64, one by the rms: what `peak` is multiplied with."""
        # The maximum is scaled, and no (N, D) quotient made: scaling by a positive number keeps
        # the order. In float64, for a norm that was rounded is squared again; it is one number a
        # token.
        epsilon = torch.full((1,), EPSILON, dtype=torch.float64, device=self.whole.device)
        mean = torch.addcmul(epsilon, self.whole, self.whole, value=1 / self.size)
        return mean.rsqrt_().view(self.whole.shape)


def _norm(hidden: Tensor) -> Tensor:
    """(...): L2 norms of hidden (..., D), of float32 squares."""
    size = hidden.shape[-1]
    if not kernels.is_on_host(hidden.device):  # one kernel, which widens as it reads
        if hidden.dtype == torch.float64:
            hidden = hidden.to(torch.float32)
        norm: Tensor = torch.linalg.vector_norm(hidden, dim=-1, dtype=torch.float32)
        return norm
    flat = hidden.reshape(-1, size)
    starts = range(0, max(1, len(flat)), BLOCK_TOKENS)
    blocks = (flat[low : low + BLOCK_TOKENS].to(torch.float32) for low in starts)
    mean = torch.cat([block.pow(2).mean(-1) for block in blocks])
    return mean.to(torch.float64).mul_(size).sqrt_().view(hidden.shape[:-1])


class ScoreBook:
    """Sink scores during a run: those of a layer's input are computed once for all readers.

    It holds only the layer that was requested last.
    """

    def __init__(self) -> None:
        self._index: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}
        self._asked: tuple[object, ...] = ()
        self._norms: dict[tuple[int, ...], Norms] = {}

    def norms(self, where: tuple[int, int, range], hidden: Tensor, dims: tuple[int, ...]) -> Norms:
        """Of a layer's input.

        Args:
            where: number of the pass in this run, layer, positions: the key of the cached result.
            hidden: (B, N, D), the layer's input.
            dims: sink dimensions.
        """
        if self._asked != where:
            self._asked = where
            self._norms.clear()
        if dims not in self._norms:
            key = dims, hidden.device
            if key not in self._index:
                self._index[key] = torch.tensor(dims, device=hidden.device)
            self._norms[dims] = Norms.of(hidden.detach(), self._index[key])
        return self._norms[dims]


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
    """The sink test on given scores: (...) float -> (...) bool; strict in `official` only."""
    if dialect not in get_args(Dialect):
        raise ValueError(f"dialect is {dialect!r}; allowed: {', '.join(get_args(Dialect))}.")
    return scores > tau if dialect == "official" else scores >= tau


def massive_activations(
    hidden: Tensor, dims: Sequence[int] | None = None, minimum: float = 100.0, ratio: float = 1000.0
) -> Tensor:
    """Tokens with a massive activation: some |x[d]| >= minimum and >= ratio x median |x|.

    From Sun et al. 2024 (arXiv 2402.17762). A criterion that needs no calibrated tau, for your own
    studies: neither capture nor VAR uses it.

    Args:
        hidden: (..., D) residual stream, any floating dtype.
        dims: dimensions to look at; None looks at all of them.
        minimum: smallest magnitude that counts, in the residual stream's own units.
        ratio: smallest multiple of the token's median magnitude that counts.

    Returns:
        (...) bool.

    Raises:
        ValueError: a dim is outside the hidden size.
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
