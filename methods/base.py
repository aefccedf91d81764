"""What an explanation method is, and what it gives: the protocol and its values."""

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
    of_pairs,
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
Part = Literal["answer", "prompt"]
AxisName = Literal["token", "layer", "head"]
Axes = tuple[tuple[AxisName, tuple[int, ...]], ...]

# Layers, heads (indices in the model; None: all), and single heads in their place.
Chosen = tuple[Sequence[int] | None, Sequence[int] | None, Heads | None]

AXES: tuple[AxisName, ...] = ("token", "layer", "head")


@dataclass(frozen=True)
class Target:
    """What is explained: some tokens of a run's answer, or of its prompt.

    Attributes:
        tokens: indices from 0; of the prompt into `trace.prompt_rows`.
        part: whose tokens.
    """

    tokens: tuple[int, ...]
    part: Part = "answer"


@dataclass(frozen=True)
class MapStack:
    """What a method gives: a map for each slot, a slot being a token, layer and head.

    Attributes:
        values: float32 (slots, V): one value for each vision token of all images; NaN is missing,
            which is not 0.
        axes: name and indices (of tokens, and in the model) of each axis, of `AXES` in this order
            those that the method has. Slots are their product, the last axis running fastest.
        layout: the prompt's, which says where the vision tokens are.
        unit: what a value is, such as "attention mass"; pictures write values accordingly
            (`drawing.scale.said_in`).
        signed: values of either sign are drawn around 0.
        normalisation: what was done to the values, in words.
        ratio: where values are a ratio, the stacks above and below the line. `map` combines the
            slots of each first and divides then, which is not the mean of the slots' ratios.
        least: what is divided by at least, as a part of the mean over the image below the line.
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

        A patch of which a slot's value is missing has none.

        Args:
            layers, heads: indices in the model; None is all of the axis.
            image: which image.
            label: what is explained, in words.
            pairs: (layer, head) of single heads, in the place of layers and heads.

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
        """float32 (rows, columns) of the image's map. A ratio is that of two maps, as the page has
        it: where an image has several views, they are merged before one is divided."""
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
        return combine(of_pairs(cells, axes["layer"], axes["head"], pairs), reduce)

    def _chosen(self, name: AxisName, wanted: Sequence[int] | None) -> list[int]:
        indices = dict(self.axes).get(name)
        if wanted is None:
            return list(range(1 if indices is None else len(indices)))
        if indices is None:
            raise ValueError(f"{name}s is {list(wanted)}; this method has no {name}s to choose.")
        return slots_of(name, indices, wanted)


class Method(Protocol):
    """An explanation method. Inherit from this for what is the same in most of them.

    Attributes:
        name: by which it is chosen, such as "without_sinks".
        source: the paper or code that it is from; empty for what is this project's own.
        needs: a trace alone, forward passes of the model, or gradients too.
        unit, signed: of its values, as in `MapStack`.
    """

    name: str
    source: str = ""
    needs: Needs = "trace"
    unit: str = "attention mass"
    signed: bool = False

    @property
    def label(self) -> str:
        """The name as it is shown."""
        return self.name.replace("_", " ")

    def availability(self, run: GenerationTrace) -> str | None:
        """None, or why this run cannot give it: "the run ..."."""
        return None

    def needs_for(self, run: GenerationTrace) -> Needs:
        """What this run needs, where it is less than `needs`."""
        return self.needs

    def refusal(self, run: GenerationTrace, target: Target, session: Session | None) -> str | None:
        """None, or why the run's model cannot give it for this target: asked before anything is
        computed. `session` is there where `needs_for` asks for one."""
        return None

    def words(self, run: GenerationTrace) -> str:
        """What its values are, for the line under a picture."""
        return f"{self.unit} per patch"

    def explain(
        self,
        run: GenerationTrace,
        target: Target,
        session: Session | None = None,
        progress: Progress | None = None,
    ) -> MapStack:
        """The maps behind the target's tokens.

        Args:
            run: which must be one that `availability` has nothing to say against.
            target: whose tokens the run has.
            session: forward passes of the run's model, for methods that need more than a trace.
            progress: called with steps done, all steps and the step at hand, if there are several.
        """
        ...


def divided(above: torch.Tensor, below: torch.Tensor, least: float) -> torch.Tensor:
    """above / max(below, least * mean(below)); 0 where there is nothing to divide by, missing (NaN)
    where one of the two is.

    Args:
        above, below: (..., vision tokens or cells of one image).
    """
    missing = below.isnan()
    mean = below.nanmean if missing.any() else below.mean
    divisor = torch.maximum(below, least * mean(dim=-1, keepdim=True))
    made = torch.where(divisor > 0, above / divisor, torch.zeros_like(above))
    return made.masked_fill(missing, float("nan"))


def rows_of(run: GenerationTrace, part: Part) -> Rows:
    """Whose rows a target's are: the run's own, or those of its prompt.

    Raises:
        ValueError: the run has no rows of its prompt.
    """
    if part == "answer":
        return run
    if run.prompt_rows is None:
        raise ValueError("The run has no rows of its prompt: it was generated with prompt_rows=0.")
    return run.prompt_rows


def target_of(run: GenerationTrace, target: int | Sequence[int] | str | Target) -> Target:
    """A target from what stands for one: a token, several, "answer" for all, or a target.

    Raises:
        ValueError: the run has no such token, or no rows of its prompt.
    """
    if isinstance(target, str):
        if target != "answer":
            raise ValueError(f"target is {target!r}; allowed: tokens, 'answer', or a Target.")
        target = Target(tuple(range(len(run.tokens))))
    elif not isinstance(target, Target):
        target = Target((target,) if isinstance(target, int) else tuple(target))
    tokens = token_indices(rows_of(run, target.part), target.tokens)
    return Target(tuple(tokens), target.part)
