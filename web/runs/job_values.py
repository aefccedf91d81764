"""Values for a component while a job waits, computes and ends; shared by the tabs.

A job either makes a result with an id of its own (`result_values`, `with_error_value`), or adds
something to what the inspector shows (`progress_values`, `with_error_words`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from typing import Any

import gradio as gr

from sinkscope.attention_extractor import RunOutOfMemoryError
from sinkscope.jobs.job import Job, JobProgress
from sinkscope.jobs.runner import Done, Runner, Waiting, Work
from sinkscope.models.loading import ModelHandle
from sinkscope.web.runs.inspector import error_value, queued_value
from sinkscope.web.runs.loaded_model import LoadedModel, why_no_model

log = logging.getLogger(__name__)

UNFORESEEN = (
    "Something went wrong inside SinkScope; the log of the app has the details. Please try again."
)

Values = Generator[dict[str, Any], None, None]


def field_of(ask: Any, name: str) -> Any:
    """A field of a component's question; None if it is missing."""
    return ask.get(name) if isinstance(ask, Mapping) else None


def session_hash_of(request: gr.Request | None) -> str:
    """The session of a request; "" for a call from Python."""
    return (request.session_hash if request else "") or ""


def inspector_event(
    values: Callable[[Mapping[str, Any], str], Values], name: str
) -> Callable[..., Any]:
    """The function for an inspector's event: calls `values` with the event's data and the session.
    Gradio, and a read-only start (`server.read_only`), identify it by its name."""

    def answer(
        event: gr.EventData,
        request: gr.Request = None,  # type: ignore[assignment]  # filled in by Gradio
    ) -> Iterator[dict[str, Any]]:
        ask = event._data if isinstance(event._data, Mapping) else {}
        yield from values(ask, session_hash_of(request))

    answer.__name__ = name
    return answer


def loaded_handle(loaded: LoadedModel) -> ModelHandle:
    """The loaded model.

    Raises:
        ValueError: none is loaded; the text says why.
    """
    if loaded.handle is None:
        raise ValueError(why_no_model(loaded.state))
    return loaded.handle


def result_values(
    runner: Runner, job: Job, work: Work, run_id: str, running: Callable[[JobProgress, float], Any]
) -> Values:
    """Values of a job. Its work returns the last one, or None if that is made after the job.

    `running` makes a value from the progress and the seconds since the job began.
    """
    started = -1.0
    for event in runner.run(job, work):
        if isinstance(event, Waiting):
            yield queued_value(run_id, event.before)
        elif isinstance(event, Done):
            if event.result is not None:
                yield event.result
        else:
            started = time.monotonic() if started < 0 else started
            yield running(event, time.monotonic() - started)


def running_value(
    run_id: str, at: JobProgress, message: str, what: str, seconds: float | None = None
) -> dict[str, Any]:
    """The progress of a job; `what` is the unit of its steps."""
    facts = [f"{at.done} of {at.total} {what}"] if at.total else []
    return {
        "phase": "running",
        "run": run_id,
        "message": message,
        "facts": facts if seconds is None else [*facts, f"{seconds:.0f} s"],
        "fraction": at.done / at.total if at.total else None,
        "text": at.text,
    }


def with_error_value(
    values: Values, run_id: str, what: str, words: Callable[[Exception], str] = str
) -> Values:
    """The values. If they end in an error, yields a value that says so and then raises the error
    for callers of the API. `what` names the failed action in the log; `words` makes the text of a
    user's mistake.

    Raises:
        gr.Error: after the error value.
    """
    try:
        yield from values
    except (ValueError, RunOutOfMemoryError) as error:
        text = words(error)
        yield error_value(run_id, text)
        raise gr.Error(text, title="Not possible", print_exception=False) from error
    except gr.Error:
        raise
    except Exception as error:
        log.exception("%s failed", what)
        yield error_value(run_id, UNFORESEEN)
        raise gr.Error(UNFORESEEN, print_exception=False) from error


def progress_values(
    runner: Runner,
    job: Job,
    work: Work,
    found: Callable[[], dict[str, Any]],
    message: str,
) -> Values:
    """Values of a job that adds to `found` while it computes; `message` is shown until the job
    reports something itself."""
    for event in runner.run(job, work):
        if isinstance(event, Waiting):
            several = "run" if event.before == 1 else "runs"
            yield {"message": f"Waiting: {event.before} {several} before this"}
        elif isinstance(event, Done):
            yield {**found(), "done": True}
        else:
            fraction = event.done / event.total if event.total else 0
            yield {"message": event.text or message, "fraction": fraction, **found()}


def with_error_words(values: Values, about: Mapping[str, Any], what: str) -> Values:
    """Each value together with `about`. If they end in an error, the last value says so. `what`
    names the failed action in the log."""
    try:
        with closing(values):  # closing this generator ends the job inside it
            for value in values:
                yield {**about, **value}
    except (ValueError, RunOutOfMemoryError) as error:
        yield {**about, "error": str(error)}
    except Exception:
        log.exception("%s failed", what)
        yield {**about, "error": UNFORESEEN}
