"""Single dimensions at a site, multiplied by a factor for chosen tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sinkscope.interventions.base import ActiveIntervention, Intervention
from sinkscope.models.run_info import RunInfo
from sinkscope.models.sites import SiteSelection


@dataclass(frozen=True)
class DampDims(Intervention):
    """Damps dimensions; a factor of 0 takes them out.

    Attributes:
        at: site, layers and token positions. At `block_in` of layer 0 it changes the output of the
            vision tower (or the embedding).
        dims: indices into the last axis.
        factor: what they are multiplied with.
    """

    at: SiteSelection
    dims: tuple[int, ...]
    factor: float = 0.0

    def begin(self, run: RunInfo) -> ActiveIntervention:
        """See `Intervention.begin`.

        Raises:
            ValueError: there is no dimension, or one below 0.
        """
        if not self.dims or min(self.dims) < 0:
            raise ValueError(f"dims is {self.dims!r}; allowed: one or more indices from 0 up.")
        return _Damping(self.at, self.dims, self.factor)


class _Damping(ActiveIntervention):
    def __init__(self, at: SiteSelection, dims: tuple[int, ...], factor: float) -> None:
        self.edits = (at,)
        self._dims, self._factor = dims, factor

    def edit(self, site: str, layer: int, values: Tensor, positions: Sequence[int]) -> Tensor:
        if max(self._dims) >= values.shape[-1]:
            raise ValueError(
                f"dims has {max(self._dims)}; {site} of layer {layer} has dimensions 0 to "
                f"{values.shape[-1] - 1}."
            )
        factors = torch.ones(values.shape[-1], dtype=values.dtype, device=values.device)
        factors[list(self._dims)] = self._factor
        return values * factors
