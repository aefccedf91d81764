"""Exports of the page as jobs: a file that takes some time is made through the queue.

Server functions bypass Gradio's queue, so they must not do heavy work: the inspector triggers an
event instead and gets the progress. Each file is a job (`jobs.runner`) that needs no model and does
not wait in our queue; closing the tab ends it and removes its files.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from sinkscope.drawing.view import method_and_scale
from sinkscope.jobs.job import Job, JobProgress, Stopped
from sinkscope.jobs.runner import Done
from sinkscope.methods.head_list import PickedHeads
from sinkscope.visualization import View
from sinkscope.web.explore.export_files import ExportRequest, make_files
from sinkscope.web.explore.handlers import EXPIRED, Handlers
from sinkscope.web.runs.inspector import cached_file
from sinkscope.web.runs.job_values import UNFORESEEN, Values, inspector_event, with_error_words
from sinkscope.web.runs.pairs import find_run
from sinkscope.web.runs.store import Run
from sinkscope.web.server.temporary import scratch

log = logging.getLogger(__name__)

EXPORT = "export"  # the kind of job of a file
TELL_SECONDS = 0.25  # between two reports of progress


def exporting(handlers: Handlers) -> Callable[..., Any]:
    """For the inspector's event: makes the requested file, and reports progress."""

    def values(ask: Mapping[str, Any], session: str) -> Values:
        about = {"phase": "export", "ask": str(ask.get("ask"))[:64]}
        job = handlers.runner.job(session, EXPORT)
        yield from with_error_words(_exported(handlers, ask, job), about, "an export")

    return inspector_event(values, "export_view")


def _exported(handlers: Handlers, ask: Mapping[str, Any], job: Job) -> Values:
    run = find_run(handlers.store, ask.get("run"), ask.get("names"))
    if run is None:
        raise ValueError(EXPIRED)
    reported = 0.0
    work = partial(_files, handlers, run, read_export_request(ask))
    try:
        for event in handlers.runner.run(job, work, waits=False):
            if isinstance(event, Done):
                yield {"files": event.result}
            elif isinstance(event, JobProgress) and time.monotonic() - reported > TELL_SECONDS:
                reported = time.monotonic()
                yield {"message": event.text or "Writing"}
    except Stopped as stopped:
        words = f"{job.ended_by} after {stopped.done} of {stopped.total} {stopped.what}."
        yield {"error": words}
    except OSError as error:  # its own text would name a folder of this machine
        log.exception("an export failed")
        words = f"The file cannot be written: {error.strerror}."
        yield {"error": words if error.strerror else UNFORESEEN}


def stopping_export(handlers: Handlers) -> Callable[..., Any]:
    """For the inspector's other event: ends the making of this session's file."""

    def stop_export(request: gr.Request) -> None:
        handlers.runner.stop(request.session_hash or "", EXPORT)

    return stop_export


def _files(handlers: Handlers, run: Run, wanted: ExportRequest, job: Job) -> list[dict[str, Any]]:
    """Put the files where Gradio serves files; returns what the browser needs to fetch them."""
    assert handlers.component is not None
    with scratch() as folder:
        return [
            handlers.copied(
                run, {**cached_file(path, handlers.component), "bytes": path.stat().st_size}
            )
            for path in make_files(
                run,
                wanted,
                Path(folder),
                **job.hooks,
                drawn_by=handlers.drawing,
                kept=handlers.explained,
            )
        ]


def read_export_request(ask: Mapping[str, Any]) -> ExportRequest:
    """Read the inspector's request from unchecked data.

    Raises:
        ValueError: it is not such a request.
    """
    try:
        given = dict(ask["view"])
        given["separate_layers"] = given.pop("each", ())
        for name in ("layers", "heads", "separate_layers"):
            if given.get(name) is not None:
                given[name] = tuple(_index(n) for n in given[name])
        fields = {f.name for f in dataclasses.fields(View)}
        names = given.get("method", "attention"), given.get("scale", "percentile")
        given["method"], given["scale"] = method_and_scale(*map(str, names))
        if given.get("picked") is not None:
            picked = given["picked"]
            if not isinstance(picked, Mapping):
                raise TypeError(picked)
            given["picked"] = PickedHeads(picked["pairs"], str(picked.get("kind") or ""))
        view = View(**{name: value for name, value in given.items() if name in fields})
        return ExportRequest(
            str(ask.get("kind")),
            view,
            str(ask.get("side") or ""),
            _index(ask.get("first", 0)),
            None if ask.get("last") is None else _index(ask["last"]),
            None if ask.get("own") is None else _both(ask["own"]),
            _index(ask.get("window", 1)),
            float(ask.get("seconds", 0.4)),
            None if ask.get("width") is None else _index(ask["width"]),
        )
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError("This view cannot be exported; please reload the page.") from error


def _both(value: Any) -> tuple[int, int]:
    first, last = value if isinstance(value, list) and len(value) == 2 else (None, None)
    return _index(first), _index(last)


def _index(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > 10**6:
        raise TypeError(value)
    return value
