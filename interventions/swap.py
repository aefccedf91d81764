"""The vectors of two tokens at a site, exchanged: whole, or in single dimensions.

If a token is a sink because of its vector there, the other one is the sink afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sinkscope.interventions.base import Intervention
from sinkscope.models.sites import Site, SiteSelection


@dataclass(frozen=True)
class SwapTokens(Intervention):
    """Exchanges the vectors of pairs of tokens. All of them must be in one pass.

    Attributes:
        site: the site that it acts at.
        layers: in which layers.
        pairs: positions of two tokens each; no position twice.
        dims: the dimensions that are exchanged; None: all.

    Raises:
        ValueError: there is no pair, or a position occurs twice.
    """

    site: Site
    layers: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]
    dims: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        flat = [position for pair in self.pairs for position in pair]
        if not flat or len(set(flat)) < len(flat):
            raise ValueError(
                f"pairs is {self.pairs!r}; allowed: one pair or more, each position once."
            )

    @property
    # Computed here; the base class declares an attribute.
    def edits(self) -> tuple[SiteSelection, ...]:  # type: ignore[override]
        """Where it acts."""
        flat = sorted(position for pair in self.pairs for position in pair)
        return (SiteSelection(self.site, self.layers, tuple(flat)),)

    def edit(self, site: str, layer: int, values: Tensor, positions: Sequence[int]) -> Tensor:
        place = {position: index for index, position in enumerate(positions)}
        flat = [position for pair in self.pairs for position in pair]
        if not all(position in place for position in flat):
            raise ValueError(
                "SwapTokens needs all its tokens in one pass; here only some of them pass."
            )
        order = list(range(len(positions)))
        for one, other in self.pairs:
            order[place[one]], order[place[other]] = place[other], place[one]
        swapped = values[:, torch.tensor(order, device=values.device)]
        if self.dims is None:
            return swapped
        dims = torch.zeros(values.shape[-1], dtype=torch.bool, device=values.device)
        dims[list(self.dims)] = True
        return torch.where(dims, swapped, values)
