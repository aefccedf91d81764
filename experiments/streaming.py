"""Norms and directions of vectors, summed up sample by sample: no vector is kept.

Of the vectors x_i at one kind of token, with u_i = x_i / |x_i| and width D:

    norm    mean_i |x_i|
    spread  sqrt( mean_i |u_i - mean(u)|^2 / D ) = sqrt( (1 - |mean(u)|^2) / D )

The spread is angular dispersion over samples: 0 for one direction in every sample, 1 / sqrt(D) for
directions that cancel. All sums are in float64. Where a sample has several such tokens, each of
them counts as one vector.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Vectors:
    """A running sum over vectors (n, ..., D), where the axes in between are kept apart (layers,
    heads)."""

    def __init__(self) -> None:
        self.count = 0
        self._units: Tensor | None = None
        self._squares: Tensor | None = None
        self._norms: list[Tensor] = []

    def add(self, values: Tensor) -> None:
        """Add one sample's vectors, of any floating dtype; a sample without any counts for
        nothing."""
        norms = torch.linalg.vector_norm(values.double(), dim=-1)  # (n, ...)
        units = unit(values).sum(0)
        squares = norms.square().sum(0)
        first = self._units is None or self._squares is None
        self._units = units if first else self._units + units  # type: ignore[operator]
        self._squares = squares if first else self._squares + squares  # type: ignore[operator]
        self._norms.append(norms.sum(0))
        self.count += len(values)

    def norm(self) -> Tensor:
        """float64 (...): mean of |x|."""
        return torch.stack(self._norms).sum(0) / self.count

    def deviation(self) -> Tensor:
        """float64 (...): standard deviation of |x| over vectors (divided by n)."""
        assert self._squares is not None
        return (self._squares / self.count - self.norm().square()).clamp(min=0).sqrt()

    def spread(self) -> Tensor:
        """float64 (...): angular dispersion.

        Raises:
            ValueError: there is one vector or none.
        """
        if self.count < 2 or self._units is None:
            raise ValueError(
                f"The spread is over samples and needs two or more; there is {self.count}."
            )
        mean = self._units / self.count
        rest = (1 - mean.square().sum(-1)).clamp(min=0)
        return (rest / mean.shape[-1]).sqrt()


class Spread:
    """The spread of vectors (n, D) with what an interval needs: one sum of directions a sample, of
    one layer and part."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.counts: list[int] = []
        self._units: list[Tensor] = []  # a sum a sample

    def add(self, values: Tensor) -> None:
        """Add one sample's vectors (n, D), n 0 or more."""
        self.norms.append(float(torch.linalg.vector_norm(values.double(), dim=-1).sum()))
        self.counts.append(len(values))
        self._units.append(unit(values).sum(0))

    def resampled(self, weights: Tensor) -> Tensor:
        """float64 (draws,): the spread with each sample weighted (draws, S); NaN where a draw has
        fewer than two vectors."""
        sums = torch.stack(self._units)  # (S, D)
        counts = torch.tensor(self.counts, dtype=torch.float64)
        total = weights @ counts
        square = ((weights @ (sums @ sums.T)) * weights).sum(-1) / total.square()
        spread = ((1 - square).clamp(min=0) / sums.shape[-1]).sqrt()
        return torch.where(total >= 2, spread, float("nan"))


def unit(values: Tensor) -> Tensor:
    """float64: x / |x| along the last axis; zeros for a zero vector."""
    wide = values.double()
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return wide / norm.clamp(min=torch.finfo(torch.float64).tiny)


def concentration(values: Tensor, count: int = 4) -> Tensor:
    """float64 (...): share of a vector's energy |x|^2 in its `count` largest dimensions, of
    (..., D). Near count / D for a vector that is spread over all dimensions, near 1 for one with a
    massive activation. Not to be confused with the spread."""
    squares = values.double().square()
    top = squares.topk(min(count, squares.shape[-1]), dim=-1).values.sum(-1)
    return top / squares.sum(-1).clamp(min=torch.finfo(torch.float64).tiny)
