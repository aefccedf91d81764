"""`heatmap IMAGE PROMPT`: ask about an image and draw where the model looked for each word."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sinkscope.cli import common
from sinkscope.cli.options import Group, verb
from sinkscope.cli.picture import Drawing
from sinkscope.config import GenerationSettings, ModelSettings

if TYPE_CHECKING:
    from sinkscope.capture.trace import GenerationTrace
    from sinkscope.models.family import PromptInputs
    from sinkscope.models.loading import ModelHandle


@verb
def heatmap(
    image: common.ImageFile,
    prompt: common.Prompt,
    output: Annotated[Path, typer.Option("--output", "-o", help="A .png, .pdf or .svg file.")],
    model: ModelSettings,
    generation: GenerationSettings,
    drawing: Annotated[Drawing, Group(but=("layers", "heads"))],
    save_trace: Annotated[
        Path | None, typer.Option(help="Keep the run too: a .safetensors file for `show`.")
    ] = None,
) -> None:
    """Ask a model about an image and draw the attention behind its answer.

    The picture is a sheet with one small overlay for each token of the answer. With --token it is
    that token's overlay at the photo's own resolution. Printed are the answer and, for each token,
    the share of its attention that was on the image.
    """
    common.check_output(output, image)
    if save_trace is not None:
        common.check_output(save_trace, image, output)
        if save_trace.suffix != ".safetensors":
            raise ValueError(f"save-trace is {str(save_trace)!r}; allowed: a .safetensors file.")
    common.check_profile(model)
    # What is captured is what is drawn.
    drawing = dataclasses.replace(drawing, layers=generation.layers, heads=generation.heads)
    selection, style = drawing.selection(), drawing.style()
    settings = dataclasses.replace(generation, reference=selection.method == "relative")
    from sinkscope.cli.drawing import draw, print_answer
    from sinkscope.models.images import open_image
    from sinkscope.visualization import check_ending

    check_ending(output)
    opened = open_image(image)
    handle = common.load(model)
    if selection.method == "without_sinks" and handle.profile is None:
        raise ValueError(
            f"No sink dimensions are known for {model.model}, so there is no map without sinks: "
            "name a sink profile with --profile (docs/sinks.md)."
        )
    inputs = handle.prepare([opened], prompt)
    common.say_decoding(handle, inputs, settings)
    common.say_forecast(handle, inputs, settings)
    trace = _generate(handle, inputs, settings)
    common.say_engine(trace)
    print_answer(trace, selection)
    if save_trace is not None:
        trace.save(save_trace)
        typer.echo(f"Wrote {save_trace}", err=True)
    draw(trace, selection, style, output, as_figure=drawing.figure)
    typer.echo(f"Wrote {output}", err=True)


def _generate(
    handle: ModelHandle, inputs: PromptInputs, settings: GenerationSettings
) -> GenerationTrace:
    from sinkscope.attention_extractor import generate

    with common.progress("Answering", settings.max_new_tokens) as bar:
        trace = generate(
            handle,
            inputs,
            settings,
            on_token=lambda index, token: bar.update(1),
            on_stage=common.say_stage,
        )
        bar.update(settings.max_new_tokens - bar.pos)  # the answer may end before it is as long
    return trace
