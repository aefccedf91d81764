"""The controls of an effect: random directions of the same rank, random tokens of the same number.
All draws follow from a seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def orthonormal(columns: Tensor) -> Tensor:
    """float64 (D, r): an orthonormal basis of the span of (D, n) columns, r their rank.

    Raises:
        ValueError: the span is empty.
    """
    wide = columns.double()
    size = torch.linalg.vector_norm(wide, dim=0)
    kept = wide[:, size > 0]
    if not kept.shape[1]:
        raise ValueError("The chosen columns are all zero: there is no direction to take out.")
    # With QR a dependent column would have to be dropped, and with it a part of the others.
    left, sizes, _ = torch.linalg.svd(kept / size[size > 0], full_matrices=False)
    basis: Tensor = left[:, sizes > 1e-9 * sizes[0]]
    return basis


def random_basis(found: Tensor, seed: int) -> Tensor:
    """float64 (D, r): a random orthonormal basis of the same rank, orthogonal to `found` (D, r).

    Raises:
        ValueError: no orthogonal room is left.
    """
    width, rank = found.shape
    if width < 2 * rank:
        raise ValueError(
            f"{rank} directions of {width} dimensions leave no room for as many random ones that "
            f"are orthogonal to them; allowed: at most {width // 2} directions."
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(width, rank, generator=generator, dtype=torch.float64)
    basis = found.double().cpu()
    for _ in range(2):  # twice: the second time removes the rounding error of the first
        drawn = drawn - basis @ (basis.T @ drawn)
        drawn = torch.linalg.qr(drawn)[0]
    return drawn


def random_tokens(among: Sequence[int], count: int, seed: int) -> tuple[int, ...]:
    """`count` of the positions at random, rising.

    Raises:
        ValueError: there are fewer: a control of fewer tokens would say nothing.
    """
    if count > len(among):
        raise ValueError(f"{count} were asked for at random, but there are only {len(among)}.")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(among), generator=generator).tolist()
    return tuple(sorted(among[index] for index in order[:count]))


def nearest_tokens(
    among: Sequence[int], to: Sequence[int], window: int, seed: int
) -> tuple[int, ...]:
    """One of `among` for each of `to`, at random among the `window` nearest remaining ones, rising:
    tokens at similar positions."""
    generator = torch.Generator().manual_seed(seed)
    left = list(among)
    chosen = []
    for position in to:
        if not left:
            break
        near = sorted(left, key=lambda other: (abs(other - position), other))[:window]
        pick = near[int(torch.randint(len(near), (1,), generator=generator))]
        left.remove(pick)
        chosen.append(pick)
    return tuple(sorted(chosen))
