"""The region test of the Explore tab: does the box that was dragged on the image matter?

The inspector triggers an event; the test is a job that waits in the model's queue and is streamed
back in values of phase "region": the progress, and the result so far. It needs the model that made
the run. The keys and values up to the image, which the boxes of one answer share, are kept for the
last tested answer, so that another box costs only its own passes.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gradio as gr

from sinkscope.attention_extractor import RunOutOfMemoryError
from sinkscope.capture.prefix import Prefix
from sinkscope.experiments.answers import PromptAndAnswer, prompt_and_answer
from sinkscope.experiments.boxes import Box, grid_of
from sinkscope.experiments.region import prefix_of, region_steps
from sinkscope.experiments.region_effect import RegionEffect
from sinkscope.experiments.region_settings import RegionSettings
from sinkscope.jobs.job import Job, Stopped
from sinkscope.jobs.runner import StoppedWaiting
from sinkscope.models.loading import ModelHandle
from sinkscope.web.explore.handlers import EXPIRED, Handlers
from sinkscope.web.runs.job_values import (
    Values,
    inspector_event,
    loaded_handle,
    progress_values,
    with_error_words,
)
from sinkscope.web.runs.pairs import find_run
from sinkscope.web.runs.store import Run

REGION = "region"  # the kind of job
BOXES = 64
STALE = "This box cannot be tested; please reload the page."


@dataclass(frozen=True)
class RegionRequest:
    """The inspector's request.

    Attributes:
        boxes: side of the run -> the box on its image.
        settings: how it is tested.
    """

    boxes: Mapping[str, Box]
    settings: RegionSettings


@dataclass
class _RegionResults:
    """The result so far: the job's thread writes it, the generator sends it to the page."""

    effects: dict[str, RegionEffect] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def value(self) -> dict[str, Any]:
        """By side: the result, or the reason why there is none."""
        return {
            **{name: effect.to_json() for name, effect in list(self.effects.items())},
            **{name: {"error": text} for name, text in list(self.errors.items())},
        }


class LastTested:
    """The answers of the last tested run, with their shared prefix; one object for the app."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handle: weakref.ref[ModelHandle] | None = None  # must not keep a model in memory
        self._run = ""
        self._kept: dict[str, tuple[PromptAndAnswer, Prefix | None]] = {}  # by side

    def of(
        self, handle: ModelHandle, run: Run, name: str, shared: bool
    ) -> tuple[PromptAndAnswer, Prefix | None]:
        """Prompt and answer of one side of a run, and their prefix if it is needed.

        Raises:
            ValueError: as `prompt_and_answer`.
        """
        with self._lock:
            known = self._handle is not None and self._handle() is handle and self._run == run.id
            if not known:
                self._forget()  # before the new one takes memory
                self._handle, self._run = weakref.ref(handle), run.id
            kept = self._kept.get(name)
        answered_prompt, prefix = kept or (prompt_and_answer(handle, run.traces[name]), None)
        if shared and prefix is None:
            prefix = prefix_of(handle, answered_prompt)
        with self._lock:
            if self._run == run.id:  # nothing else came in the meantime
                self._kept[name] = (answered_prompt, prefix)
        return answered_prompt, prefix

    def drop(self) -> None:
        """Forget it and free its keys and values."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        self._handle, self._run, self._kept = None, "", {}


def testing_region(handlers: Handlers, last: LastTested) -> Callable[..., Any]:
    """For the inspector's event: tests the box of its data, and reports progress."""
    return inspector_event(partial(region_values, handlers, last), "test_region")


def stopping_region(handlers: Handlers) -> Callable[..., Any]:
    """For the inspector's other event: ends this session's test."""

    def stop_region(request: gr.Request) -> None:
        handlers.runner.stop(request.session_hash or "", REGION)

    return stop_region


def region_values(
    handlers: Handlers, last: LastTested, ask: Mapping[str, Any], session: str
) -> Values:
    """Yield values for the inspector: waiting, progress with the result so far, and the result or
    an error."""
    about = {"phase": "region", "ask": str(ask.get("ask"))[:64]}
    job = handlers.runner.job(session, REGION)
    return with_error_words(_tested(handlers, last, ask, job), about, "a region test")


def _tested(handlers: Handlers, last: LastTested, ask: Mapping[str, Any], job: Job) -> Values:
    run = find_run(handlers.store, ask.get("run"), ask.get("names"), described=False)
    if run is None:
        raise ValueError(EXPIRED)
    effects = _RegionResults()

    def found() -> dict[str, Any]:
        return {"found": effects.value()}

    work = partial(_work, handlers, last, run, read_region_request(ask, run), effects)
    try:
        yield from progress_values(handlers.runner, job, work, found, "Reading the image")
    except StoppedWaiting:
        yield {"error": "Stopped while it was waiting; nothing was tested."}
    except Stopped as stopped:
        words = f"{job.ended_by} after {stopped.done} of {stopped.total} other boxes."
        yield {**found(), "error": words}


def _work(
    handlers: Handlers,
    last: LastTested,
    run: Run,
    region_request: RegionRequest,
    results: _RegionResults,
    job: Job,
) -> None:
    """Test each side's box in the job's thread."""
    handle = loaded_handle(handlers.loaded)
    for name, box in region_request.boxes.items():
        try:
            trace, prefix = last.of(handle, run, name, region_request.settings.how == "cut")
            for effect in region_steps(
                handle, trace, box, region_request.settings, prefix=prefix, **job.hooks
            ):
                results.effects[name] = effect
        except ValueError as error:  # of two runs side by side one may be another model's
            results.errors[name] = str(error)
        except RunOutOfMemoryError:
            last.drop()
            raise
    if len(results.errors) == len(region_request.boxes):
        raise ValueError(next(iter(results.errors.values())))


def read_region_request(ask: Mapping[str, Any], run: Run) -> RegionRequest:
    """Read the inspector's request from unchecked data.

    Raises:
        ValueError: it is not such a request, or a box is not on its image.
    """
    try:
        given = ask["boxes"]
        boxes = {
            str(name): Box(
                *(_count(one[part]) for part in ("row", "column", "rows", "columns", "image")),
            )
            for name, one in given.items()
        }
        settings = RegionSettings(ask.get("how", "cut"), BOXES)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(STALE) from error
    if not boxes or not set(boxes) <= set(run.traces):
        raise ValueError(STALE)
    for name, box in boxes.items():
        grid_of(run.traces[name].layout, box)
    return RegionRequest(boxes, settings)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10**6:
        raise TypeError(value)
    return value
