"""`experiment NAME ...`: causal experiments on attention sinks, one command each.

The commands and their options are made from `experiments.catalogue.EXPERIMENTS`: a new row there is
a new command here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sinkscope.cli import common
from sinkscope.cli.experiment_docs import docs
from sinkscope.cli.options import verb
from sinkscope.config import ModelSettings
from sinkscope.experiments.catalogue import EXPERIMENTS, Experiment
from sinkscope.experiments.settings import StudySettings
from sinkscope.utils import number_of

if TYPE_CHECKING:
    from sinkscope.experiments.result import Result
    from sinkscope.experiments.samples import Prompts
    from sinkscope.models.loading import ModelHandle

Data = Annotated[
    str | None,
    typer.Option(
        help="Samples: a folder of images, a file of questions, or demo (drawn scenes); for a text "
        "model a text file with one prompt per line. Default: demo with the bundled model, our own "
        "prompts with a text model."
    ),
]
Samples = Annotated[int, typer.Option(help="Number of samples.")]
Prompt = Annotated[
    str | None, typer.Option(help="Question for each image that has none of its own.")
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="Folder for result.json, tables (CSV) and figures (PNG, PDF); created if missing.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of the tables.")]


def side_by_side(
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            help="Compare two results of one experiment (folders, or their result.json).",
            metavar="A B",
        ),
    ] = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Causal experiments on attention sinks, or two of them side by side."""
    if compare is None:
        return
    with common.clear_errors():
        _check_folder(output)
        from sinkscope.experiments.compare import compare as joined
        from sinkscope.experiments.result import Result

        result = joined(Result.open(compare[0]), Result.open(compare[1]))
        _tell(result, output, as_json)


def _command(experiment: Experiment) -> Callable[..., None]:
    """The verb of one experiment: its own settings and those of all."""

    def run(
        settings: Any,
        study: StudySettings,
        model: ModelSettings,
        data: Data = None,
        samples: Samples = 16,
        prompt: Prompt = None,
        output: Output = None,
        as_json: AsJson = False,
    ) -> None:
        _check_folder(output)
        if samples < 1:
            raise ValueError(f"samples is {samples}; allowed: 1 or more.")
        common.check_profile(model)
        from sinkscope.experiments.run import run_experiment

        handle = common.load(model)
        given = _samples(handle, data, samples, prompt)
        for note in given.notes:
            typer.secho(note, fg="yellow", err=True)
        with common.job(experiment.name, 100, "Nothing is kept.") as job:

            def tell(done: int, total: int, text: str) -> None:
                # In percent, because the number of passes is known only once sinks are detected.
                job.report(round(100 * done / max(1, total)), 100, text)

            result = run_experiment(
                handle,
                experiment.name,
                given,
                settings,
                study,
                on_progress=tell,
                stop=job.stop_event,
            )
        _tell(result, output, as_json)

    run.__annotations__["settings"] = experiment.settings
    run.__name__, run.__doc__ = experiment.module, experiment.question
    return verb(run)


def _group() -> typer.Typer:
    """All of them."""
    group = typer.Typer(
        help="Experiments on the cause of attention sinks: remove a factor; do they vanish?",
        no_args_is_help=True,
    )
    group.callback(invoke_without_command=True)(side_by_side)
    for experiment in EXPERIMENTS:
        group.command(experiment.name)(_command(experiment))
    group.command("docs", hidden=True)(docs)  # for developers of SinkScope
    return group


app = _group()


def _samples(handle: ModelHandle, data: str | None, count: int, prompt: str | None) -> Prompts:
    """The samples of --data, or the model's default.

    Raises:
        ValueError: there are none, or images for a text model.
    """
    from sinkscope.experiments.samples import Prompts, own_prompts, read_prompts

    if not handle.family.sees_images:
        if data is None:
            return own_prompts(count)
        path = Path(data)
        if path.is_dir() or path.suffix.lower() not in ("", ".txt", ".text", ".md"):
            raise ValueError(
                f"data is {data!r}, but {handle.info.id} is a text model and sees no images; "
                "allowed: a text file (.txt) with a prompt a line, or none for our own prompts."
            )
        return read_prompts(path, count)
    if data is None:
        if handle.info.id != "demo":
            raise ValueError(
                f"data is missing: give images for {handle.info.id} (a folder, or a file of "
                "questions), or demo for drawn scenes."
            )
        data = "demo"
    from sinkscope.cli.sinks_data import read_data
    from sinkscope.sinks.settings import SampleChoice

    read = read_data(SampleChoice(data, count, prompt), 0)
    return Prompts(read.samples, read.source, read.notes())


def _check_folder(output: Path | None) -> None:
    if output is None:
        return
    if output.exists() and not output.is_dir():
        raise ValueError(f"output is {str(output)!r}; allowed: a folder, not a file.")
    if not output.resolve().parent.is_dir():
        raise ValueError(f"The folder {output.parent} of the output {output.name} does not exist.")


def _tell(result: Result, output: Path | None, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result.as_dict(), ensure_ascii=False, indent=1, allow_nan=False))
    else:
        from sinkscope.cli.experiment_report import print_result

        print_result(result)
    if output is not None:
        from sinkscope.experiments.saving import save_result

        written = save_result(output, result)
        typer.echo(f"Wrote {number_of(len(written), 'file')} to {output}", err=True)
