"""The verbs of `sinkscope VERB ...` and nothing else; `sinkscope.__main__` runs them."""

from __future__ import annotations

import typer

from sinkscope.cli import (
    compare,
    demo,
    evaluate,
    evaluate_report,
    experiment,
    explain,
    explain_score,
    heatmap,
    region,
    screenshots,
    show,
    sinks,
)

app = typer.Typer(
    name="sinkscope",
    help="See where a vision-language model looks while it answers.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,  # a bug gives Python's own traceback, without local values
)
app.command("heatmap")(heatmap.heatmap)
app.command("explain")(explain.explain)
app.command("explain-score")(explain_score.explain_score)
app.command("compare")(compare.compare)
app.command("show")(show.show)
app.command("region")(region.region)
app.command("screenshots")(screenshots.screenshots)
app.add_typer(sinks.app, name="sinks")
app.add_typer(experiment.app, name="experiment")
evaluate.app.command("report")(evaluate_report.report)
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(demo.app, name="demo")
