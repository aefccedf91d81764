"""`region IMAGE PROMPT`: does a part of the image matter for the answer?"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sinkscope.cli import common
from sinkscope.cli.options import Group, verb
from sinkscope.cli.tables import Column, print_table
from sinkscope.config import GenerationSettings, ModelSettings
from sinkscope.experiments.region_settings import RegionSettings

if TYPE_CHECKING:
    from sinkscope.capture.trace import GenerationTrace
    from sinkscope.experiments.region_effect import RegionEffect
    from sinkscope.models.family import PromptInputs
    from sinkscope.models.loading import ModelHandle

CAPTURE = ("layers", "heads", "reduce_heads", "prompt_rows", "reference")


@verb
def region(
    image: common.ImageFile,
    prompt: common.Prompt,
    box: Annotated[
        str, typer.Option(help="x0,y0,x1,y1 in pixels of the image; x1 and y1 are exclusive.")
    ],
    model: ModelSettings,
    generation: Annotated[GenerationSettings, Group(but=CAPTURE)],
    test: Annotated[RegionSettings, Group(but=("seed",))],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A .json file with every number.")
    ] = None,
) -> None:
    """Ask about an image and test whether a box of it matters for the answer.

    The model reads its own answer again without the box (attention to it cut, or its pixels
    greyed), and the change of each token's log-probability is compared with that of other boxes of
    the same size, drawn with --seed. Every patch that the box touches is part of it.
    """
    if output is not None:
        common.check_output(output, image)
        if output.suffix.lower() != ".json":
            raise ValueError(f"output is {str(output)!r}; allowed: a .json file.")
    pixels = _pixels(box)
    common.check_profile(model)
    from sinkscope.experiments.answers import prompt_and_answer
    from sinkscope.experiments.boxes import box_around
    from sinkscope.experiments.region import region_test
    from sinkscope.models.images import open_image

    opened = open_image(image)
    handle = common.load(model)
    inputs = handle.prepare([opened], prompt)
    where = box_around(inputs.layout, pixels)
    common.say_decoding(handle, inputs, generation)
    trace = _generate(handle, inputs, generation)
    typer.echo(trace.text)
    with common.progress("Testing the box", test.random_boxes) as bar:
        effect = region_test(
            handle,
            prompt_and_answer(handle, trace),
            where,
            dataclasses.replace(test, seed=generation.seed),
            on_progress=lambda done, total, text: bar.update(done - bar.pos),
        )
        bar.update(test.random_boxes - bar.pos)  # there may be fewer positions
    _print(effect)
    if output is not None:
        from sinkscope.utils import write_bytes_atomically

        text = json.dumps(_file(effect, trace, opened.size), indent=1, ensure_ascii=False)
        write_bytes_atomically(output, text.encode() + b"\n")
        typer.echo(f"Wrote {output}", err=True)


def _pixels(text: str) -> tuple[float, float, float, float]:
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(
            f"box is {text!r}; allowed: x0,y0,x1,y1, four numbers in pixels."
        ) from error
    return x0, y0, x1, y1


def _generate(
    handle: ModelHandle, inputs: PromptInputs, settings: GenerationSettings
) -> GenerationTrace:
    from sinkscope.attention_extractor import generate

    with common.progress("Answering", settings.max_new_tokens) as bar:
        trace = generate(handle, inputs, settings, on_token=lambda index, token: bar.update(1))
        bar.update(settings.max_new_tokens - bar.pos)  # the answer may end earlier
    return trace


def _print(effect: RegionEffect) -> None:
    """The table of the tokens, the verdict, and its limits."""
    typer.echo("")
    rows = []
    for token, text in enumerate(effect.texts):
        change, verdict = float(effect.changes[token]), effect.verdict(token)
        rows.append(
            (
                str(token),
                repr(text)[1:-1][:15],
                f"{change:+.3f}" if abs(change) >= 0.0005 else "0",
                f"{100 * effect.percentile(token):.0f} %",
                "" if verdict == "no more than others" else verdict,
            )
        )
    names = ("change", "percentile", "verdict")
    print_table([Column("token"), Column("text", left=True), *map(Column, names)], rows)
    typer.echo(f"\n{effect.box.words().capitalize()}. {effect.sentence()}")
    for note in effect.notes():
        typer.echo(note)


def _file(effect: RegionEffect, trace: GenerationTrace, size: tuple[int, int]) -> dict[str, Any]:
    return {
        "format": "sinkscope-region",
        "model": {"id": trace.model.id, "revision": trace.model.revision},
        "prompt": trace.prompt,
        "answer": trace.text,
        "image": {"width": size[0], "height": size[1]},
        "test": effect.to_json(),
    }
