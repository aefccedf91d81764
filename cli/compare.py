"""`compare IMAGE PROMPT`: one question without and with VAR, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sinkscope.cli import common
from sinkscope.cli.options import Draft, verb
from sinkscope.config import GenerationSettings, ModelSettings, VARSettings

if TYPE_CHECKING:
    from sinkscope.attention_extractor import Comparison
    from sinkscope.methods.heads import HeadList
    from sinkscope.models.family import PromptInputs
    from sinkscope.models.loading import ModelHandle
    from sinkscope.models.profiles import SinkProfile
    from sinkscope.web.runs.store import Run

ENDINGS = (".html", ".png", ".pdf", ".svg", ".json")


@verb
def compare(
    image: common.ImageFile,
    prompt: common.Prompt,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A .html, .png, .pdf, .svg or .json file.")
    ],
    model: ModelSettings,
    draft: Draft[VARSettings],
    generation: GenerationSettings,
    images: common.FurtherImages = None,
    same_text: Annotated[
        bool,
        typer.Option(
            "--same-text", help="VAR reads the baseline's answer instead of generating one."
        ),
    ] = False,
    token: Annotated[
        str | None,
        typer.Option(help="Token to draw: index or word. Default: the word that changed most."),
    ] = None,
    save_traces: Annotated[
        Path | None, typer.Option(help="Also save both runs: a folder, created if it is missing.")
    ] = None,
) -> None:
    """Ask a model about an image without and with VAR, and show what VAR changed.

    .html is a standalone page that shows the whole comparison in any browser. .png, .pdf and .svg
    are a figure of one token on the first image: baseline, VAR, difference. .json has the numbers.
    It prints both answers, where they differ, the change for each token, and what VAR did in each
    layer.
    """
    draft, heads = with_heads_file(draft)
    asked = [image, *(images or ())]
    _check_files(output, save_traces, *asked)
    draft.make(dims=(0,))  # the other settings must be valid, whatever the profile has
    common.check_profile(model)
    from sinkscope.models.images import open_image

    opened = [open_image(one) for one in asked]
    handle = common.load(model)
    if heads is not None:
        heads.check_model(handle.info)
    var = with_profile(draft, handle.profile, model.model, generation.seed)
    inputs = handle.prepare(opened, prompt)
    common.say_decoding(handle, inputs, generation)
    common.say_forecast(handle, inputs, generation, answers=2)
    pair = _compare(handle, inputs, generation, var, same_text)
    common.say_engine(pair.baseline)
    from sinkscope.cli.comparison import print_comparison

    print_comparison(pair)
    if save_traces is not None:
        from sinkscope.web.runs.store import save_run

        save_run(_as_run(pair), save_traces)
        typer.echo(f"Wrote baseline.safetensors and var.safetensors in {save_traces}", err=True)
    _write(pair, output, token, _source(handle.profile, "dims" in draft.given))
    typer.echo(f"Wrote {output} ({output.stat().st_size / 1e6:.1f} MB)", err=True)


def with_profile(
    draft: Draft[VARSettings], profile: SinkProfile | None, model: str, seed: int = 0
) -> VARSettings:
    """The settings, completed from the model's profile.

    Raises:
        ValueError: dims were left out and the model has no profile; the text says how to give them.
    """
    if profile is not None:
        return draft.make(dims=profile.dims, tau=profile.tau, seed=seed)
    if "dims" not in draft.given:
        raise ValueError(
            f"No sink dimensions are known for {model}, and VAR cannot act without them: give "
            "them with --dims, such as --dims 458,2570 (indices into the residual stream; "
            "docs/method.md says what they are), and a threshold with --tau."
        )
    return draft.make(seed=seed)


def with_heads_file(
    draft: Draft[VARSettings],
) -> tuple[Draft[VARSettings], HeadList | None]:
    """The draft with the heads of a file that `--var-heads` names, and that list.

    Raises:
        ValueError: the file is missing, or is not a list of heads.
    """
    heads = draft.given.get("heads")
    if not isinstance(heads, str) or not heads.strip().lower().endswith(".json"):
        return draft, None
    from sinkscope.methods.heads import HeadList

    head_list = HeadList.open(Path(heads.strip()))
    return Draft(draft.cls, {**draft.given, "heads": head_list.layer_heads()}), head_list


def _check_files(output: Path, save_traces: Path | None, *images: Path) -> None:
    common.check_output(output, *images)
    common.check_ending(output, *ENDINGS)
    if save_traces is None:
        return
    if not save_traces.parent.is_dir():
        raise ValueError(
            f"save_traces is {str(save_traces)!r}, but the folder {save_traces.parent} does not "
            "exist."
        )
    if save_traces.exists() and not save_traces.is_dir():
        raise ValueError(f"save_traces is {str(save_traces)!r}; allowed: a folder, not a file.")


def _compare(
    handle: ModelHandle,
    inputs: PromptInputs,
    settings: GenerationSettings,
    var: VARSettings,
    same_text: bool,
) -> Comparison:
    from sinkscope import attention_extractor

    most = settings.max_new_tokens
    with common.progress("Answering without and with VAR", most) as bar:
        pair = attention_extractor.compare(
            handle,
            inputs,
            settings,
            var,
            same_text,
            # Both answers are written at once; the bar follows the longer one.
            on_token=lambda name, index, token: bar.update(max(0, index + 1 - bar.pos)),
            on_stage=common.say_stage,
        )
        bar.update(most - bar.pos)  # the answers may end earlier
    return pair


def _source(profile: SinkProfile | None, dims_given: bool) -> str:
    if profile is None or dims_given:
        return "given by the user"
    note = f" {profile.note}" if profile.note else ""
    return f"profile of {profile.model}: {profile.source} (confidence: {profile.confidence}).{note}"


def _as_run(pair: Comparison) -> Run:
    from sinkscope.web.runs.store import Run

    return Run({"baseline": pair.baseline, "var": pair.var}, same_text=pair.same_text)


def _write(pair: Comparison, output: Path, token: str | None, source: str) -> None:
    from sinkscope.cli.comparison import chosen_tokens, comparison_file
    from sinkscope.utils import write_bytes_atomically

    ending = output.suffix.lower()
    if ending == ".html":
        from sinkscope.web.runs.standalone import build_standalone, holds_heads

        run = _as_run(pair)
        first = None if token is None else chosen_tokens(pair, token)[0]
        page = build_standalone(run, token=first, facts=[("Sink dimensions", source)])
        write_bytes_atomically(output, page)
        if not holds_heads(run):
            typer.echo(
                "The file holds only the mean over the heads, because all heads would make it too "
                "large; fewer fit with --layers or --heads.",
                err=True,
            )
    elif ending == ".json":
        text = (
            json.dumps(comparison_file(pair, source), indent=1, ensure_ascii=False, allow_nan=False)
            + "\n"
        )
        write_bytes_atomically(output, text.encode())
    else:
        from sinkscope import visualization
        from sinkscope.drawing.view import View

        figure = visualization.view_figure(
            {"Baseline": pair.baseline, "VAR": pair.var},
            chosen_tokens(pair, token),
            View(difference=True),
            idle=not (pair.var.var or {}).get("changed"),
        )
        visualization.save(figure, output)
