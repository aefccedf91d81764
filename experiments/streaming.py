"""Norms and directions of vectors, summed sample by sample: no vector is kept.

Of the vectors x_i at one kind of token, with u_i = x_i / |x_i| and width D:

    norm    mean_i |x_i|
    spread  sqrt( mean_i |u_i - mean(u)|^2 / D ) = sqrt( (1 - |mean(u)|^2) / D )

The spread is angular dispersion over samples: 0 for one direction in every sample, 1 / sqrt(D) for
directions that cancel. All sums are in float64, and of the directions' differences to the first
one: the difference of two numbers near 1 would be their rounding. Where a sample has several such
tokens, each of them counts as one vector.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from sinkscope.experiments.bootstrap import Interval, Resampling

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


BLOCKS = 256
"""Sums of directions that are kept for one layer and part, for intervals."""


class Spread:
    """Norm and spread of vectors (n, D) with what their intervals need, of one layer and part.

    A resampled spread needs sums of directions (D numbers) that can be weighted one by one. Up to
    `BLOCKS` samples there is one per sample; of more, neighbouring samples share one, two at a
    time, then four, so that never more than `BLOCKS` are kept. Then these blocks are resampled:
    samples are independent, and so are blocks of them.
    """

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.counts: list[int] = []
        self._shift: Tensor | None = None
        self._block = 1  # samples a sum
        self._sums: list[_Sum] = []

    def add(self, values: Tensor) -> None:
        """Add one sample's vectors (n, D), n 0 or more."""
        units = unit(values)
        if self._shift is None and len(units):
            self._shift = units[0]
        apart = units if self._shift is None else units - self._shift
        self.norms.append(float(torch.linalg.vector_norm(values.to(F64), dim=-1).sum()))
        self.counts.append(len(values))
        sample_sum = _Sum(1, len(values), float(apart.square().sum()), apart.sum(0))
        if self._sums and self._sums[-1].samples < self._block:
            self._sums[-1] += sample_sum
            return
        if len(self._sums) == BLOCKS:
            pairs = zip(self._sums[::2], self._sums[1::2], strict=True)
            self._sums = [one + other for one, other in pairs]
            self._block *= 2
        self._sums.append(sample_sum)

    def interval(self, resampling: Resampling) -> Interval:
        """The spread, with its interval."""
        blocks = dataclasses.replace(resampling, samples=len(self._sums))
        return blocks.of(self.resampled)

    def resampled(self, weights: Tensor) -> Tensor:
        """float64 (draws,): the spread with each sample (or block) weighted (draws, S); NaN where a
        draw has fewer than two vectors."""
        sums = torch.stack([sample_sum.apart for sample_sum in self._sums])  # (S, D)
        total = weights @ torch.tensor([sample_sum.count for sample_sum in self._sums], dtype=F64)
        squares = torch.tensor([sample_sum.square for sample_sum in self._sums], dtype=F64)
        mean_square = (weights @ squares) / total
        square_mean = ((weights @ (sums @ sums.T)) * weights).sum(-1) / total.square()
        spread = ((mean_square - square_mean).clamp(min=0) / sums.shape[-1]).sqrt()
        return torch.where(total >= 2, spread, float("nan"))


@dataclass(frozen=True)
class _Sum:
    """Sums over some samples: their number, that of their vectors, and the differences of
    directions to the first one: squares, and sum (D,)."""

    samples: int
    count: int
    square: float
    apart: Tensor

    def __add__(self, other: _Sum) -> _Sum:
        return _Sum(
            self.samples + other.samples,
            self.count + other.count,
            self.square + other.square,
            self.apart + other.apart,
        )


class Vector:
    """A running sum of vectors (n, D), over all of them."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = torch.zeros((), dtype=F64)

    def add(self, values: Tensor) -> None:
        """One sample's."""
        self._sum = self._sum + values.to(F64).sum(0)
        self.count += len(values)

    def value(self) -> Tensor:
        """float64 (D,): their mean."""
        return self._sum / self.count


class Mean:
    """Mean over samples of tensors of one shape, cell by cell without NaN: their sum is kept."""

    def __init__(self) -> None:
        self._sum = self._count = torch.zeros((), dtype=F64)

    def add(self, values: Tensor) -> None:
        """One sample's."""
        wide = values.to(F64)
        present = ~wide.isnan()
        self._sum = self._sum + torch.where(present, wide, 0.0)
        self._count = self._count + present

    def value(self) -> Tensor:
        """float64: NaN in cells without a number in any sample."""
        return self._sum / self._count


class Rows:
    """Singular values and right singular vectors of a matrix whose rows come sample by sample.

    Kept is a matrix R of no more rows than its rank and `BLOCK`, with R^T R = G^T G of all rows G
    so far: each time that it has grown by a block, it is replaced by diag(S) V^T of its own
    singular value decomposition, without singular values that are zero to rounding.
    """

    BLOCK = 32

    def __init__(self) -> None:
        self.count = 0
        self._rows: list[Tensor] = []
        self._kept = 0  # rows of the last decomposition

    def add(self, rows: Tensor) -> None:
        """Add rows (n, D)."""
        self.count += len(rows)
        self._rows.append(rows.to(F64))
        if sum(map(len, self._rows)) > self._kept + self.BLOCK:
            singular, right = self.decomposed()
            self._rows = [singular[:, None] * right]
            self._kept = len(singular)

    def decomposed(self) -> tuple[Tensor, Tensor]:
        """float64 (r,), (r, D): singular values above zero, falling, and right singular vectors;
        one at least."""
        _, singular, right = torch.linalg.svd(torch.cat(self._rows), full_matrices=False)
        kept = max(1, int((singular > 1e-12 * singular[0]).sum()))
        return singular[:kept], right[:kept].clone()


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
