"""Attention rollout: attention plus residual stream, multiplied through all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sinkscope.capture.probes.base import Probe, Reader
from sinkscope.capture.trace import GenerationTrace
from sinkscope.jobs.job import Progress
from sinkscope.methods.base import Axes, MapStack, Needs, Target
from sinkscope.methods.passes import FromPasses
from sinkscope.models.run_info import RunInfo
from sinkscope.models.sites import SiteSelection

if TYPE_CHECKING:
    from sinkscope.methods.passes import Passes


@dataclass(frozen=True)
class Rollout(FromPasses):
    """How much of each vision token's input embedding reaches the row, if layers only mix tokens.

        R_0 = I,  R_l = normalise(residual * I + (1 - residual) * A_l) R_(l-1)

    A_l is the mean over heads, rows are normalised to sum 1, and the map is the row of R of the
    query that predicted the token, at the vision columns. The sequence is prompt and answer, so
    paths through earlier answer tokens count as well.

    Rows come a block at a time during one pass. Two matrices of all positions by vision tokens are
    kept, never one of heads by positions by positions.

    Attributes:
        residual: weight of the residual stream, from 0 to 1.
    """

    residual: float = 0.5

    name = "rollout"
    source = "arXiv 2005.00928 (Abnar and Zuidema, Quantifying Attention Flow)"
    needs: Needs = "forward"
    unit = "attention rolled out"

    def __post_init__(self) -> None:
        if not 0 <= self.residual <= 1:
            raise ValueError(f"residual is {self.residual!r}; allowed: 0 to 1.")

    def explain(
        self,
        run: GenerationTrace,
        target: Target,
        session: Passes | None = None,
        progress: Progress | None = None,
    ) -> MapStack:
        assert session is not None
        session.tell(progress, 0, 1, "Rolling attention out")
        chain = _Chain(len(session.ids), session.vision(), self.residual)
        rolled = session.read(chain)[chain].rows()
        rows = rolled[[session.position(token) for token in target.tokens]]
        axes: Axes = (("token", target.tokens),)
        return MapStack(rows.float().cpu().numpy(), axes, run.layout, self.unit)


@dataclass(frozen=True)
class _Chain(Probe):
    """Multiplies the rows of each layer up; `session[probe]` is a `_RolloutReader`."""

    positions: int
    vision: torch.Tensor
    residual: float

    def begin(self, run: RunInfo) -> _RolloutReader:
        return _RolloutReader(self)


class _RolloutReader(Reader):
    reads = (SiteSelection("rows"),)

    def __init__(self, asked: _Chain) -> None:
        self._asked = asked
        self._layer = -1
        self._below: torch.Tensor | None = None  # (N, V): R of the layer before
        self._made: torch.Tensor | None = None  # (N, V): R of this one, as far as computed

    def see(self, site: str, layer: int, values: Any, positions: Sequence[int]) -> None:
        mean = values[0].mean(dim=0)  # (R, K)
        low, high = positions[0], positions[-1] + 1
        if layer != self._layer:
            self._next(layer, mean)
        below, product = self._below, self._made
        assert below is not None and product is not None
        mixed = mean * (1 - self._asked.residual)
        queries = torch.arange(low, high, device=mixed.device)
        mixed[queries - low, queries] += self._asked.residual
        mixed /= mixed.sum(dim=-1, keepdim=True)
        product[low:high] = mixed @ below[: mixed.shape[1]]

    def _next(self, layer: int, like: torch.Tensor) -> None:
        """Finish the layer below. Layers may be on several devices."""
        vision = self._asked.vision.to(like.device)
        if self._made is None:
            below = like.new_zeros(self._asked.positions, len(vision))
            below[vision, torch.arange(len(vision), device=like.device)] = 1
            self._made = torch.zeros_like(below)
        else:
            assert self._below is not None
            below, self._made = self._made.to(like.device), self._below.to(like.device)
        self._below, self._layer = below, layer

    def rows(self) -> torch.Tensor:
        """(N, V): the last layer's R."""
        assert self._made is not None, "a pass was read"
        return self._made
