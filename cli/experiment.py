"""`experiment NAME ...`: causal experiments on attention sinks, one command each.

The commands and their options are made of `experiments.catalogue.EXPERIMENTS`: a new row there is a
new command here.
"""

from __future__ import annotations

import inspect
import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sinkscope.cli import common
from sinkscope.cli.experiment_options import options_of, settings_from
from sinkscope.config import ModelSettings
from sinkscope.experiments.catalogue import EXPERIMENTS, Experiment
from sinkscope.experiments.settings import StudySettings

if TYPE_CHECKING:
    from sinkscope.experiments.result import Result
    from sinkscope.models.loading import ModelHandle
    from sinkscope.sinks.progress import Progress

INTERRUPTED = 130
NAMES = ", ".join(experiment.name for experiment in EXPERIMENTS)

app = typer.Typer(
    help="What makes attention sinks: take the factor away and see whether they vanish.",
    no_args_is_help=True,
)

Data = Annotated[
    str | None,
    typer.Option(
        help="Samples: a folder of images, a file of questions, or demo (drawn scenes); for a text "
        "model a text file with a prompt a line. Left out: demo with the bundled model, our own "
        "prompts with a text model."
    ),
]
Samples = Annotated[int, typer.Option(help="How many samples.")]
Prompt = Annotated[
    str | None, typer.Option(help="Asked about each image that has no question of its own.")
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="Folder for result.json, tables (CSV) and figures (PNG, PDF); made if it is missing.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of the tables.")]
SHARED: dict[str, tuple[Any, Any]] = {
    "model": (common.Model, "demo"),
    "data": (Data, None),
    "samples": (Samples, 16),
    "prompt": (Prompt, None),
    "output": (Output, None),
    "as_json": (AsJson, False),
    "profile": (common.Profile, None),
    "device": (common.Device, "auto"),
    "dtype": (common.DType, "auto"),
    "revision": (common.Revision, None),
}


@app.callback(invoke_without_command=True)
def main(
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            help="Two results of one experiment (folders, or their result.json): side by side.",
            metavar="A B",
        ),
    ] = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Causal experiments on attention sinks, or two of them side by side."""
    if compare is None:
        return
    with common.mistakes_said_plainly():
        _check_folder(output)
        from sinkscope.experiments.compare import compare as side_by_side
        from sinkscope.experiments.result import Result

        made = side_by_side(Result.open(compare[0]), Result.open(compare[1]))
        _tell(made, output, as_json)


def _command(experiment: Experiment) -> Callable[..., None]:
    """The verb of one experiment, with a parameter for each of its options."""
    own, study = options_of(experiment.settings), options_of(StudySettings)
    options = {**own, **SHARED, **study}

    def verb(**given: Any) -> None:
        with common.mistakes_said_plainly():
            settings = settings_from(experiment.settings, given)
            asked = settings_from(StudySettings, given)
            _check_folder(given["output"])
            wanted = ModelSettings(
                given["model"],
                given["revision"],
                given["device"],
                given["dtype"],
                profile=common.profile_file(given["profile"]),
            )
            if given["samples"] < 1:
                raise ValueError(f"samples is {given['samples']}; allowed: 1 or more.")
            _run(experiment.name, settings, asked, wanted, given)

    # Typer reads a function's signature; required options come first.
    parameters = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default
        )
        for name, (annotation, default) in options.items()
    ]
    verb.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    verb.__annotations__ = {name: annotation for name, (annotation, _) in options.items()}
    verb.__name__ = experiment.module
    verb.__doc__ = experiment.question
    return verb


for _experiment in EXPERIMENTS:
    app.command(_experiment.name)(_command(_experiment))


def _run(
    name: str,
    settings: Any,
    asked: StudySettings,
    wanted: ModelSettings,
    given: dict[str, Any],
) -> None:
    from sinkscope.experiments.run import run_experiment

    handle = common.load(wanted)
    samples = _samples(handle, given)
    for note in samples.notes:
        typer.secho(note, fg="yellow", err=True)
    with _interruptible() as stop, _told(name) as tell:
        made = run_experiment(handle, name, samples, settings, asked, on_progress=tell, stop=stop)
    _tell(made, given["output"], given["as_json"])


def _samples(handle: ModelHandle, given: dict[str, Any]) -> Any:
    """What --data names, or the default of the model.

    Raises:
        ValueError: it names none, or images for a text model.
    """
    from sinkscope.experiments.samples import Prompts, own_prompts, read_prompts

    data, count = given["data"], given["samples"]
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

    read = read_data(data, count, given["prompt"], 0)
    return Prompts(read.samples, read.source, read.notes())


def _check_folder(output: Path | None) -> None:
    if output is None:
        return
    if output.exists() and not output.is_dir():
        raise ValueError(f"output is {str(output)!r}; allowed: a folder, not a file.")
    if not output.resolve().parent.is_dir():
        raise ValueError(f"The folder {output.parent} of the output {output.name} does not exist.")


def _tell(made: Result, output: Path | None, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(made.as_dict(), ensure_ascii=False, indent=1, allow_nan=False))
    else:
        from sinkscope.cli.experiment_report import print_result

        print_result(made)
    if output is not None:
        from sinkscope.experiments.saving import save_result

        written = save_result(output, made)
        typer.echo(f"Wrote {len(written)} files to {output}", err=True)


@contextmanager
def _told(label: str) -> Iterator[Progress]:
    """A progress bar in percent; how many passes there are is known once sinks are detected."""
    with common.progress(label, 100) as bar:

        def tell(done: int, total: int, text: str) -> None:
            bar.update(max(0, round(100 * done / max(1, total)) - bar.pos))

        yield tell


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Ctrl-C ends the run after the pass at hand; a second one at once."""
    from sinkscope.sinks.progress import Stopped

    stop = threading.Event()

    def interrupt(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        typer.echo("\nStopping after the pass at hand; Ctrl-C again stops at once.", err=True)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield stop
    except Stopped as stopped:
        typer.echo(
            f"Stopped after {stopped.done} of {stopped.total} steps; nothing was kept.", err=True
        )
        raise typer.Exit(INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGINT, before)
