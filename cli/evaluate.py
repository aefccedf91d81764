"""The verbs `sinkscope evaluate run` and `evaluate report`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sinkscope.cli import common
from sinkscope.cli.options import Draft, Group, verb
from sinkscope.config import ModelSettings
from sinkscope.evaluation.settings import RunSettings, WorkSettings
from sinkscope.jobs.job import Job
from sinkscope.setting import user_settings
from sinkscope.utils import number_of

if TYPE_CHECKING:
    from sinkscope.evaluation.session import Prepared, Summary
    from sinkscope.evaluation.settings import RunConfig
    from sinkscope.jobs.job import Progress

INCOMPLETE = 3  # exit code: questions failed
MOST_FAILURES_PRINTED = 10  # failures that are printed
MOST_REPLACED = 100  # workers of a cluster that may die

app = typer.Typer(
    help="Compare methods on the same questions, with the uncertainty of the difference.",
    no_args_is_help=True,
)


Run = Annotated[
    Draft[RunSettings],
    Group(left_out={"task": "none; required without --config"}),
]


@app.command()
@verb
def run(
    context: typer.Context,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder of the run; the same command resumes it."),
    ],
    asked: Run,
    model: ModelSettings,
    work: WorkSettings,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="default, var or var-random, with settings as var:keep=0.3,dialect=paper; may be "
            "repeated. Default: default.",
        ),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="Every VAR method with each of these values, such as keep=0,0.3,0.6."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="The run.toml of a run, instead of all other settings.", metavar="FILE"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Ask a model a task's questions with several methods; every answer is a record in --output.

    Exit code 3 means that questions failed; they are named, and the same command retries them.
    """
    from sinkscope.evaluation.method_specs import parse_methods
    from sinkscope.evaluation.settings import RunConfig, read_config

    if config is not None:
        _alone(context)
        wanted = read_config(config)
    else:
        if "task" not in asked.given:
            raise ValueError("task is missing; `sinkscope evaluate tasks` lists them.")
        methods = parse_methods(method or ["default"], sweep or ())
        wanted = RunConfig(asked.make(), model, methods)
    common.check_profile(wanted.model)
    from sinkscope.evaluation.runner import evaluate, prepare
    from sinkscope.sinks.engine import check_engine, make_engine

    check_engine(work.engine, work.workers)
    _check_folder(output)
    prepared = prepare(wanted.run)
    _say(prepared, wanted)
    handle = common.load(wanted.model)
    engine = make_engine(work.engine, handle, wanted.model, work.workers, MOST_REPLACED)
    kept = f"Their records are kept in {output}; the same command continues from there."
    with (
        common.stoppable(Job(on_progress=lambda *at: tell(*at)), kept) as job,
        _progress_bar(f"{wanted.run.task}, {len(wanted.methods)} methods", prepared.total) as tell,
    ):
        done = evaluate(
            handle,
            wanted,
            prepared,
            output,
            shard=work.part(),
            retries=work.retries,
            engine=engine,
            **job.hooks,
        )
    _say_summary(done, output, as_json)
    if not done.complete:
        raise typer.Exit(INCOMPLETE)


@app.command()
@verb
def tasks(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the tasks, with their protocols and where their data comes from."""
    from sinkscope.evaluation.tasks.listed import TASKS

    rows = [
        {
            "name": one.name,
            "about": one.about,
            "protocols": [protocol.name for protocol in one.protocols],
            "data": f"hub:{one.hub}" if one.hub else one.data or "none needed",
        }
        for one in TASKS
    ]
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    for row in rows:
        typer.echo(f"{row['name']:12} {row['about']}")
        typer.echo(f"{'':12} {', '.join(row['protocols'])}; data: {row['data']}")


def _alone(context: typer.Context) -> None:
    """Refuse options together with --config, which already sets them."""
    beside = {"output", "config", "as_json", *(one.name for one in user_settings(WorkSettings))}
    given = [
        name
        for name in context.params
        if name not in beside and str(context.get_parameter_source(name)).endswith("COMMANDLINE")
    ]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"{options} and --config are given; the file says it all.")


def _check_folder(output: Path) -> None:
    """Check, before a model is loaded, that the folder can be written. Leaves no file behind.

    Raises:
        ValueError: it cannot.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"output is {str(output)!r}, which is a file; allowed: a folder.")
    existing = next(one for one in (output, *output.absolute().parents) if one.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ValueError(
            f"The folder {output} cannot be written: {existing}: {error.strerror or error}."
        ) from error


def _say(prepared: Prepared, wanted: RunConfig) -> None:
    """Announce the run on standard error."""
    count = "all" if prepared.total is None else f"{prepared.total}"
    where = "" if prepared.data is None else f" of {prepared.data.name} ({prepared.data.revision})"
    names = ", ".join(one.name for one in wanted.methods)
    typer.echo(
        f"{prepared.task.name}, protocol {prepared.protocol.name}: {count} questions{where}, by "
        f"{names}",
        err=True,
    )
    if prepared.judge.name == "substring-legacy":
        from sinkscope.evaluation.judges.substring_legacy import WARNING

        typer.echo(f"Warning: {WARNING}", err=True)


def _say_summary(done: Summary, output: Path, as_json: bool) -> None:
    if as_json:
        import dataclasses

        typer.echo(json.dumps(dataclasses.asdict(done), ensure_ascii=False, indent=1))
    for name, reason in done.failures[:MOST_FAILURES_PRINTED]:
        typer.echo(f"Failed: {name}: {reason}", err=True)
    if done.failed > MOST_FAILURES_PRINTED:
        typer.echo(
            f"... and {done.failed - MOST_FAILURES_PRINTED} more; the records have them all.",
            err=True,
        )
    state = "complete" if done.complete else "NOT complete; the same command tries the failed again"
    typer.echo(
        f"{done.answered} of {number_of(done.questions, 'question')} answered, "
        f"{done.failed} failed: {state}. Records are in {output}",
        err=True,
    )


@contextmanager
def _progress_bar(label: str, total: int | None) -> Iterator[Progress]:
    """A progress bar with the remaining time, on standard error."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        row = bar.add_task(label, total=total, text="")

        def tell(done: int, of: int, text: str) -> None:
            bar.update(row, completed=done, total=of or None, text=text)

        yield tell
