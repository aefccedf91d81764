"""Attention as VAR redistributes it: the map of the run with VAR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sinkscope.capture.answer import score_answer
from sinkscope.capture.run import memory_errors_named
from sinkscope.capture.trace import GenerationTrace
from sinkscope.config import GenerationSettings, VARSettings
from sinkscope.jobs.job import Progress
from sinkscope.methods.attention import Attention
from sinkscope.methods.base import MapStack, Method, Needs, Target
from sinkscope.var_patch import validate_var

if TYPE_CHECKING:
    from sinkscope.methods.passes import Passes


@dataclass(frozen=True)
class VarAttention(Method):
    """The share of attention that each vision token gets under VAR.

    A run that was made with VAR has these rows. For one of the plain model, the same answer is read
    with VAR (teacher forcing): the rows that would have predicted its tokens.

    Attributes:
        settings: VAR's; None: its defaults with the sink dimensions of the model's profile.
    """

    settings: VARSettings | None = None

    name = "var"
    source = "arXiv 2503.03321 (Visual Attention Redistribution)"
    needs: Needs = "forward"
    description = "attention mass per patch, as VAR redistributes it"

    @property
    def label(self) -> str:
        return "VAR"

    def availability(self, run: GenerationTrace) -> str | None:
        if not run.layout.grids:
            return "the prompt has no image"
        return None if run.tokens else "the answer is empty"

    def needs_for(self, run: GenerationTrace) -> Needs:
        return "forward" if run.var is None else "trace"

    def refusal(self, run: GenerationTrace, target: Target, session: Passes | None) -> str | None:
        if run.var is not None:
            return None
        assert session is not None  # `needs_for`
        if target.source != "answer":
            return "a plain run's prompt was not read with VAR; choose tokens of the answer"
        settings = self._settings(session)
        if settings is None:
            return "no sink dimensions are known for the run's model"
        info = session.handle.info
        try:
            tokens = run.layout.vision_tokens
            validate_var(settings, info.hidden_size, info.layers, tokens, info.heads)
        except ValueError as error:
            return str(error).rstrip(".")
        return None

    def explain(
        self,
        run: GenerationTrace,
        target: Target,
        session: Passes | None = None,
        progress: Progress | None = None,
    ) -> MapStack:
        if run.var is not None:
            return Attention().explain(run, target)
        assert session is not None
        settings = self._settings(session)
        assert settings is not None  # `refusal`
        session.tell(progress, 0, 1, "Reading the answer with VAR")
        prefix = session.prefix(settings.dims)
        # all layers and heads of the model, whatever the run kept
        asked = GenerationSettings(max_new_tokens=len(run.tokens))
        with session.handle.lock, memory_errors_named(session.inputs, asked):
            scored = score_answer(session.handle, session.inputs, asked, settings, run, prefix)
        return Attention().explain(scored, target)

    def _settings(self, session: Passes) -> VARSettings | None:
        profile = session.handle.profile
        if self.settings is not None or profile is None:
            return self.settings
        return VARSettings(dims=profile.dims, tau=profile.tau)
