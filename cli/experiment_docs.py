"""`experiment docs`: every experiment on the bundled model, with its figures and results written
into docs/experiments.md."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sinkscope.cli import common
from sinkscope.config import ModelSettings
from sinkscope.utils import PROJECT, write_atomically, write_bytes_atomically

if TYPE_CHECKING:
    from sinkscope.experiments.result import Result

SAMPLES = 16
DPI = 100
FOUND = "found"  # a layer: the one whose MLP makes the sinks by the scan, which runs first; else 0
# Each run with its settings and the figures shown (of names with *, the first that fits). A name
# may occur once.
RUNS: tuple[tuple[str, dict[str, Any], tuple[str, ...]], ...] = (
    ("scan", {}, ("attention", "energy_concentration")),
    ("decompose-output", {"layer": FOUND}, ("dim_*",)),
    ("mlp-subspace", {"layer": FOUND}, ("largest",)),
    ("ablate-mlp", {"layer": FOUND}, ("sink_attention", "one_layer_at_a_time")),
    ("decompose-mlp-in", {"layer": FOUND}, ("projections",)),
    ("lower-attention", {}, ("answer",)),
    ("cut-edges", {"keys": "region", "region": (0.0, 0.0, 0.5, 0.5)}, ("change",)),
    ("vision-or-text", {}, ("sink_attention",)),
    ("sink-tokens", {}, ("auc",)),
)


def docs() -> None:
    """Update docs/experiments.md: the bundled model's results and figures.

    Only in a clone of the project; each part between two marks in the page is replaced.
    """
    with common.clear_errors():
        page = PROJECT / "docs" / "experiments.md"
        if not (PROJECT / "src" / "sinkscope").is_dir() or not page.is_file():
            raise ValueError("docs/experiments.md is not here; this is for a clone of SinkScope.")
        from sinkscope.cli.sinks_data import read_data
        from sinkscope.experiments.catalogue import experiment_named
        from sinkscope.experiments.run import run_experiment
        from sinkscope.experiments.samples import Prompts
        from sinkscope.sinks.settings import SampleChoice

        handle = common.load(ModelSettings())
        read = read_data(SampleChoice("demo", SAMPLES), 0)
        given = Prompts(read.samples, read.source, read.notes())
        text = page.read_text(encoding="utf-8")
        with common.progress("Experiments", len(RUNS)) as bar:
            scan: Result | None = None
            for name, asked, charts in RUNS:
                settings = with_layer(asked, scan)
                experiment_settings = experiment_named(name).settings(**settings)
                result = run_experiment(handle, name, given, experiment_settings)
                scan = scan or result
                pictures = _draw(PROJECT / "docs" / "images", result, charts)
                text = replaced(text, name, _section_text(result, settings, pictures))
                bar.update(1)
        write_bytes_atomically(page, text.encode())
        typer.echo(f"Wrote {page}", err=True)


def with_layer(settings: dict[str, Any], scan: Result | None) -> dict[str, Any]:
    """The settings of a run, with the layer that the scan found in place of `FOUND`."""
    values = {} if scan is None else scan.findings.values
    layer = values["layer"] if values.get("part") == "mlp" else 0
    return {name: layer if value == FOUND else value for name, value in settings.items()}


def replaced(text: str, name: str, new: str) -> str:
    """The page with the text between the marks of an experiment replaced.

    Raises:
        ValueError: the page has no such marks.
    """
    marks = f"<!-- bundled: {name} -->\n", "<!-- end -->"
    section = re.compile(re.escape(marks[0]) + r".*?" + re.escape(marks[1]), re.S)
    if len(section.findall(text)) != 1:
        raise ValueError(f"docs/experiments.md has no part {marks[0].strip()} ... {marks[1]}.")
    put: Callable[[re.Match[str]], str] = lambda _: f"{marks[0]}{new}{marks[1]}"  # noqa: E731
    return section.sub(put, text)


def _draw(folder: Path, result: Result, charts: tuple[str, ...]) -> list[tuple[str, str]]:
    """(file, title) of each figure."""
    from sinkscope.drawing.printing import print_figure
    from sinkscope.experiments.figures import draw

    written = []
    drawn = [chart.name for chart in result.findings.charts]
    first = {name for pattern in charts for name in fnmatch.filter(drawn, pattern)[:1]}
    for chart in result.findings.charts:
        if chart.name in first:
            file = f"experiment_{result.experiment}_{chart.name}.png".replace("-", "_")
            figure = draw(chart)
            options: Any = {"format": "png", "dpi": DPI, "metadata": {"Software": None}}
            write_atomically(folder / file, partial(print_figure, figure, **options))
            written.append((file, chart.title))
    return written


def _section_text(result: Result, settings: dict[str, Any], pictures: list[tuple[str, str]]) -> str:
    words = " ".join(_option(name, value) for name, value in settings.items())
    command = f"sinkscope experiment {result.experiment} {words}".strip()
    lines = [f"`{command}`, {len(result.samples)} drawn scenes:", ""]
    lines_of_summary = list(result.findings.summary)
    if result.findings.verdict is not None:
        lines_of_summary.append(f"Verdict: **{result.findings.verdict.word}**.")
        lines_of_summary += result.findings.verdict.text
    lines += ["\n>\n".join(f"> {text}" for text in lines_of_summary), ""]
    lines += [f"![{title}](images/{file})" for file, title in pictures]
    return "\n".join([*lines, ""])


def _option(name: str, value: Any) -> str:
    written = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"--{name.replace('_', '-')} {written}"
