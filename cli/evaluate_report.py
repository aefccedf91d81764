"""The verb `sinkscope evaluate report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sinkscope.cli import common
from sinkscope.cli.options import verb
from sinkscope.evaluation.report.settings import ReportSettings
from sinkscope.evaluation.statistics.settings import CompareSettings

INCOMPLETE = 3  # exit code, as of `evaluate run`
WIDTH = 180  # of tables that go into a file or a pipe


@verb
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of `evaluate run`; several make one report.")
    ],
    settings: ReportSettings,
    statistics: CompareSettings,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder of the report. Default: RUN/report for one run."
        ),
    ] = None,
) -> None:
    """Report on runs: tables here; report.html, report.md and CSV files in --output.

    Exit code 3 means that a run is not complete; its report says what is missing.
    """
    from rich.console import Console

    from sinkscope.evaluation.report.terminal import show
    from sinkscope.evaluation.report.write import make_report, write_report

    if output is None and len(runs) > 1:
        raise ValueError("output is missing; several runs need a folder for their report.")
    result = make_report(runs, settings, statistics, common.load)
    paths = write_report(result, output or runs[0] / "report")
    console = Console()
    show(result.sections, console if console.is_terminal else Console(width=WIDTH))
    for path in paths:
        typer.echo(f"wrote {path}", err=True)
    if not result.complete:
        raise typer.Exit(INCOMPLETE)
