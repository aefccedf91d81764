"""`explain IMAGE PROMPT`: several explanations of one token, side by side."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sinkscope.cli import common
from sinkscope.cli.options import Group, verb
from sinkscope.cli.picture import Drawing
from sinkscope.config import GenerationSettings, ModelSettings
from sinkscope.jobs.job import Job, Stopped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sinkscope.capture.trace import GenerationTrace
    from sinkscope.methods.base import Method, Target
    from sinkscope.methods.passes import Passes
    from sinkscope.methods.together import MethodResult, SlotChoice

NOT_ASKED = ("layers", "heads", "method", "relative", "figure", "sinks")


@verb
def explain(
    image: common.ImageFile,
    prompt: common.Prompt,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A .png, .pdf, .svg, .html or .npz file.")
    ],
    model: ModelSettings,
    generation: Annotated[GenerationSettings, Group(but=("reference",))],
    drawing: Annotated[
        Drawing,
        Group(but=NOT_ASKED, defaults={"token": "answer"}),
    ],
    methods: Annotated[
        str, typer.Option(help="all, or names such as attention,relative.", metavar="NAMES")
    ] = "all",
) -> None:
    """Ask a model about an image and explain a part of its answer by several methods.

    --token is a word of the answer, an index from 0, a range such as 2-4, or `answer` for all of
    it. The output has a map for each method, with its unit and its own scale of colours, and the
    rank correlations of the maps. Methods that this run cannot provide are listed with the reason.
    Ctrl-C keeps the finished maps.
    """
    from sinkscope.drawing.methods_sheet import Sheet, check_sheet_ending, write_sheet
    from sinkscope.methods.together import SlotChoice, methods_named

    common.check_output(output, image)
    check_sheet_ending(output)
    wanted = methods_named(methods)
    drawing.check_token(generation.max_new_tokens)
    heads = drawing.single_heads()
    if heads is not None and (generation.layers or generation.heads):
        raise ValueError("heads_from is given; allowed: no layers or heads with it.")
    style = drawing.style()
    common.check_profile(model)
    generation = dataclasses.replace(
        generation, reference=any(one.name == "relative" for one in wanted)
    )
    from sinkscope.cli.drawing import answer_of
    from sinkscope.drawing.overlay import under_map
    from sinkscope.models.images import open_image

    opened = open_image(image)
    handle = common.load(model)
    if heads is not None:
        heads.check_model(handle.info)
    inputs = handle.prepare([opened], prompt)
    common.say_decoding(handle, inputs, generation)
    from sinkscope.attention_extractor import generate
    from sinkscope.methods.passes import passes_of

    with common.progress("Answering", generation.max_new_tokens) as bar:
        trace = generate(handle, inputs, generation, on_token=lambda *_: bar.update(1))
        bar.update(generation.max_new_tokens - bar.pos)  # the answer may end earlier
    typer.echo(answer_of(trace))
    target = explained_tokens(trace, drawing.token)
    pairs = None if heads is None else heads.heads_of(trace).pairs
    choice = SlotChoice(generation.layers, generation.heads, drawing.reduce, pairs=pairs)
    results, stopped = explained(trace, target, wanted, choice, passes_of(handle, trace, inputs))
    tell(results)
    if stopped is not None and not any(one.patches is not None for one in results):
        typer.echo("Stopped before the first map; nothing is written.", err=True)
        raise typer.Exit(common.INTERRUPTED)
    write_sheet(
        Sheet(
            under_map(trace.images[0], drawing.photo),
            results,
            "".join(trace.tokens[t].text for t in target.tokens),
            trace.text.strip(),
            f"{trace.model.id} ({trace.model.revision}), prompt: {trace.prompt}",
        ),
        output,
        style,
    )
    typer.echo(f"Wrote {output}", err=True)
    if stopped is not None:
        typer.echo(f"{stopped} The maps that were there are kept.", err=True)
        raise typer.Exit(common.INTERRUPTED)


def explained_tokens(trace: GenerationTrace, wanted: str) -> Target:
    """The tokens of `--token`: a word of the answer, an index, an inclusive range `2-4`, `answer`.

    Raises:
        ValueError: there is no such token; the text says what there is.
    """
    from sinkscope.cli.drawing import find_tokens
    from sinkscope.methods.base import target_of

    if not trace.tokens:
        raise ValueError("The answer is empty, so there is no token to explain.")
    if wanted.strip() == "answer":
        return target_of(trace, "answer")
    if ends := re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", wanted):
        first, last = int(ends[1]), int(ends[2])
        if not first <= last < len(trace.tokens):
            raise ValueError(
                f"token is {wanted!r}; allowed: a range within 0-{len(trace.tokens) - 1}."
            )
        return target_of(trace, range(first, last + 1))
    return target_of(trace, find_tokens(trace, wanted))


def explained(
    trace: GenerationTrace,
    target: Target,
    methods: Sequence[Method],
    choice: SlotChoice,
    session: Passes,
) -> tuple[list[MethodResult], Stopped | None]:
    """The outcomes of the methods, with a progress bar on standard error; and the stop, if there
    was one. The first Ctrl-C ends after the current step, a second one at once."""
    from sinkscope.methods.together import explain_each

    results: list[MethodResult] = []
    stopped: Stopped | None = None
    with common.progress("Explaining", len(methods)) as bar:

        def report(done: int, total: int, text: str) -> None:
            bar.label = f"Explaining: {text}" if text else "Explaining"
            bar.update(done - bar.pos)

        job = Job(on_progress=report)
        session.stop = job.stop_event
        with common.interrupted(job), job:
            try:
                for one in explain_each(
                    trace, target, methods, choice, session=session, **job.hooks
                ):
                    results.append(one)  # results before a stop are kept
            except Stopped as stop:
                stopped = stop
    return results, stopped


def tell(results: Sequence[MethodResult]) -> None:
    """The methods on standard output, those without a map with the reason."""
    typer.echo("\nmethod")
    for one in results:
        outcome = one.why_not if one.patches is None else f"{one.seconds:.2f} s, {one.patches.unit}"
        typer.echo(f"  {one.method.label:<22} {'not possible: ' if one.why_not else ''}{outcome}")
