"""Methods that need the model, in the Explore tab: computed on demand, kept, shown side by side.

The inspector triggers an event; the methods are a job that waits in the model's queue and is
streamed back in values of phase "explain". A method's result (a `MapStack`) is kept with the run
(`web.runs.explained_store`), so that other layers and heads, or opening the run again, need no
model: the server function `explained` makes the maps from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import gradio as gr
import numpy as np

from sinkscope.attention_processor import refuse_lacking
from sinkscope.capture.trace import GenerationTrace
from sinkscope.config import Reduce
from sinkscope.jobs.job import Job, Stopped
from sinkscope.jobs.runner import StoppedWaiting
from sinkscope.methods.base import Method, Target, target_of
from sinkscope.methods.explain import METHODS, method_of
from sinkscope.methods.head_list import PickedHeads
from sinkscope.methods.passes import passes_of
from sinkscope.methods.together import SlotChoice, explain_stacks, map_of
from sinkscope.web.explore.handlers import EXPIRED, Handlers
from sinkscope.web.runs.explained_store import StoredMaps
from sinkscope.web.runs.job_values import (
    Values,
    inspector_event,
    loaded_handle,
    progress_values,
    with_error_words,
)
from sinkscope.web.runs.pairs import find_run
from sinkscope.web.runs.store import Run

EXPLAIN = "explain"  # the kind of job
STALE = "This cannot be explained; please reload the page."
MOST_TOKENS = 4096


@dataclass(frozen=True)
class ExplainRequest:
    """The inspector's request: tokens by side, methods, and how maps are made from them."""

    targets: Mapping[str, Target]
    methods: tuple[Method, ...]
    choice: SlotChoice


class Explaining:
    """The events and the server function."""

    def __init__(self, handlers: Handlers) -> None:
        self.handlers, self.store = handlers, handlers.explained

    def explained(self, ask: Any) -> dict[str, Any]:
        """Server function: the maps that are already computed, by side and method."""
        ask = ask if isinstance(ask, Mapping) else {}
        try:
            run = self._run(ask)
            return {"sides": self._sides(run, read_explain_request(ask, run))}
        except ValueError as error:
            return {"error": str(error)}

    def compute(self) -> Callable[..., Any]:
        """For the inspector's event: computes the methods that its data names."""
        return inspector_event(self.values, "explain_tokens")

    def stop(self) -> Callable[..., Any]:
        """For the inspector's other event: ends this session's job."""

        def stop_explaining(request: gr.Request) -> None:
            self.handlers.runner.stop(request.session_hash or "", EXPLAIN)

        return stop_explaining

    def values(self, ask: Mapping[str, Any], session: str) -> Values:
        """Yield values for the inspector: waiting, progress, and the maps or an error."""
        about = {"phase": "explain", "ask": str(ask.get("ask"))[:64]}
        job = self.handlers.runner.job(session, EXPLAIN)
        return with_error_words(self._computed(ask, job), about, "explaining a token")

    def _computed(self, ask: Mapping[str, Any], job: Job) -> Values:
        run = self._run(ask)
        explain_request = read_explain_request(ask, run)

        def found() -> dict[str, Any]:
            return {"sides": self._sides(run, explain_request)}

        work = partial(self._work, run, explain_request)
        try:
            yield from progress_values(self.handlers.runner, job, work, found, "Reading the answer")
        except StoppedWaiting:
            yield {"error": "Stopped while it was waiting; nothing was computed."}
        except Stopped:
            yield {**found(), "error": f"{job.ended_by}; the methods that were ready are kept."}

    def _run(self, ask: Mapping[str, Any]) -> Run:
        run = find_run(self.handlers.store, ask.get("run"), ask.get("names"), described=False)
        if run is None:
            raise ValueError(EXPIRED)
        return run

    def _work(self, run: Run, explain_request: ExplainRequest, job: Job) -> None:
        """Compute the missing results of each side, in the job's thread."""
        handle = loaded_handle(self.handlers.loaded)
        sides = list(explain_request.targets.items())
        faults: list[str] = []
        for index, (name, target) in enumerate(sides):
            todo = [one for one in explain_request.methods if self._lacks(run, name, target, one)]
            trace = run.traces[name]
            try:
                session = passes_of(handle, trace, stop=job.stop_event)
            except ValueError as error:  # of two runs side by side one may be another model's
                faults.append(str(error))
                continue
            total = len(todo) * len(sides)

            def report(done: int, of: int, text: str, first: int = index * len(todo)) -> None:
                job.report(first + done, total, text)  # noqa: B023

            for method, stack, why_not, seconds in explain_stacks(
                trace, target, todo, session=session, on_progress=report, stop=job.stop_event
            ):
                key = (run.id, name, target.tokens, method.name)
                self.store.put(key, StoredMaps(stack, why_not, seconds))
        if len(faults) == len(sides):
            raise ValueError(faults[0])

    def _lacks(self, run: Run, name: str, target: Target, method: Method) -> bool:
        key = (run.id, name, target.tokens, method.name)
        kept = self.store.get(key, run.traces[name])
        return kept is None or kept.stack is None  # a reason may be gone with another model

    def _sides(self, run: Run, explain_request: ExplainRequest) -> dict[str, dict[str, Any]]:
        sides: dict[str, dict[str, Any]] = {}
        for name, target in explain_request.targets.items():
            sides[name] = {}
            for method in explain_request.methods:
                key = (run.id, name, target.tokens, method.name)
                kept = self.store.get(key, run.traces[name])
                if kept is None:
                    why = method.availability(run.traces[name])
                    if why is not None:
                        sides[name][method.name] = {"why": why}
                elif kept.stack is None:
                    sides[name][method.name] = {"why": kept.why_not}
                else:
                    sides[name][method.name] = map_value(
                        kept, run.traces[name], explain_request.choice
                    )
        return sides


