"""Several methods on the same token and image, and how far their maps agree."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sinkscope.attention_processor import PatchMap, map_label, refuse_lacking, slots_of
from sinkscope.capture.run import RunOutOfMemoryError
from sinkscope.capture.trace import GenerationTrace
from sinkscope.config import Reduce
from sinkscope.jobs.job import Progress, Stopped
from sinkscope.methods.base import Chosen, MapStack, Method, Target, rows_of
from sinkscope.methods.explain import METHODS, explain, method_of
from sinkscope.setting.heads import Heads

if TYPE_CHECKING:
    from sinkscope.methods.base import Session


@dataclass(frozen=True)
class SlotChoice:
    """Which slots of a method become one map; layers and heads are indices in the model.

    A method without a layer or head axis ignores them. `pairs` are single heads, (layer, head) of
    each, instead of layers and heads; a method with only a layer axis uses their layers.
    """

    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    reduce: Reduce = "mean"
    image: int = 0
    pairs: Heads | None = None

    def of(self, stack: MapStack) -> Chosen:
        """The part of the choice that a stack has axes for."""
        axes = {name for name, _ in stack.axes}
        if self.pairs is not None and {"layer", "head"} <= axes:
            return None, None, self.pairs
        layers = self.layers
        if self.pairs is not None:
            layers = tuple(sorted({layer for layer, _ in self.pairs}))
        return layers if "layer" in axes else None, self.heads if "head" in axes else None, None


@dataclass(frozen=True)
class MethodResult:
    """The outcome of one method.

    Attributes:
        method: the one that was asked.
        patches: its map; None if it gave none.
        why_not: why it gave none.
        seconds: its computing time.
    """

    method: Method
    patches: PatchMap | None
    why_not: str = ""
    seconds: float = 0.0


def methods_named(wanted: str, methods: Sequence[Method] = METHODS) -> tuple[Method, ...]:
    """Methods by a list of names: "all", or for example "attention,relative".

    Raises:
        ValueError: there is no method of that name, or a name is given twice.
    """
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    if names == ["all"]:
        return tuple(methods)
    if not names:
        allowed = ", ".join(method.name for method in methods)
        raise ValueError(f"methods is {wanted!r}; allowed: all, or some of {allowed}.")
    chosen = [method_of(name, methods) for name in names]
    if len({one.name for one in chosen}) < len(chosen):
        raise ValueError(f"methods is {wanted!r}; allowed: each method once.")
    return tuple(chosen)


def explain_each(
    run: GenerationTrace,
    target: Target,
    methods: Sequence[Method],
    choice: SlotChoice | None = None,
    *,
    session: Session | None = None,
    on_progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Iterator[MethodResult]:
    """Run methods one after the other; yield each result at once.

    A method that this run cannot provide is yielded with the reason. Results yielded before a stop
    remain valid.

    Args:
        run, target: as for `methods.explain.explain`.
        methods: in this order.
        choice: layers, heads, image.
        session: forward passes of the run's model; without one, methods that need it say so.
        on_progress: called with methods done, methods in all, and the current step.
        stop: set it to end after the current step.

    Raises:
        ValueError: a layer or head that the run does not have.
        jobs.job.Stopped: it was stopped.
    """
    choice = choice or SlotChoice()
    rows = rows_of(run, target.source)
    slots_of("layer", rows.layers, choice.layers)  # refuses what no method supports
    slots_of("head", rows.heads, choice.heads)
    if choice.pairs is not None:
        refuse_lacking(rows.layers, rows.heads, choice.pairs)
    for method, stack, why_not, seconds in explain_stacks(
        run, target, methods, session=session, on_progress=on_progress, stop=stop
    ):
        if stack is None:
            yield MethodResult(method, None, why_not)
            continue
        try:
            patches = map_of(stack, choice, label_of(run, target, stack, choice))
        except ValueError as error:  # it lacks these layers or heads
            yield MethodResult(method, None, str(error).rstrip("."))
        else:
            yield MethodResult(method, patches, seconds=seconds)


def explain_stacks(
    run: GenerationTrace,
    target: Target,
    methods: Sequence[Method],
    *,
    session: Session | None = None,
    on_progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Iterator[tuple[Method, MapStack | None, str, float]]:
    """The same with all slots: method, its stack (or None and why), and seconds."""
    total = len(methods)
    for index, method in enumerate(methods):
        report = _reporting(index, total, method, on_progress, stop)
        report(0, 0, "")
        yield (method, *_stack(run, target, method, session, report))
    if on_progress is not None:
        on_progress(total, total, "")


def _stack(
    run: GenerationTrace, target: Target, method: Method, session: Session | None, report: Progress
) -> tuple[MapStack | None, str, float]:
    why_not = method.availability(run)
    if why_not is None and session is None and (needs := method.needs_for(run)) != "trace":
        why_not = f"it needs {needs} passes of the run's model, which is not loaded"
    if why_not is None:
        why_not = method.refusal(run, target, session)
    if why_not is not None:
        return None, why_not, 0.0
    began = time.perf_counter()
    try:
        stack = explain(run, target, method, session=session, progress=report)
    except (ValueError, RunOutOfMemoryError) as error:  # the other methods may still work
        return None, str(error).rstrip("."), 0.0
    return stack, "", time.perf_counter() - began


def label_of(run: GenerationTrace, target: Target, stack: MapStack, choice: SlotChoice) -> str:
    """The tokens, layers and heads of the stack's map, in words, for the axes that it has."""
    rows = rows_of(run, target.source)
    layers, heads, pairs = choice.of(stack)
    label = map_label(rows, target.tokens, layers, heads, choice.reduce, pairs)
    axes = {name for name, _ in stack.axes}
    if "layer" not in axes:
        return label[: label.rindex(f", {choice.reduce} over ")]
    return label if "head" in axes else label[: label.rindex(" and heads ")]


def map_of(stack: MapStack, choice: SlotChoice, label: str = "") -> PatchMap:
    """The stack's map at these layers and heads; axes that it does not have are ignored."""
    layers, heads, pairs = choice.of(stack)
    return stack.map(layers, heads, choice.reduce, image=choice.image, label=label, pairs=pairs)


def _reporting(
    index: int,
    total: int,
    method: Method,
    on_progress: Progress | None,
    stop: threading.Event | None,
) -> Progress:
    """The progress callback of a method: passes steps on, and ends the method if a stop was
    requested."""

    def report(done: int, of: int, text: str) -> Any:
        if stop is not None and stop.is_set():
            raise Stopped(index, total, "methods")
        if on_progress is not None:
            inside = f" ({done} of {of})" if of > 1 else ""
            on_progress(index, total, f"{method.label}{inside}")

    return report


def rank_correlation(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """Spearman's: Pearson's correlation of the ranks, ties with their mean rank, over the cells
    that have a value in both. NaN if one of them is constant, or with fewer than 3 cells.
    """
    both = np.isfinite(one) & np.isfinite(other)
    if both.sum() < 3:
        return float("nan")
    a, b = (mean_ranks(values[both]) for values in (one, other))
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else float("nan")


def mean_ranks(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Ranks from 1 of a flat array; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse.reshape(-1)], dtype=np.float64)


def agreement(maps: Sequence[PatchMap]) -> npt.NDArray[np.float64]:
    """Rank correlation of each pair of maps on one image: float64 (maps, maps)."""
    flat = [one.values.reshape(-1).astype(np.float64) for one in maps]
    return np.array([[rank_correlation(a, b) for b in flat] for a in flat]).reshape(
        len(flat), len(flat)
    )
