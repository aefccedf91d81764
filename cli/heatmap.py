"""`heatmap IMAGE PROMPT`: ask about an image and draw where the model looked for each word."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
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
    image: Annotated[
        Path,
        typer.Argument(
            help="PNG, JPEG, WebP, GIF, BMP or TIFF. Or a folder of them, or a file of questions "
            "(.jsonl and similar): each is asked, with the model loaded once."
        ),
    ],
    prompt: Annotated[
        str | None,
        typer.Argument(help="The question about it; a file of questions has its own."),
    ] = None,
    *,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="A .png, .pdf or .svg file; for many questions a folder."
        ),
    ],
    model: ModelSettings,
    generation: GenerationSettings,
    drawing: Annotated[Drawing, Group(but=("layers", "heads"))],
    images: common.FurtherImages = None,
    save_trace: Annotated[
        Path | None,
        typer.Option(
            help="Also save the run: a .safetensors file for `show`; for many questions a folder."
        ),
    ] = None,
) -> None:
    """Ask a model about an image and draw the attention behind its answer.

    The picture is a sheet with one small overlay for each token of the answer. With --token it is
    that token's overlay at the photo's own resolution. The command prints the answer and, for each
    token, the share of its attention on the image.

    With --image the question is about several images; each gets its own picture, with the
    image's number, from 0, in the file's name.
    """
    from sinkscope.cli import batch  # imported late, like everything that --help does not need

    asked = [image, *(images or ())]
    # Only what is drawn is captured.
    drawing = dataclasses.replace(drawing, layers=generation.layers, heads=generation.heads)
    if batch.is_many(image):
        batch.check(image, prompt, output, save_trace, images)
    else:
        _check(asked, prompt, output, save_trace)
    common.check_profile(model)
    drawing.check_token(generation.max_new_tokens)
    selection = drawing.selection()
    settings = dataclasses.replace(generation, reference=selection.method == "relative")
    if batch.is_many(image):
        batch.ask_all(batch.Job(image, prompt, output, save_trace), model, settings, drawing)
        return
    assert prompt is not None  # `_check`
    from sinkscope.models.images import open_image

    opened = [open_image(one) for one in asked]
    handle = common.load(model)
    check_method(handle, selection.method)
    if selection.heads_from is not None:
        selection.heads_from.check_model(handle.info)
    inputs = handle.prepare(opened, prompt)
    common.say_decoding(handle, inputs, settings)
    common.say_forecast(handle, inputs, settings)
    trace = _generate(handle, inputs, settings)
    common.say_engine(trace)
    from sinkscope.cli.drawing import draw, print_answer

    print_answer(trace, selection, all_images=True)
    if save_trace is not None:
        trace.save(save_trace)
        typer.echo(f"Wrote {save_trace}", err=True)
    for number, path in enumerate(pictures_of(output, len(asked))):
        draw(trace, drawing.selection(number), drawing.style(), path, as_figure=drawing.figure)
        typer.echo(f"Wrote {path}", err=True)


def pictures_of(output: Path, count: int) -> list[Path]:
    """The file for each image: the given name, or with the image's number in it."""
    if count == 1:
        return [output]
    return [output.with_name(f"{output.stem}.image-{k}{output.suffix}") for k in range(count)]


def check_method(handle: ModelHandle, method: str) -> None:
    """Refuse a method that the model's runs cannot provide.

    Raises:
        ValueError: it needs sinks, and the model's are not known.
    """
    if method == "without_sinks" and handle.profile is None:
        raise ValueError(
            f"No sink dimensions are known for {handle.info.id}, so there is no map without sinks: "
            "name a sink profile with --profile (docs/sinks.md)."
        )


def _check(
    images: Sequence[Path], prompt: str | None, output: Path, save_trace: Path | None
) -> None:
    if prompt is None:
        raise ValueError("The prompt is missing: say after IMAGE what to ask about it.")
    for path in pictures_of(output, len(images)):
        common.check_output(path, *images)
    common.check_ending(output, *common.PICTURES)
    if save_trace is not None:
        common.check_output(save_trace, *images, output)
        if save_trace.suffix != ".safetensors":
            raise ValueError(f"save-trace is {str(save_trace)!r}; allowed: a .safetensors file.")


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
        bar.update(settings.max_new_tokens - bar.pos)  # the answer may end earlier
    return trace