def map_value(kept: StoredMaps, trace: GenerationTrace, choice: SlotChoice) -> dict[str, Any]:
    """A method's map for the browser: values of the cells of all images, null if missing."""
    assert kept.stack is not None
    values: list[float | None] = []
    for image in range(len(trace.layout.grids)):
        one = dataclasses.replace(choice, image=image)
        cells = map_of(kept.stack, one).values.reshape(-1)
        values += [float(f"{v:.6g}") if np.isfinite(v) else None for v in cells]
    return {
        "values": values,
        "unit": kept.stack.unit,
        "signed": kept.stack.signed,
        "normalisation": kept.stack.normalisation,
        "seconds": round(kept.seconds, 2),
    }


def read_explain_request(ask: Mapping[str, Any], run: Run) -> ExplainRequest:
    """Read the inspector's request from unchecked data.

    Raises:
        ValueError: it is not such a request, or the run has no such token, layer or head.
    """
    try:
        first, last = _count(ask["t0"]), _count(ask["t1"])
        names = ask.get("methods")
        methods = METHODS if names is None else tuple(method_of(str(n)) for n in names)
        layers, heads = (tuple(map(_index, ask[name])) for name in ("layers", "heads"))
        reduce = ask.get("reduce", "mean")
        pairs = PickedHeads(ask["pairs"]).pairs if ask.get("pairs") else None
    except (KeyError, TypeError) as error:
        raise ValueError(STALE) from error
    if reduce not in get_args(Reduce) or not 0 <= first <= last < first + MOST_TOKENS:
        raise ValueError(STALE)
    targets = {
        name: target_of(trace, range(first, min(last, len(trace.tokens) - 1) + 1))
        for name, trace in run.traces.items()
        if first < len(trace.tokens)
    }
    if not targets or not methods:
        raise ValueError(STALE)
    if not set(layers) <= set(run.first.layers) or not set(heads) <= set(run.first.heads):
        raise ValueError(STALE)
    if pairs is not None:
        for trace in run.traces.values():
            refuse_lacking(trace.layers, trace.heads, pairs)
    return ExplainRequest(
        targets, methods, SlotChoice(layers or None, heads or None, reduce, pairs=pairs)
    )


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10**6:
        raise TypeError(value)
    return value


def _index(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value < 10**6:
        raise TypeError(value)
    return value


def connect_explaining(inspector: gr.HTML, explaining: Explaining, waiting: int) -> None:
    """The inspector's two events: compute, and Stop."""
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    inspector.play(
        explaining.compute(),
        None,
        inspector,
        concurrency_id="gpu",
        concurrency_limit=waiting,
        **quiet,
    )
    inspector.end(explaining.stop(), None, None, queue=False, **quiet)
