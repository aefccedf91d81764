"""`demo ...`: train the bundled model, measure it, draw its scenes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sinkscope.cli.common import check_output, clear_errors, progress
from sinkscope.utils import PROJECT, run_folder

if TYPE_CHECKING:
    from sinkscope.config import VARSettings
    from sinkscope.demo.check import MakeRowChange

BUNDLED = PROJECT / "demo" / "model"
EXAMPLES = PROJECT / "demo" / "examples"
EXAMPLE_RUN = PROJECT / "demo" / "example"

app = typer.Typer(
    help="The bundled model: train it, measure it, draw its scenes.", no_args_is_help=True
)


@app.command()
def train(
    output: Annotated[
        Path,
        typer.Option(
            help="Folder of the finished model.",
            default_factory=lambda: run_folder("outputs") / "demo_model",
            show_default="outputs/demo_model",
        ),
    ],
    work: Annotated[
        Path,
        typer.Option(
            help="Folder of checkpoints; a run resumes here.",
            default_factory=lambda: run_folder("cache") / "demo_train",
            show_default="cache/demo_train",
        ),
    ],
    seed: Annotated[int, typer.Option(help="Seed of the weights and the scenes.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    steps: Annotated[
        int | None,
        typer.Option(help="Maximum number of steps, divided evenly among the stages."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads. Default: all cores.")] = None,
) -> None:
    """Train the bundled model from scratch, or resume an interrupted run.

    Takes about 210 minutes on one CPU core; a GPU runs the same code. The folder is written at the
    end of each stage, and the loss curve, training.png, next to the checkpoint.
    """
    with clear_errors():
        if threads is not None and threads < 1:
            raise ValueError(f"threads is {threads}; allowed: 1 or more.")
        import torch

        from sinkscope.demo.card import draw_history
        from sinkscope.demo.checkpoint import read_history
        from sinkscope.demo.train import TrainSettings
        from sinkscope.demo.train import train as run

        if threads is not None:
            torch.set_num_threads(threads)
        settings = TrainSettings(output, work, seed=seed, device=device, steps=steps)
        total = sum(settings.stage_steps(stage) for stage in settings.stages)
        with progress("Training", total) as bar:
            done = 0
            for report in run(settings):
                bar.label = f"{report.stage}: loss {report.figures['loss']:.3f}"
                bar.update(report.done - done)
                done = report.done
        draw_history(read_history(work), work / "training.png")
        typer.echo(f"Wrote {output} and {work / 'training.png'}", err=True)


@app.command()
def check(
    model: Annotated[Path, typer.Option(help="Folder of the model.")] = BUNDLED,
    scenes: Annotated[int, typer.Option(help="Number of held-out scenes.")] = 500,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of the table.")
    ] = False,
    card: Annotated[
        bool, typer.Option("--card", help="Write the model card and check.json into the folder.")
    ] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads. Default: all cores.")] = None,
) -> None:
    """Measure the model on scenes that it was not trained on: answers, attention, sinks.

    Answers and attention of the plain model, with VAR at its default settings, with VAR that leaves
    nothing on a sink (keep 0), and with the control: VAR at its default settings on random tokens.
    """
    with clear_errors():
        import torch
        from transformers.utils import logging

        from sinkscope.config import VARSettings
        from sinkscope.demo.card import table, write_card
        from sinkscope.demo.check import CheckSettings
        from sinkscope.demo.check import check as run
        from sinkscope.models.profiles import PROFILE_FILE, read_profile

        logging.disable_progress_bar()
        if threads is not None:
            torch.set_num_threads(threads)
        profile = read_profile(model / PROFILE_FILE)
        settings = CheckSettings(model, scenes, dims=profile.dims, tau=profile.tau)
        var = VARSettings(profile.dims, tau=profile.tau)
        changes = {
            "VAR": var,
            "VAR, keep 0": replace(var, keep=0.0),
            "random tokens": replace(var, control="random"),
        }
        with progress("Measuring", 100) as bar:
            shown = 0

            def report(done: int, total: int) -> None:
                nonlocal shown
                percent = 100 * done // total
                bar.update(percent - shown)
                shown = percent

            tables = {name: var_rows(change, profile.layers) for name, change in changes.items()}
            figures = run(settings, tables, report)
        figures["var_settings"] = {
            "dialect": var.dialect,
            "keep": var.keep,
            "max_sink_share": var.max_sink_share,
            "min_image_mass": var.min_image_mass,
        }
        if card:
            (model / "check.json").write_text(json.dumps(figures, indent=1) + "\n")
            write_card(model, figures)
        typer.echo(json.dumps(figures, indent=1) if as_json else table(figures))


def var_rows(settings: VARSettings, layers: int) -> MakeRowChange:
    """VAR for `demo.check`: layers 2 .. L-2, sinks from the prefill, rows after the image.

    Args:
        settings: dialect, thresholds, control.
        layers: decoder layers of the model.
    """
    import torch
    from torch import Tensor

    from sinkscope.attention_processor import sink_mask
    from sinkscope.demo.measure import RowChange
    from sinkscope.demo.packing import PackedBatch
    from sinkscope.interventions.var.parameters import random_control
    from sinkscope.var_patch import redistribute

    def make(batch: PackedBatch, states: tuple[Tensor, ...]) -> RowChange:
        seen = batch.vision
        vision = torch.zeros(batch.ids.shape, dtype=torch.bool)
        vision[:, seen] = True

        def change(layer: int, weights: Tensor) -> Tensor:
            if not 2 <= layer <= layers - 2:
                return weights
            sinks = sink_mask(states[layer], settings.dims, settings.tau, settings.dialect)
            sinks[:, seen.stop :] = False  # words after the image are not sinks: prefill
            if settings.control == "random":
                pairs = zip(sinks, vision, strict=True)
                sinks = torch.stack([random_control(s, v, settings.seed, layer) for s, v in pairs])
            return redistribute(weights, sinks, vision, settings, first_query=seen.stop)

        return change

    return make


@app.command()
def examples(
    output: Annotated[Path, typer.Option(help="Folder of the pictures.")] = EXAMPLES,
) -> None:
    """Draw the example pictures of the page, with their questions and true answers."""
    with clear_errors():
        from sinkscope.demo.examples import write_examples

        for path in write_examples(output):
            typer.echo(str(path))


@app.command()
def example(
    model: Annotated[str, typer.Option(help="demo, a hub id or a folder.")] = "demo",
    output: Annotated[Path, typer.Option(help="Folder of the run.")] = EXAMPLE_RUN,
) -> None:
    """Make the run that the page shows first, from the first example picture.

    Baseline and VAR, computed by the bundled model on this machine.
    """
    with clear_errors():
        from sinkscope.models.loading import load_model
        from sinkscope.web.runs.example import make_example

        handle = load_model(model, device="cpu", dtype="float32")
        run = make_example(handle, output)
        for name, trace in run.traces.items():
            typer.echo(f"{name}: {trace.text}")
        typer.echo(f"Wrote {output}", err=True)


@app.command()
def scene(
    output: Annotated[Path, typer.Argument(help="A .png file.")],
    seed: Annotated[int, typer.Option(help="Seed of the scene.")] = 0,
    width: Annotated[int, typer.Option(help="In pixels.")] = 224,
    height: Annotated[int, typer.Option(help="In pixels.")] = 224,
    min_objects: Annotated[int, typer.Option(help="Smallest number.")] = 1,
    max_objects: Annotated[int, typer.Option(help="Largest number.")] = 4,
    background: Annotated[str, typer.Option(help="any, texture or photo.")] = "any",
) -> None:
    """Draw the scene of a seed; print its objects, and questions with their answers, as JSON."""
    with clear_errors():
        check_output(output)
        if output.suffix.lower() != ".png":
            raise ValueError(f"output is {str(output)!r}; allowed: a .png file.")
        from dataclasses import asdict

        from PIL import Image

        from sinkscope.demo.questions import questions
        from sinkscope.demo.scenes import scene as draw

        drawn = draw(
            seed,
            width,
            height,
            min_objects=min_objects,
            max_objects=max_objects,
            background=background,
        )
        Image.fromarray(drawn.image).save(output)
        asked = [{"type": q.kind, "prompt": q.prompt, "answer": q.answer} for q in questions(drawn)]
        objects = [asdict(o) for o in drawn.objects]
        typer.echo(json.dumps({"objects": objects, "questions": asked}, indent=1))


@app.command()
def looks(
    output: Annotated[Path, typer.Argument(help="A .png, .pdf or .svg file.")],
    model: Annotated[Path, typer.Option(help="Folder of the model.")] = BUNDLED,
    layer: Annotated[
        int | None, typer.Option(help="Layer of the head. Default: the best head's.")
    ] = None,
    head: Annotated[int | None, typer.Option(help="Which head. Default: the best one.")] = None,
) -> None:
    """Draw a dozen scenes with one head's map for the first thing that the model names in each."""
    with clear_errors():
        check_output(output)
        from sinkscope.cli.demo_looks import draw_looks

        at = None if layer is None or head is None else (layer, head)
        draw_looks(model, output, at)
        typer.echo(f"Wrote {output}", err=True)
