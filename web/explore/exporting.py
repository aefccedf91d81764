"""Files of a run that take some time: a figure, an animation, a table. Made through the queue.

Server functions bypass Gradio's queue, so they must not do heavy work: the inspector triggers an
event instead and gets the progress. Each file is a job (`jobs.runner`) that needs no model and does
not wait in our queue; a closed tab ends it, and it leaves nothing behind.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from sinkscope.capture.trace import GenerationTrace
from sinkscope.drawing.files import ANIMATIONS, FIGURES, MOST_TOKENS, DrawFile, Drawing, draw
from sinkscope.drawing.run_summary import with_summary
from sinkscope.drawing.view import method_and_scale
from sinkscope.jobs.job import Job, JobProgress, Progress, Stopped
from sinkscope.jobs.runner import Done
from sinkscope.methods.explain import method_of
from sinkscope.methods.head_list import PickedHeads
from sinkscope.methods.precomputed import PrecomputedMaps, PrecomputedStack
from sinkscope.visualization import View, write_shares
from sinkscope.web.explore.handlers import EXPIRED, Handlers
from sinkscope.web.runs.explained_store import ExplainedStore
from sinkscope.web.runs.inspector import cached_file
from sinkscope.web.runs.job_values import UNFORESEEN, Values, inspector_event, with_error_words
from sinkscope.web.runs.pairs import find_run
from sinkscope.web.runs.payload import IN_BROWSER
from sinkscope.web.runs.standalone import build_standalone
from sinkscope.web.runs.store import Run, run_summary
from sinkscope.web.server.temporary import scratch

log = logging.getLogger(__name__)

EXPORT = "export"  # the kind of job of a file
KINDS = ("pdf", "png", "svg", "gif", "mp4", "csv", "html", "trace")
TELL_SECONDS = 0.25  # between two reports of progress


@dataclass(frozen=True)
class ExportRequest:
    """Which file of a run.

    Attributes:
        kind: one of `KINDS`.
        view: what is shown.
        side: for a view of only one side, the trace of the run that is shown.
        first, last: tokens, both included; of a figure, their mean.
        second_tokens: first and last token of the second side, where it shows others (the page's
            "own choice"). The run must have two sides, and both must be shown.
        window, seconds, width: of an animation, as in `visualization.animate`.
    """

    kind: str
    view: View = field(default_factory=View)
    side: str = ""
    first: int = 0
    last: int | None = None
    second_tokens: tuple[int, int] | None = None
    window: int = 1
    seconds: float = 0.4
    width: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; allowed: {', '.join(KINDS)}.")


def make_files(
    run: Run,
    wanted: ExportRequest,
    folder: Path,
    on_progress: Progress | None = None,
    stop: threading.Event | None = None,
    *,
    drawn_by: DrawFile = draw,
    kept: ExplainedStore | None = None,
) -> list[Path]:
    """Make the files in a folder.

    Args:
        run, wanted: which files of what.
        folder: where.
        on_progress: called with steps done, all steps, and what is being done.
        stop: once set, an animation ends before its next frame.
        drawn_by: what draws figures and animations; the app's does so in another process
            (`web.runs.drawing_process`).
        kept: what methods that read the model gave for the run's tokens; without it, or where it
            has nothing, a figure shows only what the run itself holds.

    Raises:
        ValueError: naming the setting, its value and what is allowed; or the process that draws
            has ended.
        OSError: the folder cannot be written.
        Stopped: `stop` was set before the file was finished.
    """
    tell = on_progress or _no_progress
    name = f"sinkscope-{run.id[:8]}"
    sides, view = sides_of_view(run, wanted)
    kind = wanted.kind
    path = folder / f"{name}.{kind}"
    if path.suffix in (*ANIMATIONS, *FIGURES):
        if path.suffix in FIGURES:
            tell(0, 1, "Drawing")
            path = path.with_stem(f"{name}-t{wanted.first}")
        if kept is not None:
            view = with_kept(run, wanted, view, kept)
        names = ("first", "last", "second_tokens", "window", "seconds", "width")
        options = {name: getattr(wanted, name) for name in names}
        drawing = Drawing(view, **options, idle=idle(run), summary=run_summary(run))
        drawn_by(sides, drawing, path, tell, stop)
        return [path]
    tell(0, 1, "Writing")
    if kind == "trace":
        paths = [folder / f"{name}-{variant}.safetensors" for variant in run.traces]
        for path, trace in zip(paths, run.traces.values(), strict=True):
            with_summary(trace, run_summary(run)).save(path)
        return paths
    if kind == "html":
        path.write_bytes(build_standalone(run))
    else:
        same = None if run.kind == "pair" else run.same_text
        write_shares({label_of(run, n): t for n, t in run.traces.items()}, path, same)
    return [path]


def _no_progress(done: int, total: int, text: str) -> None:
    pass


def label_of(run: Run, name: str) -> str:
    """What a side is called: in a table of one run its name, else what stands over its figure."""
    return run.label(name) if run.kind == "pair" else name


def idle(run: Run) -> bool:
    """Whether VAR changed nothing, so the two answers differ only by rounding."""
    reports = [trace.var for trace in run.traces.values() if trace.var is not None]
    return run.kind != "pair" and any(report.get("changed") is False for report in reports)


def sides_of_view(run: Run, wanted: ExportRequest) -> tuple[dict[str, GenerationTrace], View]:
    """The traces by their labels, and the view as far as this run has it."""
    view = wanted.view
    traces = dict(run.traces)
    if wanted.side or view.each:
        name = wanted.side or next(iter(traces))
        if name not in traces:
            raise ValueError(f"side is {name!r}; allowed: {', '.join(traces)}.")
        traces = {name: traces[name]}
    if len(traces) < 2 or not run.about.get("comparable", True):
        view = dataclasses.replace(view, difference=False)
    alone = len(run.traces) == 1
    return {"" if alone else run.label(name): trace for name, trace in traces.items()}, view


def with_kept(run: Run, wanted: ExportRequest, view: View, kept: ExplainedStore) -> View:
    """The view with the maps that its method gave on the page for just these tokens; as it is for
    a method that the run itself gives.

    Raises:
        ValueError: it reads the model, and was not computed for these tokens.
    """
    method = method_of(view.method)
    if method.name in IN_BROWSER:
        return view
    if wanted.second_tokens is not None:
        raise ValueError(
            f"{method.label} is computed for one choice of tokens on both sides: end “own choice” "
            "first."
        )
    if f".{wanted.kind}" in ANIMATIONS:
        if all(method.needs_for(trace) == "trace" for trace in run.traces.values()):
            return view
        raise ValueError(
            f"An animation needs the maps of every word, and {method.label} is computed for one "
            f"selection; save a figure, or choose one of {', '.join(IN_BROWSER)}."
        )
    names = [wanted.side] if wanted.side else list(run.traces)
    last = wanted.first if wanted.last is None else wanted.last
    tokens = range(wanted.first, min(last, MOST_TOKENS) + 1)
    given = kept_maps(run, view, tokens, kept, names[:1] if view.each else names)
    return view if given is None else dataclasses.replace(view, method=given, whole_answer=False)


def kept_maps(
    run: Run, view: View, tokens: Iterable[int], kept: ExplainedStore, names: Iterable[str]
) -> PrecomputedMaps | None:
    """What the view's method gave on the page for just these tokens; None where the run itself
    gives it. Other tokens' maps are not there either, so that no scale can be that of all.

    Args:
        run, view: of what.
        tokens: which, of the answer; those that a side does not have are left out.
        kept: what was computed.
        names: sides of the run.

    Raises:
        ValueError: the method reads the model, and was not computed for these tokens.
    """
    method, wanted = method_of(view.method), tuple(tokens)
    if method.name in IN_BROWSER:
        return None
    sides, given = list(names), []
    longest = max(len(run.traces[name].tokens) for name in sides)
    if view.part == "answer" and wanted and not any(0 <= t < longest for t in wanted):
        raise ValueError(f"token is {wanted[0]}; the answer has {longest}, from 0.")
    for name in sides:
        trace = run.traces[name]
        mine = tuple(token for token in wanted if token < len(trace.tokens))
        if not mine:
            continue
        maps = kept.get((run.id, name, mine, method.name), trace)
        if view.part == "answer" and maps is not None and maps.stack is not None:
            given.append(PrecomputedStack(trace, mine, maps.stack))
            continue
        side = "" if len(run.traces) == 1 else run.label(name)
        if (why := method.availability(trace)) is not None:
            where = f" for {side}" if side else " here"
            raise ValueError(f"{method.label} is not possible{where}: {why}.")
        if view.part != "answer":
            raise ValueError(f"{method.label} explains words of the answer, not of the prompt.")
        if method.needs_for(trace) != "trace":
            raise ValueError(
                f"{method.label} is not computed for this word{f' of {side}' if side else ''}: "
                "compute it on the page under Other explanations of this word first."
            )
    return PrecomputedMaps(method, tuple(given)) if given else None


def exporting(handlers: Handlers) -> Callable[..., Any]:
    """For the inspector's event: makes the file that its data asks for, and tells it how far."""

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
    """For the inspector's other event: ends the file that this session has asked for."""

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
        for name in ("layers", "heads", "each"):
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
