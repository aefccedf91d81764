"""Finding sinks while a prompt passes through the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from capture.trace import LayerSinks
from config import Dialect
from models.sink_score import FIRST_LAYER, above_threshold, sink_score


class SinkObserver:
    """Scores every prompt position at the input of every layer; changes nothing.

    Scores stay on the device until `found` is asked for, so that a prefill does not wait for them.

    Args:
        dims: sink dimensions.
        tau: threshold on phi.
        dialect: `official` flags phi > tau, `paper` phi >= tau.
        also: layers before the third to report as well, where VAR was told to act there.
        batch_row: which row of the batch.
    """

    def __init__(
        self,
        dims: Sequence[int],
        tau: float,
        dialect: Dialect = "official",
        also: Sequence[int] = (),
        batch_row: int = 0,
    ) -> None:
        self._dims, self._tau, self._dialect = tuple(dims), tau, dialect
        self._also, self._batch_row = frozenset(also), batch_row
        self._scores: dict[int, list[torch.Tensor]] = {}

    def begin_with(self, known: Mapping[int, torch.Tensor]) -> None:
        """Start from scores seen earlier: layer -> float32 (positions,), see `scores`."""
        self._scores = {layer: [scores] for layer, scores in known.items()}

    def observe(self, layer: int, hidden: torch.Tensor, start: int) -> None:
        """See `models.attention.StreamObserver`."""
        self._scores.setdefault(layer, []).append(sink_score(hidden[self._batch_row], self._dims))

    def scores(self) -> dict[int, torch.Tensor]:
        """Layer -> float32 (positions seen,), on the device."""
        return {layer: torch.cat(parts) for layer, parts in sorted(self._scores.items())}

    def found(self) -> tuple[LayerSinks, ...]:
        """Sinks of each layer from the third on (and of `also`), in order; empty where none are."""
        out = []
        for layer, on_device in self.scores().items():
            if layer < FIRST_LAYER and layer not in self._also:
                continue
            scores = on_device.cpu()
            positions = above_threshold(scores, self._tau, self._dialect).nonzero()[:, 0]
            out.append(
                LayerSinks(layer, tuple(positions.tolist()), tuple(scores[positions].tolist()))
            )
        return tuple(out)
