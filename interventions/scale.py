"""The norm of the values at a site, changed for chosen tokens; their direction stays.

limit:   x <- x * min(1, limit / |x|)
factor:  x <- x * factor
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sinkscope.interventions.base import Intervention
from sinkscope.models.sites import SiteSelection


@dataclass(frozen=True)
class Scale(Intervention):
    """Makes vectors shorter (or longer).

    Attributes:
        at: site, layers and token positions.
        limit: largest L2 norm; None: no limit.
        factor: what everything is multiplied with, before the limit.

    Raises:
        ValueError: a limit or factor below 0, or neither is given.
    """

    at: SiteSelection
    limit: float | None = None
    factor: float = 1.0

    def __post_init__(self) -> None:
        if self.limit is not None and not self.limit >= 0:
            raise ValueError(f"limit is {self.limit!r}; allowed: 0 or more.")
        if not self.factor >= 0:
            raise ValueError(f"factor is {self.factor!r}; allowed: 0 or more.")
        if self.limit is None and self.factor == 1.0:
            raise ValueError("Neither limit nor factor is given; nothing would change.")

    @property
    # Computed here; the base class declares an attribute.
    def edits(self) -> tuple[SiteSelection, ...]:  # type: ignore[override]
        """Where it acts."""
        return (self.at,)

    def edit(self, site: str, layer: int, values: Tensor, positions: Sequence[int]) -> Tensor:
        wide = values.to(torch.promote_types(values.dtype, torch.float32)) * self.factor
        if self.limit is not None:
            norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
            wide = wide * (self.limit / norm.clamp(min=torch.finfo(wide.dtype).tiny)).clamp(max=1)
        return wide.to(values.dtype)
