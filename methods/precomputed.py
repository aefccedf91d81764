"""Stored maps of a method, as a method: drawn without the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sinkscope.capture.trace import GenerationTrace
from sinkscope.jobs.job import Progress
from sinkscope.methods.base import MapStack, Method, Needs, Target

if TYPE_CHECKING:
    from sinkscope.methods.base import Session


@dataclass(frozen=True)
class PrecomputedStack:
    """Stored maps of a method for some tokens of a run's answer."""

    run: GenerationTrace
    tokens: tuple[int, ...]
    stack: MapStack


@dataclass(frozen=True)
class PrecomputedMaps(Method):
    """A method whose maps are stored; no others can be computed.

    Attributes:
        method: the method that computed them.
        given: the stored maps of each run.
    """

    method: Method
    given: tuple[PrecomputedStack, ...]

    needs: Needs = "trace"

    @property
    def name(self) -> str:  # type: ignore[override]  # the base class declares an attribute
        """The method's name."""
        return self.method.name

    @property
    def source(self) -> str:  # type: ignore[override]  # the base class declares an attribute
        """The method's source."""
        return self.method.source

    @property
    def unit(self) -> str:  # type: ignore[override]  # the base class declares an attribute
        """The method's unit."""
        return self.method.unit

    @property
    def signed(self) -> bool:  # type: ignore[override]  # the base class declares an attribute
        """Whether the method's values are signed."""
        return self.method.signed

    def words(self, run: GenerationTrace) -> str:
        """See `Method.words`."""
        return self.method.words(run)

    def of(self, run: GenerationTrace) -> PrecomputedStack | None:
        """The stored maps of a run, or None."""
        return next((one for one in self.given if one.run is run), None)

    def has(self, axis: str) -> bool:
        """Whether its maps have an axis to choose from."""
        return all(axis in dict(one.stack.axes) for one in self.given)

    def availability(self, run: GenerationTrace) -> str | None:
        """See `Method.availability`."""
        return None if self.of(run) else "its maps were not computed for this run"

    def refusal(self, run: GenerationTrace, target: Target, session: Session | None) -> str | None:
        """See `Method.refusal`: tokens without stored maps."""
        stored = self.of(run)
        if stored is not None and target.source == "answer" and target.tokens == stored.tokens:
            return None
        known = _spelt(stored.tokens if stored else ())
        part = "of the prompt " if target.source == "prompt" else ""
        return (
            f"its maps were computed for {known} of the answer only, and {_spelt(target.tokens)} "
            f"{part}would need the model"
        )

    def explain(
        self,
        run: GenerationTrace,
        target: Target,
        session: Session | None = None,
        progress: Progress | None = None,
    ) -> MapStack:
        """See `Method.explain`."""
        stored = self.of(run)
        assert stored is not None and stored.tokens == target.tokens
        return stored.stack


def _spelt(tokens: Sequence[int]) -> str:
    if not tokens:
        return "no token"
    last = f"–{tokens[-1]}" if len(tokens) > 1 else ""
    return f"token{'s' if last else ''} {tokens[0]}{last}"
