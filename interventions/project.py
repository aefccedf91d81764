"""A subspace removed from the values at a site, for chosen tokens.

    x <- x - U U^T (m * x)

With orthonormal columns in U and without m that is the orthogonal projection onto the complement
of span(U). With U = Q / gamma and m = gamma^2 it is the projection in the metric diag(gamma^2):
before an RMS norm with weight gamma it takes span(Q) out of what comes after the norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sinkscope.interventions.base import ActiveIntervention, Intervention
from sinkscope.models.run_info import RunInfo
from sinkscope.models.sites import SiteSelection


@dataclass(frozen=True, eq=False)
class ProjectOut(Intervention):
    """Takes a subspace out.

    Attributes:
        at: site, layers and token positions.
        basis: U, floating (D, r), D the width of the site.
        metric: m, floating (D,); None: 1 everywhere.
    """

    at: SiteSelection
    basis: Tensor
    metric: Tensor | None = None

    def begin(self, run: RunInfo) -> ActiveIntervention:
        """See `Intervention.begin`.

        Raises:
            ValueError: the basis has no column, or is not a matrix.
        """
        if self.basis.ndim != 2 or not self.basis.shape[1]:
            raise ValueError(
                f"basis has shape {tuple(self.basis.shape)}; allowed: (width, rank), rank 1 or "
                "more: there is no direction to take out."
            )
        return _Projecting(self.at, self.basis, self.metric)


class _Projecting(ActiveIntervention):
    """`ProjectOut` in a run: its matrices, once per device and dtype."""

    def __init__(self, at: SiteSelection, basis: Tensor, metric: Tensor | None) -> None:
        self.edits = (at,)
        self._basis, self._metric = basis, metric
        self._cached_basis: tuple[object, Tensor, Tensor] | None = None

    def edit(self, site: str, layer: int, values: Tensor, positions: Sequence[int]) -> Tensor:
        work = torch.promote_types(values.dtype, torch.float32)
        basis, weighted = self._on(values.device, work)
        if values.shape[-1] != len(basis):
            raise ValueError(
                f"basis has {len(basis)} rows; {site} of layer {layer} is {values.shape[-1]} wide."
            )
        wide = values.to(work)
        return (wide - (wide @ weighted) @ basis.T).to(values.dtype)

    def _on(self, device: torch.device, work: torch.dtype) -> tuple[Tensor, Tensor]:
        """U, and m * U."""
        if self._cached_basis is None or self._cached_basis[0] != (device, work):
            basis = self._basis.to(work).to(device)  # MPS has no float64
            weighted = basis
            if self._metric is not None:
                weighted = self._metric.to(work).to(device)[:, None] * basis
            self._cached_basis = ((device, work), basis, weighted)
        return self._cached_basis[1], self._cached_basis[2]
