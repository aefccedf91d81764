"""The probes that a trace of an answer is made from."""

from __future__ import annotations

from dataclasses import dataclass

from sinkscope.capture.probes.base import Probe
from sinkscope.capture.probes.sink_scores import SinkScores
from sinkscope.capture.probes.trace_rows import TraceRows
from sinkscope.capture.prompt import kept_positions
from sinkscope.capture.run import captured_indices
from sinkscope.config import GenerationSettings, VARSettings
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle


@dataclass(frozen=True)
class AnswerProbes:
    """The probes that a trace is made from.

    Attributes:
        rows: the rows that explain the answer, one probe per batch row.
        prompt_rows: the rows of the prompt's own tokens, likewise; empty if none are wanted.
        prompt_positions: the positions of these tokens.
        marks: sink scores, by VAR's dimensions, otherwise by the model's profile; None if neither
            is known.
    """

    rows: tuple[TraceRows, ...]
    prompt_rows: tuple[TraceRows, ...]
    prompt_positions: range
    marks: SinkScores | None

    @staticmethod
    def of(
        handle: ModelHandle,
        inputs: PromptInputs,
        settings: GenerationSettings,
        tokens: int,
        batch: int,
        mark: VARSettings | None,
    ) -> AnswerProbes:
        layers, heads = captured_indices(handle, settings)
        prompt_positions = kept_positions(inputs.layout, settings)

        def rows(count: int, first: int | None) -> tuple[TraceRows, ...]:
            return tuple(
                TraceRows(layers, heads, count, first, row, settings.reduce_heads)
                for row in range(batch)
            )

        marks = None
        if mark is not None:
            marks = SinkScores(mark.dims, mark.tau, mark.dialect, mark.layers or ())
        elif handle.profile is not None:
            marks = SinkScores(handle.profile.dims, handle.profile.tau)
        prompt_rows = (
            rows(len(prompt_positions), prompt_positions.start) if prompt_positions else ()
        )
        return AnswerProbes(rows(tokens, None), prompt_rows, prompt_positions, marks)

    @property
    def of_prompt(self) -> list[Probe]:
        """The probes that see only the prompt."""
        return [*self.prompt_rows, *([self.marks] if self.marks else [])]

    def all(self) -> list[Probe]:
        return [*self.rows, *self.of_prompt]
