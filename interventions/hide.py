"""Tokens hidden from those that come after them: attention edges cut, the rest renormalised.

Hidden are KEYS: a mask takes them from every later query of every head. A token's own row still
sees itself, so no row is ever empty, and what is left of a row is a softmax over the tokens that
remain; nothing is set to zero afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sinkscope.interventions.base import ActiveIntervention, Intervention
from sinkscope.models.run_info import RunInfo


@dataclass(frozen=True, eq=False)
class HideKeys(Intervention):
    """Hides tokens of the prompt.

    Attributes:
        hidden: bool (B, N), each batch row its own set of prompt positions, in every layer; or
            (B, L, N), each layer with its own.
        first_query: queries before this position see everything.
    """

    hidden: Tensor
    first_query: int = 0

    def begin(self, run: RunInfo) -> ActiveIntervention:
        """See `Intervention.begin`.

        Raises:
            ValueError: `hidden` has a wrong shape or dtype.
        """
        shapes = ((run.batch, run.length), (run.batch, run.model.layers, run.length))
        if self.hidden.dtype != torch.bool or tuple(self.hidden.shape) not in shapes:
            raise ValueError(
                f"hidden has shape {tuple(self.hidden.shape)} and dtype {self.hidden.dtype}; "
                f"allowed: bool {shapes[0]} or {shapes[1]}."
            )
        return _Hiding(self.hidden, self.first_query)


class _Hiding(ActiveIntervention):
    def __init__(self, hidden: Tensor, first_query: int) -> None:
        self._hidden, self._first_query = hidden, first_query
        self._cached_mask: tuple[object, Tensor] | None = None

    def mask(self, layer: int, queries: range, keys: int, device: torch.device) -> Tensor:
        """bool (B, 1, queries, keys); one layer at a time, computed once if all are the same."""
        by_layer = self._hidden.ndim == 3
        what = (layer if by_layer else None, queries, keys, device)
        if self._cached_mask is None or self._cached_mask[0] != what:
            hidden = self._hidden[:, layer] if by_layer else self._hidden
            self._cached_mask = (what, self._mask(hidden.to(device), queries, keys))
        return self._cached_mask[1]

    def _mask(self, hidden: Tensor, queries: range, keys: int) -> Tensor:
        query = torch.arange(queries.start, queries.stop, device=hidden.device)[:, None]
        key = torch.arange(keys, device=hidden.device)
        gone = hidden.new_zeros((len(hidden), keys))  # what follows the prompt is never hidden
        known = min(keys, hidden.shape[1])
        gone[:, :known] = hidden[:, :known]
        unseen = gone[:, None] & (query > key) & (query >= self._first_query)
        return ((query >= key) & ~unseen)[:, None]
