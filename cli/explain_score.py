"""`explain-score`: how well explanation methods find the object that a word names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sinkscope.cli import common
from sinkscope.cli.options import verb
from sinkscope.config import ModelSettings
from sinkscope.evaluation.explanations.settings import ScoreReportSettings, ScoreSettings
from sinkscope.jobs.job import Job, Stopped

if TYPE_CHECKING:
    from sinkscope.evaluation.explanations.run import Progressed

INCOMPLETE = 3  # exit code: targets failed


@verb
def explain_score(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder of the run; the same command resumes it."),
    ],
    score: ScoreSettings,
    model: ModelSettings,
    report: ScoreReportSettings,
    markdown: Annotated[
        Path | None, typer.Option(help="Write report.md to this file as well.", metavar="FILE")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Score explanation methods against masks, with a random map and a centre prior as baselines.

    Each word is explained by each method, and the map is compared with the pixels of the named
    object: pointing game, energy inside, NSS, AUC, Obj-IoU; and with the model's own change of
        probability: insertion and deletion. In --output: records.jsonl, report.md, report.html,
            scores.csv. Ctrl-C keeps the records, and reports on them. Exit code 3 means that words
            failed.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"output is {str(output)!r}, which is a file; allowed: a folder.")
    if markdown is not None:
        common.check_output(markdown)
    from sinkscope.methods.together import methods_named

    methods_named(score.methods)
    common.check_profile(model)
    from rich.console import Console

    from sinkscope.evaluation.explanations.compare import compare_scores, plain
    from sinkscope.evaluation.explanations.folder import read_scores
    from sinkscope.evaluation.explanations.report import files, show, write_files
    from sinkscope.evaluation.explanations.targets import targets_of

    if next(targets_of(score), None) is None:
        raise ValueError(f"The data {score.data} has no words to explain.")
    handle = common.load(model)
    if not handle.family.sees_images:
        raise ValueError(f"The model {handle.info.id} sees no images, so no map can be scored.")
    done, stopped = _scored(handle, score, model, output)
    config, records, _ = read_scores(output)
    scores = compare_scores(records, report)
    complete = done is not None and done.complete
    written = files(scores, config, complete)
    if markdown is not None:
        write_files({markdown.name: written["report.md"]}, markdown.parent)
    for path in write_files(written, output):
        typer.echo(f"Wrote {path}", err=True)
    if as_json:
        typer.echo(json.dumps(plain(scores), ensure_ascii=False, indent=1))
    else:
        show(scores, config, complete, Console())
    if stopped is not None:
        typer.echo(f"{stopped} The same command continues from there.", err=True)
        raise typer.Exit(common.INTERRUPTED)
    if not complete:
        raise typer.Exit(INCOMPLETE)


def _scored(
    handle: object, score: ScoreSettings, model: ModelSettings, output: Path
) -> tuple[Progressed | None, Stopped | None]:
    from sinkscope.cli.evaluate import _progress_bar
    from sinkscope.evaluation.explanations.run import score_methods
    from sinkscope.evaluation.explanations.targets import SCENES

    total = (score.limit or SCENES) if score.data == "demo" else score.limit
    job = Job(on_progress=lambda *at: tell(*at))
    with common.interrupted(job), job, _progress_bar("Scoring", total) as tell:
        try:
            # A score with methods, checked by the caller.
            return score_methods(handle, score, model, output, **job.hooks), None  # type: ignore[arg-type]
        except Stopped as stopped:
            return None, stopped
