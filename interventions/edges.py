"""Edges of attention cut: chosen queries no longer see chosen keys, in chosen layers.

The softmax runs over what is left, so rows still sum to 1. A token always sees itself, so no row is
ever empty. `interventions.hide` does the same for whole batches of sets, in all layers and for all
later queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sinkscope.interventions.base import Acting, Intervention
from sinkscope.models.run_info import RunInfo
from sinkscope.models.sites import EVER


@dataclass(frozen=True)
class CutEdges(Intervention):
    """Cuts edges of one prompt.

    Attributes:
        keys: positions of the prompt that are not seen.
        queries: by whom; by default everybody who comes later.
        layers: where; None: everywhere.
    """

    keys: tuple[int, ...]
    queries: range = range(EVER)
    layers: tuple[int, ...] | None = None

    def begin(self, run: RunInfo) -> Acting:
        """See `Intervention.begin`.

        Raises:
            ValueError: there is no key, or one outside the prompt.
        """
        if not self.keys or min(self.keys) < 0 or max(self.keys) >= run.length:
            raise ValueError(
                f"keys is {self.keys!r}; allowed: one or more positions of the prompt, 0 to "
                f"{run.length - 1}."
            )
        return _Cutting(self)


class _Cutting(Acting):
    def __init__(self, asked: CutEdges) -> None:
        self.layers = asked.layers
        self._keys, self._queries = asked.keys, asked.queries
        self._made: tuple[object, Tensor] | None = None

    def mask(self, layer: int, queries: range, keys: int, device: torch.device) -> Tensor:
        """bool (1, 1, queries, keys), made once for all layers."""
        what = (queries, keys, device)
        if self._made is None or self._made[0] != what:
            query = torch.arange(queries.start, queries.stop, device=device)[:, None]
            key = torch.arange(keys, device=device)
            gone = torch.zeros(keys, dtype=torch.bool, device=device)
            gone[[k for k in self._keys if k < keys]] = True
            cut = (query >= self._queries.start) & (query < min(self._queries.stop, EVER))
            visible = (query >= key) & ~(gone & cut & (query > key))
            self._made = (what, visible[None, None])
        return self._made[1]
