"""`show TRACE`: open a saved run, print its answer, and draw it again with other choices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sinkscope.cli import common
from sinkscope.cli.options import verb
from sinkscope.cli.picture import Drawing


@verb
def show(
    trace_file: Annotated[
        Path, typer.Argument(metavar="TRACE", help="Written by heatmap --save-trace, or the app.")
    ],
    *,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A .png, .pdf, .svg, .gif, .mp4 or .csv file."),
    ] = None,
    drawing: Drawing,
    image: Annotated[
        int, typer.Option(min=0, help="Which image of the prompt, counted from 0.")
    ] = 0,
    beside: Annotated[
        Path | None,
        typer.Option(help="A second trace to stand beside it, with the difference of their maps."),
    ] = None,
    window: Annotated[
        int,
        typer.Option(min=1, help="Of an animation: each frame is the mean over so many tokens."),
    ] = 1,
    seconds: Annotated[
        float, typer.Option(help="Of an animation: how long a frame is shown.")
    ] = 0.4,
    width: Annotated[int | None, typer.Option(help="Of an animation: pixels of a frame.")] = None,
) -> None:
    """Open a saved run, without any model: print the answer and its shares, and draw it.

    A .gif or .mp4 is an animation over the answer (over the tokens of --token), a .csv the table of
    shares for each token, layer and head.
    """
    if output is not None:
        common.check_output(output, trace_file, *([beside] if beside else []))
    from sinkscope.capture.decoding import decoding_words
    from sinkscope.capture.trace import GenerationTrace
    from sinkscope.cli.drawing import draw, print_answer
    from sinkscope.cli.moving import check_output_ending, write_view

    if output is not None:
        check_output_ending(output, beside is not None)
    selection, style = drawing.selection(image), drawing.style()
    trace = GenerationTrace.open(trace_file)
    model = trace.model
    typer.echo(f"{model.id} ({model.revision}, {model.dtype} on {model.device})", err=True)
    if model.note:
        typer.echo(f"Note: {model.note}", err=True)
    typer.echo(f"Prompt: {trace.prompt}", err=True)
    if decoding := decoding_words(trace):
        typer.echo(f"Decoding: {decoding}", err=True)
    print_answer(trace, selection)
    if output is None:
        return
    traces = {"" if beside is None else trace_file.stem: trace}
    if beside is not None:
        name = beside.stem if beside.stem not in traces else f"{beside.stem} (2)"
        traces[name] = GenerationTrace.open(beside)
    if beside is not None or output.suffix.lower() in (".gif", ".mp4", ".csv"):
        write_view(traces, selection, style, output, window=window, seconds=seconds, width=width)
    else:
        draw(trace, selection, style, output, as_figure=drawing.figure)
    typer.echo(f"Wrote {output}", err=True)
