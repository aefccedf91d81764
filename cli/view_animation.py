"""Other outputs of `show`: animations, tables of shares, and two runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sinkscope.capture.trace import GenerationTrace
from sinkscope.cli import common
from sinkscope.cli.drawing import Selection, find_tokens
from sinkscope.cli.show import MOVING
from sinkscope.drawing.view import same_grids, same_images
from sinkscope.visualization import (
    OverlayStyle,
    View,
    animation_steps,
    save,
    view_figure,
    write_shares,
)


def write_view(
    traces: dict[str, GenerationTrace],
    selection: Selection,
    style: OverlayStyle,
    output: Path,
    *,
    window: int,
    seconds: float,
    width: int | None,
) -> None:
    """Write an animation, a table, or a figure of one or two runs.

    Raises:
        ValueError: an empty answer, or a selection that a run does not hold.
        OSError: the file cannot be written.
    """
    shown: Any = traces if len(traces) > 1 else next(iter(traces.values()))
    if output.suffix.lower() == ".csv":
        write_shares(shown, output)
        return
    view = view_of(traces, selection, style)
    first = next(iter(traces.values()))
    tokens = None if selection.token == "all" else find_tokens(first, selection.token)
    if output.suffix.lower() not in MOVING:
        if tokens is None:
            raise ValueError("A figure of two runs is of one token; name it with --token.")
        save(view_figure(shown, tokens, view), output)
        return
    span: dict[str, Any] = {} if tokens is None else {"first": tokens[0], "last": tokens[-1]}
    steps = animation_steps(
        shown, output, view, window=window, seconds=seconds, width=width, **span
    )
    with common.progress("Drawing", 100) as bar:
        for done, count in steps:
            bar.update(round(100 * done / count) - bar.pos)


def view_of(traces: dict[str, GenerationTrace], selection: Selection, style: OverlayStyle) -> View:
    """The page's view for the options of the command line."""
    both = list(traces.values())
    selection = selection.for_run(both[0])
    if selection.picked is not None:
        for trace in both[1:]:
            selection.picked.check_run(trace.layers, trace.heads)
    same = len(both) > 1 and same_grids(*both) and same_images(*both)
    return View(
        layers=selection.layers,
        heads=selection.heads,
        picked=selection.picked,
        reduce=selection.reduce,
        image=selection.image,
        method=selection.method,
        scale=style.scale,
        difference=same,
        colormap=style.colormap,
        opacity=style.opacity,
        photo=selection.photo,
        smooth=style.smoothing,
        sinks=selection.sinks,
    )
