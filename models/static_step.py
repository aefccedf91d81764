"""Attention of a decode step over fixed tensors, so that it can be recorded.

Keys and values have a fixed capacity K; keys after the current position are hidden by an additive
mask computed from a position on the device. Nothing here reads the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sinkscope.models.kernels import attention_rows, rows_times_values
from sinkscope.models.plan import RowChange


@dataclass
class StepPlan:
    """The requests of a step over fixed keys, passed on like a `ForwardPlan`.

    Attributes:
        position: int64 (1,), of the query.
        capacity: K, how many keys there is room for.
        windows: of each layer, how many keys a query sees at most; None for all, and for layers
            that are not listed.
        changes: layer -> what changes its rows, in order.
        kept: layer -> float32 (B, H', K), the buffer of its rows; other layers are not kept.
        heads: int64 (H',), which heads are kept, on the device; None: all.
        first_position: the position that `changes` get for the query. They take the true position
            from `models.run_info.Step`.
    """

    position: Tensor
    capacity: int
    windows: Sequence[int | None] = ()
    changes: Mapping[int, Sequence[RowChange]] = field(default_factory=dict)
    kept: Mapping[int, Tensor] = field(default_factory=dict)
    heads: Tensor | None = None
    first_position: int = 0

    def __post_init__(self) -> None:
        self._columns = torch.arange(self.capacity, device=self.position.device)
        self._hidden: dict[int | None, Tensor] = {}

    def begin(self) -> Tensor:
        """Before each step: hide the keys that are not filled.

        Returns:
            float32 (1, 1, 1, K): 0 where the query may see, else minus infinity. Models take a mask
            of four axes as it is.
        """
        seen = self._columns <= self.position
        for window in {None, *self.windows}:
            visible = seen
            if window is not None:
                visible = seen & (self._columns > self.position - window)
            hidden = torch.zeros_like(self._columns, dtype=torch.float32)
            hidden.masked_fill_(~visible, float("-inf"))
            self._hidden[window] = hidden[None, None, None]
        return self._hidden[None]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
    ) -> Tensor:
        """The output (B, 1, H, D) of one layer for one query (B, H, 1, D); key and value (B, Hkv,
        K, D)."""
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        window = self.windows[layer] if layer < len(self.windows) else None
        rows = attention_rows(query, key, scale, self._hidden[window], self.capacity)
        for change in self.changes.get(layer, ()):
            rows = change.rows(layer, rows, self.first_position)
        into = self.kept.get(layer)
        if into is not None:
            some = rows[:, :, 0]
            into.copy_(some if self.heads is None else some.index_select(1, self.heads))
        return rows_times_values(rows, value).transpose(1, 2)
