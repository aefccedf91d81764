"""`show TRACE`: open a saved run, print its answer, and draw it again with other options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sinkscope.cli import common
from sinkscope.cli.options import verb
from sinkscope.cli.picture import Drawing

if TYPE_CHECKING:
    from sinkscope.capture.trace import GenerationTrace

MOVING = (".gif", ".mp4")
BY_VIEW = (*MOVING, ".csv")  # drawn from a view of one or two runs, as on the page


@verb
def show(
    trace_file: Annotated[
        Path,
        typer.Argument(metavar="TRACE", help="A run saved by heatmap --save-trace or by the page."),
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
        typer.Option(help="A second trace to show next to it, with the difference of their maps."),
    ] = None,
    save_heads: Annotated[
        Path | None,
        typer.Option(
            help="With --heads-from localising or sinks: write the list that was found (a .json "
            "file), for --heads-from and --var-heads of other runs."
        ),
    ] = None,
    window: Annotated[
        int,
        typer.Option(min=1, help="Animation: number of tokens averaged in each frame."),
    ] = 1,
    seconds: Annotated[float, typer.Option(help="Animation: seconds per frame.")] = 0.4,
    width: Annotated[
        int | None, typer.Option(help="Animation: width of a frame in pixels.")
    ] = None,
) -> None:
    """Open a saved run, without any model: print the answer and its shares, and draw it.

    A .gif or .mp4 is an animation over the answer (over the tokens of --token), a .csv the table of
    shares for each token, layer and head.
    """
    if output is not None:
        common.check_output(output, trace_file, *([beside] if beside else []))
        common.check_ending(output, *common.PICTURES, *MOVING, ".csv")
    views = beside is not None or (output is not None and output.suffix.lower() in BY_VIEW)
    selection = drawing.selection(image)
    finds = selection.heads_from is not None and bool(selection.heads_from.from_run)
    if save_heads is not None:
        common.check_output(save_heads, trace_file)
        common.check_ending(save_heads, ".json")
        if not finds:
            raise ValueError(
                "save_heads is given; allowed: only with --heads-from localising or sinks, which "
                "find a list."
            )
    # Drawing one run's raw attention needs no torch, which takes seconds to import.
    read = _tensors if views or finds or selection.method != "attention" else _arrays
    trace = read(trace_file)
    from sinkscope.capture.decoding import decoding_words
    from sinkscope.cli.drawing import draw, print_answer

    model = trace.model
    typer.echo(f"{model.id} ({model.revision}, {model.dtype} on {model.device})", err=True)
    if model.note:
        typer.echo(f"Note: {model.note}", err=True)
    typer.echo(f"Prompt: {trace.prompt}", err=True)
    if decoding := decoding_words(trace):
        typer.echo(f"Decoding: {decoding}", err=True)
    print_answer(trace, selection)
    if save_heads is not None:
        assert selection.heads_from is not None
        from sinkscope.methods.heads import found_heads

        found_heads(trace, selection.heads_from.from_run).save(save_heads)
        typer.echo(f"Wrote {save_heads}", err=True)
    if output is None:
        return
    style = drawing.style()
    if not views:
        draw(trace, selection, style, output, as_figure=drawing.figure)
        typer.echo(f"Wrote {output}", err=True)
        return
    from sinkscope.cli.view_animation import write_view

    traces = {"" if beside is None else trace_file.stem: trace}
    if beside is not None:
        name = beside.stem if beside.stem not in traces else f"{beside.stem} (2)"
        traces[name] = _tensors(beside)
    write_view(traces, selection, style, output, window=window, seconds=seconds, width=width)
    typer.echo(f"Wrote {output}", err=True)


def _arrays(path: Path) -> GenerationTrace:
    from sinkscope.capture.arrays import open_arrays

    return open_arrays(path)


def _tensors(path: Path) -> GenerationTrace:
    from sinkscope.capture.trace import GenerationTrace

    return GenerationTrace.open(path)
