"""`show TRACE`: open a saved run, print its answer, and draw it again with other choices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import common


def show(
    trace_file: Annotated[
        Path, typer.Argument(metavar="TRACE", help="Written by heatmap --save-trace, or the app.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A .png, .pdf or .svg file to draw.")
    ] = None,
    token: common.Token = "all",
    layers: common.Layers = None,
    heads: common.Heads = None,
    reduce: common.Reduce = "mean",
    colormap: common.Colormap = "inferno",
    opacity: common.Opacity = 0.7,
    scale: common.Scale = "percentile",
    smooth: common.Smooth = False,
    sinks: common.Sinks = True,
    figure: common.AsFigure = False,
    image: Annotated[
        int, typer.Option(min=0, help="Which image of the prompt, counted from 0.")
    ] = 0,
) -> None:
    """Open a saved run, without any model: print the answer and its shares, and draw it."""
    with common.mistakes_said_plainly():
        if output is not None:
            common.check_output(output, trace_file)
        from capture.trace import GenerationTrace
        from cli.drawing import Selection, draw, print_answer
        from visualization import OverlayStyle, check_ending

        if output is not None:
            check_ending(output)
        style = OverlayStyle(colormap, opacity, scale, smoothing=smooth)  # type: ignore[arg-type]
        selection = Selection(
            token,
            common.indices("layers", layers),
            common.indices("heads", heads),
            reduce,
            sinks,
            image,
        )
        trace = GenerationTrace.open(trace_file)
        model = trace.model
        typer.echo(f"{model.id} ({model.revision}, {model.dtype} on {model.device})", err=True)
        typer.echo(f"Prompt: {trace.prompt}", err=True)
        print_answer(trace, selection)
        if output is not None:
            draw(trace, selection, style, output, as_figure=figure)
            typer.echo(f"Wrote {output}", err=True)
