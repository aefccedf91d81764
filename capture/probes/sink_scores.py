"""Sink scores of the prompt's tokens at the input of every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sinkscope.capture.probes.base import Probe, Reader
from sinkscope.capture.trace import LayerSinks
from sinkscope.config import Dialect
from sinkscope.models.run_info import RunInfo
from sinkscope.models.sink_score import FIRST_LAYER, above_threshold, sink_score
from sinkscope.models.sites import At


@dataclass(frozen=True)
class SinkScores(Probe):
    """Scores every prompt position; `session[probe]` is a `ScoreReader`.

    Attributes:
        dims: sink dimensions.
        tau: threshold on phi.
        dialect: `official` flags phi > tau, `paper` phi >= tau.
        also: layers before the third to report as well, where VAR was told to act there.
        batch_row: which row of the batch.
    """

    dims: tuple[int, ...]
    tau: float = 0.0
    dialect: Dialect = "official"
    also: tuple[int, ...] = ()
    batch_row: int = 0

    def begin(self, run: RunInfo) -> ScoreReader:
        """See `Probe.begin`; scores of a shared prefix are taken over.

        Raises:
            ValueError: the prefix was scored by other dimensions.
        """
        return ScoreReader(self, run.length, run.scores_before(self.dims))


class ScoreReader(Reader):
    """Scores on the device, layer by layer, until they are asked for: a prefill never waits."""

    def __init__(self, probe: SinkScores, prompt: int, known: Mapping[int, torch.Tensor]) -> None:
        self.looks = (At("block_in", None, range(prompt)),)
        self._probe = probe
        self._scores = {layer: [scores] for layer, scores in known.items()}

    def see(self, site: str, layer: int, values: Any, positions: Sequence[int]) -> None:
        if positions[0] == 0:  # the first pass, or another one that begins again
            self._scores[layer] = []
        row = values[self._probe.batch_row].detach()
        self._scores[layer].append(sink_score(row, self._probe.dims))

    def scores(self) -> dict[int, torch.Tensor]:
        """Layer -> float32 (positions seen,), on the device."""
        return {layer: torch.cat(parts) for layer, parts in sorted(self._scores.items())}

    def found(self) -> tuple[LayerSinks, ...]:
        """Sinks of each layer from the third on (and of `also`), in order; empty where none are."""
        out = []
        for layer, scores in _on_host(self.scores()).items():
            if layer < FIRST_LAYER and layer not in self._probe.also:
                continue
            flagged = above_threshold(scores, self._probe.tau, self._probe.dialect)
            positions = flagged.nonzero()[:, 0]
            out.append(
                LayerSinks(layer, tuple(positions.tolist()), tuple(scores[positions].tolist()))
            )
        return tuple(out)


def _on_host(scores: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
    """The same on the CPU: one copy where all layers are on one device."""
    if len({own.device for own in scores.values()}) == 1:
        return dict(zip(scores, torch.stack(list(scores.values())).cpu(), strict=True))
    return {layer: own.cpu() for layer, own in scores.items()}
