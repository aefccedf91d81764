"""Norms and directions of vectors, summed up sample by sample: no vector is kept.

Of the vectors x_i at one kind of token, with u_i = x_i / |x_i| and width D:

    norm    mean_i |x_i|
    spread  sqrt( mean_i |u_i - mean(u)|^2 / D ) = sqrt( (1 - |mean(u)|^2) / D )

The spread is angular dispersion over samples: 0 for one direction in every sample, 1 / sqrt(D) for
directions that cancel. All sums are in float64, and of the directions' differences to the first
one: the difference of two numbers near 1 would be their rounding. Where a sample has several such
tokens, each of them counts as one vector.
"""

from __future__ import annotations

import torch
from torch import Tensor

F64 = torch.float64


class Vectors:
    """A running sum over vectors (n, ..., D), where the axes in between are kept apart (layers,
    heads)."""

    def __init__(self) -> None:
        self.count = 0
        self._shift: Tensor | None = None
        self._apart = self._square = self._norms = self._squares = torch.zeros((), dtype=F64)

    def add(self, values: Tensor) -> None:
        """Add one sample's vectors, of any floating dtype."""
        if not len(values):
            return
        norms = torch.linalg.vector_norm(values.to(F64), dim=-1)  # (n, ...)
        units = unit(values)
        if self._shift is None:
            self._shift = units[0]
        apart = units - self._shift
        self._apart = self._apart + apart.sum(0)
        self._square = self._square + apart.square().sum((0, -1))
        self._norms = self._norms + norms.sum(0)
        self._squares = self._squares + norms.square().sum(0)
        self.count += len(values)

    def norm(self) -> Tensor:
        """float64 (...): mean of |x|."""
        return self._norms / self.count

    def deviation(self) -> Tensor:
        """float64 (...): standard deviation of |x| over vectors (divided by n)."""
        return (self._squares / self.count - self.norm().square()).clamp(min=0).sqrt()

    def spread(self) -> Tensor:
        """float64 (...): angular dispersion.

        Raises:
            ValueError: there is one vector or none.
        """
        if self.count < 2:
            raise ValueError(
                f"The spread is over samples and needs two or more; there is {self.count}."
            )
        mean = self._apart / self.count
        rest = self._square / self.count - mean.square().sum(-1)
        return (rest.clamp(min=0) / mean.shape[-1]).sqrt()


class Spread:
    """Norm and spread of vectors (n, D) with what their intervals need: one sum of directions a
    sample, of one layer and part."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.counts: list[int] = []
        self._shift: Tensor | None = None
        self._apart: list[Tensor] = []
        self._square: list[float] = []

    def add(self, values: Tensor) -> None:
        """Add one sample's vectors (n, D), n 0 or more."""
        units = unit(values)
        if self._shift is None and len(units):
            self._shift = units[0]
        apart = units if self._shift is None else units - self._shift
        self.norms.append(float(torch.linalg.vector_norm(values.to(F64), dim=-1).sum()))
        self.counts.append(len(values))
        self._apart.append(apart.sum(0))
        self._square.append(float(apart.square().sum()))

    def resampled(self, weights: Tensor) -> Tensor:
        """float64 (draws,): the spread with each sample weighted (draws, S); NaN where a draw has
        fewer than two vectors."""
        sums = torch.stack(self._apart)  # (S, D)
        total = weights @ torch.tensor(self.counts, dtype=F64)
        mean_square = (weights @ torch.tensor(self._square, dtype=F64)) / total
        square_mean = ((weights @ (sums @ sums.T)) * weights).sum(-1) / total.square()
        spread = ((mean_square - square_mean).clamp(min=0) / sums.shape[-1]).sqrt()
        return torch.where(total >= 2, spread, float("nan"))


def unit(values: Tensor) -> Tensor:
    """float64: x / |x| along the last axis; zeros for a zero vector."""
    wide = values.double()
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    units: Tensor = wide / norm.clamp(min=torch.finfo(torch.float64).tiny)
    return units


def concentration(values: Tensor, count: int = 4) -> Tensor:
    """float64 (...): share of a vector's energy |x|^2 in its `count` largest dimensions, of
    (..., D). Near count / D for a vector that is spread over all dimensions, near 1 for one with a
    massive activation. Not to be confused with the spread."""
    squares = values.double().square()
    top = squares.topk(min(count, squares.shape[-1]), dim=-1).values.sum(-1)
    return top / squares.sum(-1).clamp(min=torch.finfo(torch.float64).tiny)
