"""Whole attention rows, kept as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from capture.probes.base import Probe, Reader
from models.run_info import RunInfo
from models.sites import At, Positions


@dataclass(frozen=True)
class Rows(Probe):
    """Keeps the softmax rows of some queries: `session[probe]` is (layer, position) -> float32
    (B, H, K).

    Attributes:
        layers: indices of layers; None: all.
        positions: of the queries; None: all that pass, which takes layers x heads x N x N numbers
            for a prompt of N tokens.
    """

    layers: tuple[int, ...] | None = None
    positions: Positions = None

    def begin(self, run: RunInfo) -> Reader:
        return _WholeRows(At("rows", self.layers, self.positions))


class _WholeRows(Reader):
    def __init__(self, at: At) -> None:
        self.looks = (at,)
        self._blocks: list[tuple[int, torch.Tensor, Sequence[int]]] = []

    def see(self, site: str, layer: int, values: Any, positions: Sequence[int]) -> None:
        self._blocks.append((layer, values, positions))

    def result(self) -> dict[tuple[int, int], torch.Tensor]:
        """(layer, position) -> (B, H, K): views of the blocks that were computed together."""
        return {
            (layer, position): rows[:, :, index]
            for layer, rows, positions in self._blocks
            for index, position in enumerate(positions)
        }
