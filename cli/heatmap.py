"""`heatmap IMAGE PROMPT`: ask about an image and draw where the model looked for each word."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sinkscope.cli import common
from sinkscope.config import GenerationSettings, ModelSettings

if TYPE_CHECKING:
    from sinkscope.capture.trace import GenerationTrace
    from sinkscope.models.family import PromptInputs
    from sinkscope.models.loading import ModelHandle


def heatmap(
    image: common.ImageFile,
    prompt: common.Prompt,
    output: Annotated[Path, typer.Option("--output", "-o", help="A .png, .pdf or .svg file.")],
    model: common.Model = "demo",
    token: common.Token = "all",
    layers: common.Layers = None,
    heads: common.Heads = None,
    reduce: common.Reduce = "mean",
    colormap: common.Colormap = "inferno",
    opacity: common.Opacity = 0.8,
    photo: common.Photo = "dim",
    scale: common.Scale = "percentile",
    smooth: common.Smooth = False,
    sinks: common.Sinks = True,
    method: common.Method = "attention",
    relative: common.Relative = False,
    figure: common.AsFigure = False,
    max_new_tokens: common.MaxNewTokens = 64,
    decoding: common.Decoding = "ours",
    seed: Annotated[int, typer.Option(help="Of sampling, where the checkpoint samples.")] = 0,
    device: common.Device = "auto",
    dtype: common.DType = "auto",
    revision: common.Revision = None,
    min_pixels: common.MinPixels = None,
    max_pixels: common.MaxPixels = None,
    profile: common.Profile = None,
    save_trace: Annotated[
        Path | None, typer.Option(help="Keep the run too: a .safetensors file for `show`.")
    ] = None,
) -> None:
    """Ask a model about an image and draw the attention behind its answer.

    The picture is a sheet with one small overlay for each token of the answer. With --token it is
    that token's overlay at the photo's own resolution. Printed are the answer and, for each token,
    the share of its attention that was on the image.
    """
    with common.mistakes_said_plainly():
        common.check_output(output, image)
        if save_trace is not None:
            common.check_output(save_trace, image, output)
            if save_trace.suffix != ".safetensors":
                raise ValueError(
                    f"save-trace is {str(save_trace)!r}; allowed: a .safetensors file."
                )
        chosen = common.method_named(method, relative)
        settings = GenerationSettings(
            max_new_tokens=max_new_tokens,
            decoding=decoding,
            seed=seed,
            layers=common.indices("layers", layers),
            heads=common.indices("heads", heads),
            reference=chosen == "relative",
        )
        wanted = ModelSettings(
            model,
            revision,
            device,
            dtype,
            min_pixels,
            max_pixels,
            profile=common.profile_file(profile),
        )
        from sinkscope.cli.drawing import Selection, draw, print_answer
        from sinkscope.models.images import open_image
        from sinkscope.visualization import OverlayStyle, check_ending

        check_ending(output)
        style = OverlayStyle(colormap, opacity, scale, smoothing=smooth)  # type: ignore[arg-type]
        selection = Selection(
            token, settings.layers, settings.heads, reduce, sinks, method=chosen, photo=photo
        )
        opened = open_image(image)
        handle = common.load(wanted)
        if chosen == "without_sinks" and handle.profile is None:
            raise ValueError(
                f"No sink dimensions are known for {model}, so there is no map without sinks: name "
                "a sink profile with --profile (docs/sinks.md)."
            )
        inputs = handle.prepare([opened], prompt)
        common.say_decoding(handle, inputs, settings)
        common.say_forecast(handle, inputs, settings)
        trace = _generate(handle, inputs, settings)
        print_answer(trace, selection)
        if save_trace is not None:
            trace.save(save_trace)
            typer.echo(f"Wrote {save_trace}", err=True)
        draw(trace, selection, style, output, as_figure=figure)
        typer.echo(f"Wrote {output}", err=True)


def _generate(
    handle: ModelHandle, inputs: PromptInputs, settings: GenerationSettings
) -> GenerationTrace:
    from sinkscope.attention_extractor import generate

    with common.progress("Answering", settings.max_new_tokens) as bar:
        trace = generate(handle, inputs, settings, on_token=lambda index, token: bar.update(1))
        bar.update(settings.max_new_tokens - bar.pos)  # the answer may end before it is as long
    return trace
