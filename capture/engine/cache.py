"""Keys and values with a fixed capacity, at fixed addresses from the prompt to the end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

CAPACITY_STEP = 64  # positions; runs of similar length share a recorded step


def capacity_for(positions: int) -> int:
    """The capacity of a cache that must hold this many positions."""
    return -(-positions // CAPACITY_STEP) * CAPACITY_STEP


class FixedLayer(DynamicLayer):
    """One layer's keys and values (B, Hkv, capacity, D).

    The prompt is appended, and a view of the filled part is returned, so that
    attention at prefill is the same as over a growing cache. After `decode_at` each pass writes one
    position, given by a device tensor, and the whole memory is returned.

    Attributes:
        filled: positions written at prefill.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        self.capacity = capacity
        self.filled = 0
        self.at: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the memory. Zeros, because hidden values are multiplied with 0 and must be
        finite."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (
            torch.zeros(
                (*states.shape[:2], self.capacity, states.shape[3]),
                dtype=states.dtype,
                device=states.device,
            )
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write new positions (B, Hkv, n, D); what attention sees."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        if self.at is not None:
            self.keys.index_copy_(2, self.at, key_states)
            self.values.index_copy_(2, self.at, value_states)
            return self.keys, self.values
        start, stop = self.filled, self.filled + key_states.shape[2]
        self.keys[:, :, start:stop].copy_(key_states)
        self.values[:, :, start:stop].copy_(value_states)
        self.filled = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def get_seq_length(self) -> int:
        return self.filled

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.filled + query_length, 0


class FixedCache(DynamicCache):
    """A cache of `FixedLayer`s, used by one run after another."""

    def __init__(self, layers: int, capacity: int) -> None:
        super().__init__()
        self.fixed = [FixedLayer(capacity) for _ in range(layers)]
        self.layers = [*self.fixed]  # the name that the library uses

    def begin(self, prefix: DynamicCache | None, rows: int) -> None:
        """Clear it, and take over the keys of a prefix (batch 1) for `rows` rows."""
        for index, layer in enumerate(self.fixed):
            layer.filled, layer.at = 0, None
            if prefix is not None:
                given: Any = prefix.layers[index]
                layer.update(*(t.expand(rows, -1, -1, -1) for t in (given.keys, given.values)))

    def decode_at(self, position: Tensor | None) -> None:
        """From here on each pass writes one position, at int64 (1,) `position`; None: no more."""
        for layer in self.fixed:
            layer.at = position

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        tensors = (t for layer in self.fixed for t in (layer.keys, layer.values) if t is not None)
        return sum(t.numel() * t.element_size() for t in tensors)
