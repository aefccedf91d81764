"""The rows of a trace, reduced at once to vision columns, shares of segments, and entropy."""

from __future__ import annotations

from dataclasses import dataclass

from sinkscope.capture.probes.base import Probe
from sinkscope.capture.recorder import TraceRecorder
from sinkscope.models.run_info import RunInfo


@dataclass(frozen=True)
class TraceRows(Probe):
    """Records rows of one batch row; `session[probe]` is a `capture.recorder.TraceRecorder`.

    Attributes:
        layers, heads: indices in the model to keep, in order.
        tokens: maximum number of rows.
        first: position of the query that is row 0; None: the last of the prompt, whose row
            explains the first token of the answer.
        batch_row: which row of the batch.
        reduce_heads: keep the mean over the heads instead of each.
    """

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    tokens: int
    first: int | None = None
    batch_row: int = 0
    reduce_heads: bool = False

    def begin(self, run: RunInfo) -> TraceRecorder:
        """See `Probe.begin`.

        Raises:
            ValueError: the batch has no such row.
        """
        if self.batch_row >= run.batch:
            raise ValueError(
                f"batch_row is {self.batch_row}; the batch has rows 0 to {run.batch - 1}."
            )
        return TraceRecorder(
            run.layouts[self.batch_row],
            self.layers,
            self.heads,
            self.tokens,
            batch_row=self.batch_row,
            reduce_heads=self.reduce_heads,
            pinned=run.device.type == "cuda",
            first=self.first,
        )
