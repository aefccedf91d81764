"""Files of a run: figures, animations, tables, pages and traces, made in a folder."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sinkscope.capture.trace import GenerationTrace
from sinkscope.drawing.files import ANIMATIONS, FIGURES, MOST_TOKENS, DrawFile, Drawing, draw
from sinkscope.drawing.run_summary import with_summary
from sinkscope.jobs.job import Progress
from sinkscope.methods.explain import method_of
from sinkscope.methods.precomputed import PrecomputedMaps, PrecomputedStack
from sinkscope.visualization import View, write_shares
from sinkscope.web.runs.explained_store import ExplainedStore
from sinkscope.web.runs.payload import IN_BROWSER
from sinkscope.web.runs.standalone import build_standalone
from sinkscope.web.runs.store import Run, run_summary

KINDS = ("pdf", "png", "svg", "gif", "mp4", "csv", "html", "trace")


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
        place: of a page, the view that it opens with, as the page's address has it.
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
    place: str = ""

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
        run: the run.
        wanted: the kind of file and the view.
        folder: the folder that they are written to.
        on_progress: called with steps done, all steps, and the current step.
        stop: once set, an animation ends before its next frame.
        drawn_by: what draws figures and animations; the app's does so in another process
            (`web.runs.drawing_process`).
        kept: maps of methods that read the model, computed before for tokens of the run; other
            tokens can only be drawn by methods that read the run alone.

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
        variants = [wanted.side] if wanted.side else list(run.traces)
        paths = [folder / f"{name}-{variant}.safetensors" for variant in variants]
        for path, variant in zip(paths, variants, strict=True):
            with_summary(run.traces[variant], run_summary(run)).save(path)
        return paths
    if kind == "html":
        path.write_bytes(build_standalone(run, place=wanted.place))
    else:
        same = None if run.kind == "pair" else run.same_text
        write_shares({label_of(run, n): t for n, t in run.traces.items()}, path, same)
    return [path]


def _no_progress(done: int, total: int, text: str) -> None:
    pass


def label_of(run: Run, name: str) -> str:
    """A side's name in a table of one run, or its title above a figure."""
    return run.label(name) if run.kind == "pair" else name


def idle(run: Run) -> bool:
    """Whether VAR changed nothing, so the two answers differ only by rounding."""
    reports = [trace.var for trace in run.traces.values() if trace.var is not None]
    return run.kind != "pair" and any(report.get("changed") is False for report in reports)


def sides_of_view(run: Run, wanted: ExportRequest) -> tuple[dict[str, GenerationTrace], View]:
    """The traces by their labels, and the view as far as this run has it."""
    view = wanted.view
    traces = dict(run.traces)
    if wanted.side or view.separate_layers:
        name = wanted.side or next(iter(traces))
        if name not in traces:
            raise ValueError(f"side is {name!r}; allowed: {', '.join(traces)}.")
        traces = {name: traces[name]}
    if len(traces) < 2 or not run.about.get("comparable", True):
        view = dataclasses.replace(view, difference=False)
    alone = len(run.traces) == 1
    return {"" if alone else run.label(name): trace for name, trace in traces.items()}, view


def with_kept(run: Run, wanted: ExportRequest, view: View, kept: ExplainedStore) -> View:
    """The view with the maps that were computed on the page for exactly these tokens; unchanged
    for a method that reads only the run.

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
    given = kept_maps(run, view, tokens, kept, names[:1] if view.separate_layers else names)
    return view if given is None else dataclasses.replace(view, method=given, whole_answer=False)


def kept_maps(
    run: Run, view: View, tokens: Iterable[int], kept: ExplainedStore, names: Iterable[str]
) -> PrecomputedMaps | None:
    """The maps that were computed on the page for exactly these tokens; None for a method that
    reads only the run. A scale over all tokens is not possible with them.

    Args:
        run, view: what is drawn.
        tokens: indices in the answer; those that a side does not have are left out.
        kept: the computed maps.
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
