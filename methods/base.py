"""The interface of an explanation method, and its result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch

from sinkscope.attention_processor import (
    ADDS_UP,
    PatchMap,
    Rows,
    as_map,
    combine,
    for_heads,
    slots_of,
    token_indices,
)
from sinkscope.capture.trace import GenerationTrace
from sinkscope.config import Reduce
from sinkscope.jobs.job import Progress
from sinkscope.models.family import PromptLayout
from sinkscope.setting.heads import Heads

if TYPE_CHECKING:
    Session = Any  # of forward passes of the run's model

Needs = Literal["trace", "forward", "gradients"]
TokenSource = Literal["answer", "prompt"]
AxisName = Literal["token", "layer", "head"]
Axes = tuple[tuple[AxisName, tuple[int, ...]], ...]

# Layers and heads (indices in the model; None: all), or single heads instead.
Chosen = tuple[Sequence[int] | None, Sequence[int] | None, Heads | None]

AXES: tuple[AxisName, ...] = ("token", "layer", "head")


@dataclass(frozen=True)
class Target:
    """What is explained: some tokens of a run's answer, or of its prompt.

    Attributes:
        tokens: indices from 0; of the prompt into `trace.prompt_rows`.
        source: the answer or the prompt.
    """

    tokens: tuple[int, ...]
    source: TokenSource = "answer"


@dataclass(frozen=True)
class MapStack:
    """The result of a method: a map for each slot; a slot is a token, layer and head.

    Attributes:
        values: float32 (slots, V): one value for each vision token of all images; NaN is missing,
            which is not 0.
        axes: name and indices (of tokens, and in the model) of each axis: those of `AXES` that the
            method has, in this order. Slots are their product, the last axis running fastest.
        layout: the prompt's, with the positions of the vision tokens.
        unit: of a value, such as "attention mass"; pictures format values accordingly
            (`drawing.scale.value_format`).
        signed: values of either sign are drawn around 0.
        normalisation: what was done to the values, in words.
        ratio: numerator and denominator stacks, if values are a ratio. `map` first combines the
            slots of each and then divides, which is not the mean of the slots' ratios.
        least: lower bound of the denominator, as a fraction of its mean over the image.
    """

    values: np.ndarray
    axes: Axes
    layout: PromptLayout
    unit: str
    signed: bool = False
    normalisation: str = "none"
    ratio: tuple[MapStack, MapStack] | None = None
    least: float = 0.0

    def __post_init__(self) -> None:
        names = [name for name, _ in self.axes]
        if names != [name for name in AXES if name in names]:
            raise ValueError(f"axes are {names}; allowed: some of {', '.join(AXES)}, in order.")
        slots = int(np.prod([len(indices) for _, indices in self.axes]))
        if self.values.shape != (slots, self.layout.vision_tokens):
            raise ValueError(
                f"values are of shape {self.values.shape}; the axes have {slots} slots and the "
                f"prompt {self.layout.vision_tokens} vision tokens."
            )
        if self.values.dtype != np.float32:
            raise ValueError(f"values are {self.values.dtype}; allowed: float32.")

    def map(
        self,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        reduce: Reduce = "mean",
        *,
        image: int = 0,
        label: str = "",
        pairs: Heads | None = None,
    ) -> PatchMap:
        """One map on one image: layers and heads by `reduce`, tokens by their mean.

        A patch is missing if it is missing in one of the slots.

        Args:
            layers, heads: indices in the model; None is all of the axis.
            image: which image.
            label: what is explained, in words.
            pairs: (layer, head) of single heads, instead of layers and heads.

        Raises:
            ValueError: a layer or head that the stack does not have, or no such image.
        """
        if not 0 <= image < len(self.layout.grids):
            raise ValueError(f"image is {image}; the prompt has {len(self.layout.grids)}, from 0.")
        cells = self._cells((layers, heads, pairs), reduce, image)
        return as_map(
            cells, self.layout, image, self.unit, self.normalisation, label, signed=self.signed
        )

    def _cells(self, chosen: Chosen, reduce: Reduce, image: int) -> torch.Tensor:
        """float32 (rows, columns) of the image's map. A ratio is that of two maps, as on the page:
        several views of an image are merged before the division."""
        if self.ratio is not None:
            above, below = (part._cells(chosen, reduce, image) for part in self.ratio)
            return divided(above.flatten(), below.flatten(), self.least).view_as(above)
        tokens = self._combined(chosen, reduce, image)
        return self.layout.grids[image].on_cells(tokens, adds_up=self.unit in ADDS_UP)

    def _combined(self, chosen: Chosen, reduce: Reduce, image: int) -> torch.Tensor:
        """float32 (vision tokens of the image)."""
        sizes = dict.fromkeys(AXES, 1) | {name: len(indices) for name, indices in self.axes}
        cells = torch.from_numpy(self.values)[:, self.layout.columns(image)]
        cells = cells.view(*(sizes[name] for name in AXES), -1)
        layers, heads, pairs = chosen
        if pairs is None:
            cells = cells[:, self._chosen("layer", layers)][:, :, self._chosen("head", heads)]
            return combine(cells, reduce)
        axes = dict(self.axes)
        if "layer" not in axes or "head" not in axes:
            raise ValueError("Single heads are chosen; this method has none to choose.")
        return combine(for_heads(cells, axes["layer"], axes["head"], pairs), reduce)

    def _chosen(self, name: AxisName, wanted: Sequence[int] | None) -> list[int]:
        indices = dict(self.axes).get(name)
        if wanted is None:
            return list(range(1 if indices is None else len(indices)))
        if indices is None:
            raise ValueError(f"{name}s is {list(wanted)}; this method has no {name}s to choose.")
        return slots_of(name, indices, wanted)


class Method(Protocol):
    """Base class of explanation methods.

    Attributes:
        name: identifier, such as "without_sinks".
        source: its paper or code; empty for this project's own methods.
        needs: a trace alone, forward passes of the model, or gradients too.
        unit, signed: of its values, as in `MapStack`.
        description: of its values; empty: their unit. See `words`.
    """

    name: str
    source: str = ""
    needs: Needs = "trace"
    unit: str = "attention mass"
    signed: bool = False
    description: str = ""

    @property
    def label(self) -> str:
        """The displayed name."""
        return self.name.replace("_", " ")

    def availability(self, run: GenerationTrace) -> str | None:
        """None, or why this run cannot provide it: "the run ..."."""
        return None

    def needs_for(self, run: GenerationTrace) -> Needs:
        """What this run needs, if less than `needs`."""
        return self.needs

    def refusal(self, run: GenerationTrace, target: Target, session: Session | None) -> str | None:
        """None, or why the run's model cannot provide it for this target; called before anything is
        computed. `session` is given if `needs_for` requires one."""
        return None

    def words(self, run: GenerationTrace) -> str:
        """A description of its values, for the line under a picture; overridden where it depends on
        the run or on the method's settings."""
        return self.description or f"{self.unit} per patch"

    def explain(
        self,
        run: GenerationTrace,
        target: Target,
        session: Session | None = None,
        progress: Progress | None = None,
    ) -> MapStack:
        """The maps behind the target's tokens.

        Args:
            run: one for which `availability` is None.
            target: tokens of the run.
            session: forward passes of the run's model, for methods that need more than a trace.
            progress: called with steps done, all steps and the current step, if there are several.
        """
        ...


