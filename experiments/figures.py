"""Charts drawn with matplotlib, suitable for a paper: one quantity per figure, PNG and PDF.

Colours are those of `sinks.figures.style`; line style and marker distinguish the same groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sinkscope.drawing.printing import print_figure
from sinkscope.experiments.result import Chart, Result, Series
from sinkscope.sinks.figures.style import (
    BLACK,
    FIRST,
    GREY,
    ORDINARY,
    PURPLE,
    SINK,
    add_title,
    legend,
    plain,
)
from sinkscope.utils import write_atomically

FORMATS = ("png", "pdf")
ROLES = {
    "sinks": SINK,
    "ordinary": ORDINARY,
    "first": FIRST,
    "last": GREY,
    "plain": BLACK,
    "ablated": SINK,
    "changed": SINK,
    "random direction": ORDINARY,
    "random tokens": PURPLE,
}
OTHERS = (SINK, ORDINARY, FIRST, PURPLE, "#e69f00", "#56b4e9", GREY, BLACK)
MARKERS, STYLES = "osD^vPX*", ("-", "--", "-.", ":")
MOST_TICKS = 28
MOST_NUMBERS = 260  # cells of a heat map that are labelled

Numbers = npt.NDArray[np.float64]


def draw(chart: Chart, about: str = "") -> Figure:
    """The figure of a chart.

    Args:
        chart: what to draw.
        about: small print: model, samples and settings.

    Raises:
        ValueError: nothing in it is a number.
    """
    if not any(value is not None for series in chart.series for value in series.y):
        raise ValueError(f"There is nothing to draw in {chart.name}: no value is a number.")
    wide = 7.2
    if chart.kind == "bars":
        wide = min(14.0, max(5.0, 2.2 + 0.16 * len(chart.x) * (1 + len(chart.series))))
    high = 4.2 if chart.kind != "heat" else 1.9 + 0.26 * max(6, len(chart.series))
    figure = Figure(figsize=(wide, min(high, 12.0)), layout="constrained")
    axes = figure.subplots()
    {"lines": _lines, "bars": _bars, "histogram": _histogram, "heat": _heat}[chart.kind](
        axes, chart
    )
    axes.set_xlabel(chart.x_label, parse_math=False)
    axes.set_ylabel(chart.y_label, parse_math=False)
    add_title(figure, chart.title, *(line for line in (chart.note, about) if line))
    return figure


def save_figures(folder: Path, result: Result) -> list[Path]:
    """Draw all charts of a result into a folder, which must exist, as PNG and PDF.

    Returns:
        The files; a chart without any number has none.
    """
    written = []
    for chart in result.findings.charts:
        try:
            figure = draw(chart, result.provenance())
        except ValueError:
            continue
        for kind in FORMATS:
            options: dict[str, Any] = {"format": kind, "dpi": 160}
            # A date in the file would make two runs of one seed differ.
            options["metadata"] = (
                {"CreationDate": None, "Subject": result.provenance()}
                if kind == "pdf"
                else {"Description": result.provenance()}
            )
            path = folder / f"{chart.name}.{kind}"
            write_atomically(path, partial(print_figure, figure, **options))
            written.append(path)
    return written


def _floats(values: Sequence[float | None]) -> Numbers:
    return np.asarray([math.nan if value is None else value for value in values], np.float64)


def _colour(series: Series, index: int, chart: Chart) -> str:
    """A role's own colour, where no other series has it."""
    role_colour = ROLES.get(series.role)
    same = [one for one in chart.series if ROLES.get(one.role) == role_colour]
    if role_colour is not None and len(same) == 1:
        return role_colour
    taken = {ROLES[one.role] for one in chart.series if one.role in ROLES}
    free = [colour for colour in OTHERS if colour not in taken] or list(OTHERS)
    return free[index % len(free)]


