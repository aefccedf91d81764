"""Relative attention: a token's map divided by that of a generic prompt on the same image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sinkscope.capture.trace import GenerationTrace
from sinkscope.jobs.job import Progress
from sinkscope.methods.attention import Attention, attention_of
from sinkscope.methods.base import Axes, MapStack, Method, Target, divided
from sinkscope.models.family import PromptLayout

if TYPE_CHECKING:
    from sinkscope.methods.base import Session

FLOOR = 0.1  # fraction of the generic map's mean: the smallest denominator


class Relative(Method):
    """The attention specific to this token, relative to a generic prompt.

        relative = map / max(generic, FLOOR * mean(generic))

    Both maps are aggregated over the same layers and heads first, and are shares of their whole
    row. The generic row is that of the last position of `trace.reference.prompt`, read by the plain
    model. 1 means: as much as the generic prompt. Without the floor, a patch that the generic
    prompt almost ignores would stand out for every token.
    """

    name = "relative"
    source = "arXiv 2502.17422 (MLLMs Know Where to Look)"
    unit = "times the generic prompt"

    def availability(self, run: GenerationTrace) -> str | None:
        why = _why_not(run)
        return None if why is None else f"the run has no generic prompt to compare with: {why}"

    def words(self, run: GenerationTrace) -> str:
        prompt = "" if run.reference is None else f" “{run.reference.prompt}”"
        return f"relative: attention divided by that of the generic prompt{prompt}"

    def explain(
        self,
        run: GenerationTrace,
        target: Target,
        session: Session | None = None,
        progress: Progress | None = None,
    ) -> MapStack:
        assert run.reference is not None  # `availability`
        generic, layout = run.reference, run.layout
        above = Attention().explain(run, target)
        axes: Axes = (("layer", generic.layers), ("head", generic.heads))
        below = MapStack(
            attention_of(generic, (0,)).flatten(0, 2).numpy(), axes, layout, above.unit
        )
        numerator = torch.from_numpy(above.values).view(len(target.tokens), *below.values.shape)
        values = torch.empty_like(numerator)
        for image in range(len(layout.grids)):
            columns = layout.columns(image)
            values[..., columns] = divided(
                numerator[..., columns], torch.from_numpy(below.values)[:, columns], FLOOR
            )
        normalisation = f"divided by the map of {generic.prompt!r}, at least {FLOOR:g} of its mean"
        return MapStack(
            values.flatten(0, 1).numpy(),
            above.axes,
            layout,
            self.unit,
            normalisation=normalisation,
            ratio=(above, below),
            least=FLOOR,
        )


def _why_not(run: GenerationTrace) -> str | None:
    """Why there is no denominator. Maps of different grids are never divided: their patches are at
    different positions."""
    if run.reference is None:
        return str(run.extra.get("no_reference") or "it was generated without reference=True")
    layout, generic = run.layout, run.reference.layout
    if layout.patches == generic.patches:
        return None
    return (
        "the generic prompt's images were cut into other patches "
        f"({_cut(generic)}) than the run's own ({_cut(layout)}); generate the run again"
    )


def _cut(layout: PromptLayout) -> str:
    """`6 x 8` rows and columns of each image."""
    return ", ".join(f"{grid.rows} x {grid.columns}" for grid in layout.grids) or "no image"