def divided(above: torch.Tensor, below: torch.Tensor, least: float) -> torch.Tensor:
    """above / max(below, least * mean(below)); 0 where the denominator is 0, missing (NaN) where
    one of the two is.

    Args:
        above, below: (..., vision tokens or cells of one image).
    """
    missing = below.isnan()
    mean = below.nanmean if missing.any() else below.mean
    divisor = torch.maximum(below, least * mean(dim=-1, keepdim=True))
    ratio = torch.where(divisor > 0, above / divisor, torch.zeros_like(above))
    return ratio.masked_fill(missing, float("nan"))


def rows_of(run: GenerationTrace, part: TokenSource) -> Rows:
    """The rows of a target: the run's own, or those of its prompt.

    Raises:
        ValueError: the run has no rows of its prompt.
    """
    if part == "answer":
        return run
    if run.prompt_rows is None:
        raise ValueError("The run has no rows of its prompt: it was generated with prompt_rows=0.")
    return run.prompt_rows


def target_of(run: GenerationTrace, target: int | Sequence[int] | str | Target) -> Target:
    """Convert to a target: a token, several, "answer" for all, or a target.

    Raises:
        ValueError: the run has no such token, or no rows of its prompt.
    """
    if isinstance(target, str):
        if target != "answer":
            raise ValueError(f"target is {target!r}; allowed: tokens, 'answer', or a Target.")
        target = Target(tuple(range(len(run.tokens))))
    elif not isinstance(target, Target):
        target = Target((target,) if isinstance(target, int) else tuple(target))
    tokens = token_indices(rows_of(run, target.source), target.tokens)
    return Target(tuple(tokens), target.source)