def _lines(axes: Axes, chart: Chart) -> None:
    numeric = all(not isinstance(value, str) for value in chart.x)
    x = np.asarray(chart.x, np.float64) if numeric else np.arange(len(chart.x), dtype=np.float64)
    for index, series in enumerate(chart.series):
        colour, y = _colour(series, index, chart), _floats(series.y)
        if series.low is not None and series.high is not None:
            low, high = _floats(series.low), _floats(series.high)
            if chart.log:
                low = np.where(low > 0, low, np.nan)
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(
            x,
            y,
            linestyle=STYLES[index % len(STYLES)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=4,
            color=colour,
            label=series.name,
        )
    if chart.log:
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=14))
    if not numeric:
        axes.set_xticks(x, [str(value) for value in chart.x])
    plain(axes)
    legend(axes)


def _bars(axes: Axes, chart: Chart) -> None:
    x = np.arange(len(chart.x), dtype=np.float64)
    width = 0.8 / max(1, len(chart.series))
    for index, series in enumerate(chart.series):
        y = _floats(series.y)
        position = x + (index - (len(chart.series) - 1) / 2) * width
        error = None
        if series.low is not None and series.high is not None:
            below, above = y - _floats(series.low), _floats(series.high) - y
            error = np.nan_to_num(np.clip(np.stack([below, above]), 0, None))
        axes.bar(
            position,
            y,
            width * 0.92,
            yerr=error,
            color=_colour(series, index, chart),
            hatch=("", "//", "..", "xx", "\\\\")[index % 5],
            edgecolor="white",
            linewidth=0.5,
            error_kw={"elinewidth": 0.9, "capsize": 2, "ecolor": "0.25"},
            label=series.name,
        )
    labels = [str(value) for value in chart.x]
    steep = sum(map(len, labels)) > 60
    step = max(1, math.ceil(len(labels) / MOST_TICKS))
    axes.set_xticks(
        x[::step],
        labels[::step],
        rotation=40 if steep else 0,
        ha="right" if steep else "center",
        fontsize=8,
    )
    if chart.log:
        axes.set_yscale("log")
    else:
        axes.axhline(0, color="0.4", linewidth=0.7)
    plain(axes)
    if len(chart.series) > 1:
        legend(axes)


def _histogram(axes: Axes, chart: Chart) -> None:
    edges = np.asarray(chart.x, np.float64)
    for index, series in enumerate(chart.series):
        counts = _floats(series.y)
        share = counts / max(1.0, float(np.nansum(counts)))
        colour = _colour(series, index, chart)
        axes.stairs(share, edges, color=colour, fill=True, alpha=0.25)
        style = STYLES[index % len(STYLES)]
        axes.stairs(share, edges, color=colour, linestyle=style, linewidth=1.4, label=series.name)
    plain(axes)
    legend(axes)


def _heat(axes: Axes, chart: Chart) -> None:
    values = np.stack([_floats(series.y) for series in chart.series])
    colours = matplotlib.colormaps["cividis"].with_extremes(bad="0.88")
    image = axes.imshow(values, cmap=colours, aspect="auto", interpolation="none", origin="lower")
    columns, rows = len(chart.x), len(chart.series)
    step = max(1, math.ceil(columns / MOST_TICKS))
    axes.set_xticks(range(0, columns, step), [str(x) for x in chart.x[::step]], fontsize=8)
    down = max(1, math.ceil(rows / MOST_TICKS))
    axes.set_yticks(range(0, rows, down), [s.name for s in chart.series[::down]], fontsize=8)
    if values.size <= MOST_NUMBERS and columns <= 16:
        low, high = np.nanmin(values), np.nanmax(values)
        for row, column in np.argwhere(np.isfinite(values)):
            bright = (values[row, column] - low) / max(1e-12, high - low) > 0.55
            axes.text(
                column,
                row,
                f"{values[row, column]:.2g}",
                ha="center",
                va="center",
                color="black" if bright else "white",
                fontsize=7,
            )
    axes.tick_params(length=0)
    axes.figure.colorbar(image, ax=axes, fraction=0.05, pad=0.015)
