"""The report of scored explanations: one set of tables, as terminal, Markdown, HTML and CSV."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

from rich.console import Console
from rich.text import Text

from sinkscope.evaluation.explanations.compare import SCORES, Figure, Scores
from sinkscope.evaluation.explanations.folder import ScoreConfig
from sinkscope.evaluation.report import csv_files, markdown, page, terminal
from sinkscope.evaluation.report.tables import Table
from sinkscope.evaluation.statistics.intervals import Interval
from sinkscope.utils import write_bytes_atomically

CSV = (
    *("score", "method", "value", "low", "high", "targets", "against", "difference"),
    *("difference_low", "difference_high", "p_holm", "verdict"),
)
CAVEATS = (
    "A score says whether a map finds what the word names, not whether the model used it: a model "
    "may well use other cells. Insertion and deletion test the model, by cutting attention to "
    "cells; they do not use the object's mask.",
    "A cell belongs to the object where the mask covers at least half as much of it as of the cell "
    "that it covers most. Values that a method leaves out count as its smallest.",
)


def tables(scores: Scores) -> list[Table]:
    """All scores at a glance, then one table per score with its comparisons."""
    names = list(scores.figures)
    rows = [
        (method, *(value_text(scores.figures[score][method].value) for score in names))
        for method in scores.methods
    ]
    columns = ("method", *(_title(score) for score in names))
    note = (
        f"n = {scores.targets} words in {scores.clusters} images; the object has "
        f"{scores.chance:.1%} of the cells on average. ↑: more is better, ↓: less is better."
    )
    result = [Table("All scores", columns, tuple(rows), 1, note)]
    result += [_score(score, scores) for score in names]
    return result


def _title(score: str) -> str:
    title, sign, _ = SCORES[score]
    return f"{title} {'↑' if sign > 0 else '↓'}"


def _score(score: str, scores: Scores) -> Table:
    title, sign, chance = SCORES[score]
    controls = list(
        dict.fromkeys(a.control for f in scores.figures[score].values() for a in f.against)
    )
    columns = ("method", "mean (interval)", *(f"difference to {name}" for name in controls))
    rows = [
        (one.method, f"{value_text(one.value)} ({_ends(one.interval)})", *_against(one, controls))
        for one in scores.figures[score].values()
    ]
    better = "more" if sign > 0 else "less"
    note = f"{better.capitalize()} is better. By chance: {chance}."
    return Table(title, columns, tuple(rows), 1, note)


def value_text(value: float, sign: str = "") -> str:
    """With three decimals; small values with two significant digits."""
    if math.isnan(value):
        return "not defined"
    return f"{value:{sign}.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:{sign}.2g}"


def _ends(interval: Interval, sign: str = "") -> str:
    return f"{value_text(interval.low, sign)} to {value_text(interval.high, sign)}"


def _against(one: Figure, controls: Sequence[str]) -> Iterator[str]:
    by_control = {
        control_difference.control: control_difference for control_difference in one.against
    }
    for control in controls:
        if (control_difference := by_control.get(control)) is None:
            yield ""
        else:
            difference = value_text(control_difference.difference, "+")
            yield (
                f"{difference} ({_ends(control_difference.interval, '+')}), "
                f"{control_difference.verdict}"
            )


def notes(scores: Scores) -> list[str]:
    """What was left out and why, and the limits of the figures."""
    lines = [f"{count} words left out: {reason}." for reason, count in scores.left_out.items()]
    lines += [f"{count} words FAILED: {reason}" for reason, count in scores.failed.items()]
    for method, reasons in scores.lacking.items():
        lines += [f"{method}: no map of {n} words: {reason}." for reason, n in reasons.items()]
    if scores.common:
        lines.append(
            f"{scores.common} words are in no figure, because some method gave no map of them."
        )
    return [*lines, *CAVEATS]


def about(config: ScoreConfig, complete: bool) -> str:
    """One line with data, model and settings."""
    state = "" if complete else " NOT complete: run the same command again to continue."
    steps = f"{config.score.steps} steps of insertion and deletion"
    return (
        f"Data: {config.score.data}; model: {config.model.model} ({config.revision}); {steps}; "
        f"seed {config.score.seed}.{state}"
    )


def show(scores: Scores, config: ScoreConfig, complete: bool, console: Console) -> None:
    """Print it."""
    console.print(Text(about(config, complete)))
    for table in tables(scores):
        console.print(terminal._table(table))
    for note in notes(scores):
        console.print(Text(f"• {note}"))


def files(scores: Scores, config: ScoreConfig, complete: bool) -> dict[str, str]:
    """Name of a file -> its text."""
    return {
        "report.md": markdown_text(scores, config, complete),
        "report.html": html_text(scores, config, complete),
        "scores.csv": csv_files._written(CSV, _csv(scores)),
    }


def markdown_text(scores: Scores, config: ScoreConfig, complete: bool) -> str:
    lines = ["# Explanations scored", "", markdown._text(about(config, complete)), ""]
    for table in tables(scores):
        lines += [f"## {markdown._text(table.title)}", "", *markdown._table(table), ""]
    lines += [f"- {markdown._text(note)}" for note in notes(scores)]
    return "\n".join(lines) + "\n"


def html_text(scores: Scores, config: ScoreConfig, complete: bool) -> str:
    style = resources.files(page.__package__).joinpath("page.css").read_text(encoding="utf-8")
    body = [f"<h1>Explanations scored</h1><p>{html.escape(about(config, complete))}</p>"]
    body += [page._table(table) for table in tables(scores)]
    body.append("<ul>" + "".join(f"<li>{html.escape(n)}</li>" for n in notes(scores)) + "</ul>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(page.POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>Explanations scored · SinkScope</title><style>{style}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _csv(scores: Scores) -> Iterator[Sequence[object]]:
    for score, of in scores.figures.items():
        for method, one in of.items():
            head = (score, method, one.value, one.interval.low, one.interval.high, one.targets)
            if not one.against:
                yield (*head, "", "", "", "", "", "")
            for other in one.against:
                ends = (other.interval.low, other.interval.high)
                yield (*head, other.control, other.difference, *ends, other.p, other.verdict)


def write_files(files: dict[str, str], folder: Path) -> list[Path]:
    """Write them into an existing folder."""
    paths = []
    for name, text in files.items():
        data = text.encode("utf-8", "replace")
        write_bytes_atomically(folder / name, data)
        paths.append(folder / name)
    return paths
