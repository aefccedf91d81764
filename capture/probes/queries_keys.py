"""Rotated queries of some positions, and the keys they are multiplied with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sinkscope.capture.probes.base import Probe, Reader
from sinkscope.models.run_info import RunInfo
from sinkscope.models.sites import NO_END, SiteSelection


@dataclass(frozen=True)
class QueriesAndKeys(Probe):
    """Keeps queries from a position on, and all keys, of batch row 0; `session[probe]` is a
    `QueriesKeysReader`.

    Attributes:
        layers: indices in the model.
        first: the first position whose query is kept.
    """

    layers: tuple[int, ...]
    first: int = 0

    def begin(self, run: RunInfo) -> QueriesKeysReader:
        return QueriesKeysReader(self.layers, self.first)


class QueriesKeysReader(Reader):
    """Queries as they come, and the newest keys.

    Attributes:
        queries: layer -> (H, D) of each position from `first` on, rotated, in the model's dtype.
        keys: layer -> (Hkv, K, D) of all positions so far, rotated.
        scales: layer -> factor on their products.
    """

    def __init__(self, layers: Sequence[int], first: int) -> None:
        self.reads = (SiteSelection("queries_keys", tuple(layers), range(first, NO_END)),)
        self.queries: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
        self.keys: dict[int, torch.Tensor] = {}
        self.scales: dict[int, float] = {}

    def see(self, site: str, layer: int, values: Any, positions: Sequence[int]) -> None:
        query, key, scale = values
        # A copy: the slice would keep the whole prompt's queries alive.
        self.queries[layer] += query[0].transpose(0, 1).clone().unbind()
        self.keys[layer] = key[0]  # the cache's own tensor; a growing cache makes a new one
        self.scales[layer] = scale
