"""Whole attention rows, kept as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sinkscope.capture.probes.base import Probe, Reader
from sinkscope.models.run_info import RunInfo
from sinkscope.models.sites import Positions, SiteSelection


@dataclass(frozen=True)
class Rows(Probe):
    """Keeps the softmax rows of some queries: `session[probe]` is a `RowsReader`.

    Attributes:
        layers: indices of layers; None: all.
        positions: of the queries; None: all, which takes layers x heads x N x N numbers
            for a prompt of N tokens.
    """

    layers: tuple[int, ...] | None = None
    positions: Positions = None

    def begin(self, run: RunInfo) -> RowsReader:
        return RowsReader(SiteSelection("rows", self.layers, self.positions))


@dataclass(frozen=True)
class RowBlock:
    """Rows that were computed together.

    Attributes:
        layer: of the model.
        positions: of the queries.
        values: float32 (B, H, R, K). In a session with gradients the layer's output is computed
            from this very tensor, so it can be differentiated with respect to it (not to a part of
            it).
    """

    layer: int
    positions: Sequence[int]
    values: torch.Tensor


class RowsReader(Reader, Mapping[tuple[int, int], torch.Tensor]):
    """(layer, position of the query) -> float32 (B, H, K), views of the blocks.

    Attributes:
        blocks: in the order in which they were computed.
    """

    def __init__(self, at: SiteSelection) -> None:
        self.reads = (at,)
        self.blocks: list[RowBlock] = []
        self._place: dict[tuple[int, int], tuple[int, int]] = {}

    def see(self, site: str, layer: int, values: Any, positions: Sequence[int]) -> None:
        for index, position in enumerate(positions):
            self._place[layer, position] = (len(self.blocks), index)
        self.blocks.append(RowBlock(layer, positions, values))

    def __getitem__(self, key: tuple[int, int]) -> torch.Tensor:
        block, index = self._place[key]
        return self.blocks[block].values[:, :, index]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)
