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
from sinkscope.models.sink_score import FIRST_LAYER, Norms, above_threshold
from sinkscope.models.sites import SiteSelection


@dataclass(frozen=True)
class SinkScores(Probe):
    """Scores every prompt position; `session[probe]` is a `ScoreReader`.

    Attributes:
        dims: sink dimensions.
        tau: threshold on phi.
        dialect: `official` flags phi > tau, `paper` phi >= tau.
        also: layers before the third to report as well, if VAR acts there.
        batch_row: which row of the batch.
    """

    dims: tuple[int, ...]
    tau: float = 0.0
    dialect: Dialect = "official"
    also: tuple[int, ...] = ()
    batch_row: int = 0

    def begin(self, run: RunInfo) -> ScoreReader:
        """See `Probe.begin`; scores of a shared prefix are reused.

        Raises:
            ValueError: the prefix was scored by other dimensions.
        """
        return ScoreReader(self, run)


class ScoreReader(Reader):
    """Keeps the inputs of the scores on the device until they are requested: a prefill never waits,
    and the scores of all layers are computed at once."""

    def __init__(self, probe: SinkScores, run: RunInfo) -> None:
        self.reads = (SiteSelection("block_in", None, range(run.length)),)
        self._probe, self._run = probe, run
        self._known = dict(run.scores_before(probe.dims))  # of a shared prefix
        self._seen: dict[int, list[Norms]] = {}

    def see(self, site: str, layer: int, values: Any, positions: Sequence[int]) -> None:
        if positions[0] == 0:  # the first pass, or another one that begins again
            self._known.pop(layer, None)
            self._seen[layer] = []
        where = self._run.step.passes, layer, range(positions[0], positions[-1] + 1)
        norms = self._run.book.norms(where, values, self._probe.dims)
        self._seen.setdefault(layer, []).append(norms)

    def scores(self) -> dict[int, torch.Tensor]:
        """Layer -> float32 (positions seen,), on the device."""
        row = self._probe.batch_row
        parts: dict[int, list[torch.Tensor]] = {}
        for layer, known in self._known.items():
            parts[layer] = [known if known.ndim == 1 else known[row]]
        passes: dict[object, list[tuple[int, Norms]]] = {}
        for layer, seen in self._seen.items():
            for index, norms in enumerate(seen):
                alike = index, norms.whole.shape, norms.whole.device
                passes.setdefault(alike, []).append((layer, norms))
        for group in passes.values():
            whole = torch.stack([norms.whole[row] for _, norms in group])
            peak = torch.stack([norms.peak[row] for _, norms in group])
            scores = Norms(whole, peak, group[0][1].size).scores()
            for (layer, _), layer_scores in zip(group, scores.unbind(), strict=True):
                parts.setdefault(layer, []).append(layer_scores)
        return {
            layer: layer_scores[0] if len(layer_scores) == 1 else torch.cat(layer_scores)
            for layer, layer_scores in sorted(parts.items())
        }

    def found(self) -> tuple[LayerSinks, ...]:
        """Sinks of each layer from the third on (and of `also`), in order; may be empty."""
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
    """The same on the CPU: one copy if all layers are on one device."""
    if len({layer_scores.device for layer_scores in scores.values()}) == 1:
        return dict(zip(scores, torch.stack(list(scores.values())).cpu(), strict=True))
    return {layer: layer_scores.cpu() for layer, layer_scores in scores.items()}
