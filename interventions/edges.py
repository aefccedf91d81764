"""Attention edges cut: chosen queries no longer see chosen keys, in chosen layers.

An edge (q, k) is cut in every head of a layer by taking key k out of query q BEFORE the softmax, so
what is left of the row is a softmax over the keys that remain and its sum stays 1:

    A'[q, k'] = 0 where (q, k') is cut, else A[q, k'] / (1 - sum of A[q, k] over the cut k)

That differs from zeroing the weights afterwards, which would also make the output's norm smaller. A
query always keeps its own key, so no row is empty. Queries that are not chosen, and layers that are
not chosen, are left as they are; a pass without a chosen query gets no mask at all
and is plain SDPA bit for bit.

`interventions.hide` hides tokens from all that come later, with a set for each layer; this cuts
only the edges of chosen queries, and each row of a batch may cut other keys, so one forward pass
answers many questions about a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sinkscope.interventions.base import ActiveIntervention, Intervention
from sinkscope.models.run_info import RunInfo


@dataclass(frozen=True)
class CutEdges(Intervention):
    """Cuts the attention of some queries to some keys.

    Positions count from 0 over the prompt and the answer after it (in a batch of prompts of
    different lengths: with the padding on the left).

    Attributes:
        keys: positions whose keys are cut: one tuple for each batch row, or a single one for all
            rows. An empty tuple cuts nothing.
        queries: positions that lose them: a range, or single positions. None: all after the last
            image, including the answer; a prefix up to there can then be shared.
        layers: where; None: in every layer.
    """

    keys: tuple[tuple[int, ...], ...]
    queries: range | tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None

    def begin(self, run: RunInfo) -> ActiveIntervention:
        """See `Intervention.begin`.

        Raises:
            ValueError: a position or layer that does not exist, or another number of key sets than
                batch rows.
        """
        if len(self.keys) not in (1, run.batch):
            raise ValueError(
                f"keys has {len(self.keys)} sets; allowed: 1 for all rows of the batch, or "
                f"{run.batch}, one per row."
            )
        for name, positions in (
            ("keys", [key for row in self.keys for key in row]),
            ("queries", self.queries or ()),
        ):
            if wrong := _outside(positions, run.capacity):
                raise ValueError(
                    f"{name} has position {wrong[0]}; allowed: 0 to {run.capacity - 1} (prompt and "
                    "answer)."
                )
        if wrong := _outside(self.layers or (), run.model.layers):
            raise ValueError(
                f"layers has {wrong[0]}; this model has layers 0 to {run.model.layers - 1}."
            )
        queries = range(run.after_image, run.capacity) if self.queries is None else self.queries
        cut = torch.zeros((len(self.keys), run.capacity), dtype=torch.bool)
        for row, positions in enumerate(self.keys):
            cut[row, list(positions)] = True
        return _Cutting(cut.to(run.device), queries, self.layers)


class _Cutting(ActiveIntervention):
    """`cut`: bool (1 or B, positions), on the device."""

    def __init__(
        self, cut: Tensor, queries: range | tuple[int, ...], layers: tuple[int, ...] | None
    ) -> None:
        self._cut, self.layers = cut, layers
        self._queries = queries if isinstance(queries, range) else frozenset(queries)
        self._cached_mask: tuple[object, Tensor | None] | None = None

    def mask(self, layer: int, queries: range, keys: int, device: torch.device) -> Tensor | None:
        """bool (1 or B, 1, queries, keys), made once per pass for all layers; None where no query
        of the pass is chosen."""
        what = (queries, keys, device)
        if self._cached_mask is None or self._cached_mask[0] != what:
            self._cached_mask = (what, self._mask(queries, keys, device))
        return self._cached_mask[1]

    def _mask(self, queries: range, keys: int, device: torch.device) -> Tensor | None:
        chosen = [query in self._queries for query in queries]
        if not any(chosen):
            return None
        query = torch.arange(queries.start, queries.stop, device=device)[:, None]
        key = torch.arange(keys, device=device)
        cut = torch.zeros(
            (len(self._cut), keys), dtype=torch.bool, device=device
        )  # a static cache has more keys than used
        known = min(keys, self._cut.shape[1])
        cut[:, :known] = self._cut[:, :known].to(device)
        losing = torch.tensor(chosen, device=device)[:, None] & (query > key)
        return ((query >= key) & ~(losing & cut[:, None]))[:, None]


def _outside(positions: Sequence[int], stop: int) -> list[int]:
    return [position for position in positions if not 0 <= position < stop]
