"""The verb `sinkscope evaluate report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sinkscope.cli import common

INCOMPLETE = 3  # exit code, as of `evaluate run`
WIDTH = 180  # of tables that go into a file or a pipe


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of `evaluate run`; several make one report.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder of the report. Left out: RUN/report of one run."
        ),
    ] = None,
    baseline: Annotated[
        str, typer.Option(help="The method that the others are compared with.")
    ] = "default",
    alpha: Annotated[float, typer.Option(help="Error rate behind a verdict.")] = 0.05,
    confidence: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    resamples: Annotated[int, typer.Option(help="Of the bootstrap.")] = 5000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    flips: Annotated[
        int, typer.Option(help="Changed questions that the page shows of each run, at most.")
    ] = 60,
    maps: Annotated[
        int,
        typer.Option(
            help="Of these, so many with the maps of both answers; loads the run's model."
        ),
    ] = 0,
    no_data: Annotated[
        bool, typer.Option("--no-data", help="Do not open the data for texts and images.")
    ] = False,
) -> None:
    """Say what runs say: tables here; report.html, report.md and CSV files in --output.

    Exit code 3 says that a run is not complete; its report says what is missing.
    """
    with common.mistakes_said_plainly():
        from rich.console import Console

        from sinkscope.evaluation.report.terminal import show
        from sinkscope.evaluation.report.write import ReportSettings, make_report, write_report
        from sinkscope.evaluation.statistics.compare import Settings

        if output is None and len(runs) > 1:
            raise ValueError("output is missing; several runs need a folder for their report.")
        statistics = Settings(
            baseline, resamples=resamples, seed=seed, alpha=alpha, confidence=confidence
        )
        made = make_report(runs, ReportSettings(statistics, flips, not no_data, maps), common.load)
        paths = write_report(made, output or runs[0] / "report")
        console = Console()
        show(made.sections, console if console.is_terminal else Console(width=WIDTH))
        for path in paths:
            typer.echo(f"wrote {path}", err=True)
        if not made.complete:
            raise typer.Exit(INCOMPLETE)
