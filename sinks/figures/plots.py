"""Figures of the results of finding and validating, for papers and for checking a tau before use.

Pure functions from `Findings` and `Validation` to matplotlib figures; `save_plots` writes them all
as PNG and PDF. Those of a validation are drawn in `sinks.figures.validation_plots`.

    phi_by_layer       sink score of sinks, ordinary vision tokens and the first token, by layer
    contrast_matrix    candidate dimension x layer: contrast, and where all thresholds hold
    tau_sweep          shares of tokens that each tau flags
    agreement          precision, recall and flagged share of a validation, by layer
    validation_sweep   the same over tau, and the effect of hiding flagged tokens on the answer
    masking_effect     effect of hiding sinks on the answer, beside its controls
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
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    NullFormatter,
)

from sinkscope.drawing.printing import print_figure
from sinkscope.interventions.var.report import MANY_FLAGGED
from sinkscope.sinks.figures.style import (
    BLACK,
    FIRST,
    GREY,
    ORDINARY,
    SINK,
    add_title,
    layer_axis,
    legend,
    place_tau,
    shares_axis,
    tau_axis,
)
from sinkscope.sinks.figures.validation_plots import agreement, masking_effect, validation_sweep
from sinkscope.sinks.finding.findings import Candidate, Findings
from sinkscope.sinks.validating.validation import Validation
from sinkscope.utils import write_atomically

FORMATS = ("png", "pdf")
CELLS_WITH_NUMBERS = 16  # with more layers than this, cells are too small for numbers
MOST_ROWS = 14  # dimensions in the matrix at most

Numbers = npt.NDArray[np.float64]


def save_plots(
    folder: Path, findings: Findings | None = None, validation: Validation | None = None
) -> list[Path]:
    """Write every figure that can be drawn, as PNG and PDF; creates the folder if it is missing.

    Returns:
        The files, in the order of the list above.

    Raises:
        OSError: the folder cannot be created or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, Figure] = {}
    if findings is not None:
        if findings.dims:
            drawn["phi_by_layer"] = phi_by_layer(findings)
        if findings.candidates:
            drawn["contrast_matrix"] = contrast_matrix(findings)
        if findings.sweep:
            drawn["tau_sweep"] = tau_sweep(findings)
    if validation is not None:
        drawn["agreement"] = agreement(validation)
        drawn["validation_sweep"] = validation_sweep(validation)
        if validation.hidden:
            drawn["masking_effect"] = masking_effect(validation)
    written = []
    for name, figure in drawn.items():
        for kind in FORMATS:
            # With a date in the file, two runs with the same seed would differ.
            options: dict[str, Any] = {"format": kind, "dpi": 160}
            if kind == "pdf":
                options["metadata"] = {"CreationDate": None}
            path = folder / f"{name}.{kind}"
            write_atomically(path, partial(print_figure, figure, **options))
            written.append(path)
    return written


def phi_by_layer(findings: Findings) -> Figure:
    """The sink score by layer: medians, with the middle 80 % of tokens as a band, on a log scale.

    Raises:
        ValueError: no sink dimension was found, so there is no score to draw.
    """
    if not findings.dims or findings.tau is None:
        raise ValueError(f"There is no sink score to draw: {findings.reason}")
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    edges = np.asarray(findings.phi_edges, dtype=np.float64)
    layers = np.asarray([layer.layer for layer in findings.layers])
    for colour, marker, name, counts in (
        (SINK, "o", "sink tokens", [layer.sink_phi for layer in findings.layers]),
        (
            ORDINARY,
            "s",
            "ordinary vision tokens",
            [layer.ordinary_phi for layer in findings.layers],
        ),
    ):
        low, middle, high = (_quantiles(counts, edges, q) for q in (0.1, 0.5, 0.9))
        axes.fill_between(layers, low, high, color=colour, alpha=0.22, linewidth=0)
        axes.plot(layers, middle, marker=marker, markersize=4, color=colour, label=name)
        if name != "sink tokens":
            top = _quantiles(counts, edges, 0.999)
            axes.plot(layers, top, ":", color=colour, linewidth=1, label="their highest 0.1 %")
    first = [
        max((c.first for c in layer.candidates if c.dim in findings.dims), default=math.nan)
        for layer in findings.layers
    ]
    axes.plot(layers, first, "--D", markersize=3.5, color=FIRST, label="first token of the prompt")
    axes.axhline(findings.tau, color=BLACK, linewidth=1, linestyle=(0, (6, 3)))
    axes.set_yscale("log")
    place_tau(axes, findings.tau)
    layer_axis(axes, layers)
    axes.set_ylabel(_phi(findings.dims))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    legend(axes)
    add_title(figure, f"Sink score by layer, {findings.model.id}", _about(findings))
    return figure


def contrast_matrix(findings: Findings) -> Figure:
    """Candidate dimension x layer: the colour is the contrast, the number the mean on sink tokens,
    because one without the other says little. A dot marks cells where all thresholds hold; grey
    means that the dimension is not a candidate there.

    Raises:
        ValueError: there is no candidate.
    """
    if not findings.candidates:
        raise ValueError(f"There is no candidate to draw: {findings.reason}")
    rows = _shown(findings)
    layers = [layer.layer for layer in findings.layers]
    values = np.full((len(rows), len(layers)), np.nan)
    on_sinks = values.copy()
    passes = np.zeros(values.shape, dtype=bool)
    for column, layer in enumerate(findings.layers):
        for row, shown in enumerate(rows):
            if (layer_candidate := layer.candidate(shown.dim)) is not None:
                values[row, column], passes[row, column] = (
                    layer_candidate.contrast,
                    layer_candidate.passes,
                )
                on_sinks[row, column] = layer_candidate.sink
    wide = min(14.0, 3.4 + 0.42 * max(8, len(layers)))
    figure = Figure(figsize=(wide, 1.9 + 0.34 * max(3, len(rows))), layout="constrained")
    axes = figure.subplots()
    colours = matplotlib.colormaps["cividis"].with_extremes(bad="0.88")
    highest = max(10.0, float(np.nanmax(values)))
    norm = LogNorm(1, highest, clip=True)
    image = axes.imshow(values, norm=norm, cmap=colours, aspect="auto", interpolation="none")
    with_numbers = len(layers) <= CELLS_WITH_NUMBERS
    for row, column in np.argwhere(np.isfinite(values)):
        value = values[row, column]
        ink = "black" if norm(value) > 0.55 else "white"
        mark = ("\u25cf " if with_numbers else "\u25cf") if passes[row, column] else ""
        number = _short(on_sinks[row, column]) if with_numbers else ""
        axes.text(column, row, mark + number, ha="center", va="center", color=ink, fontsize=7.5)
    axes.set_yticks(range(len(rows)), [_row_name(c, findings.dims) for c in rows], fontsize=8.5)
    for label, candidate in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if candidate.dim in findings.dims else "normal")
    step = max(1, math.ceil(len(layers) / 24))
    axes.set_xticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
    axes.set_xlabel("layer (at its input)")
    axes.set_ylabel("dimension")
    axes.tick_params(length=0)
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.015)
    bar.set_label("contrast", fontsize=8.5)
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    hidden = len(findings.candidates) - len(rows)
    more = f" {hidden} weaker candidates are not shown." if hidden else ""
    how = (
        "Colour: contrast, how far d stands out on sink tokens by how far on ordinary ones. "
        f"{'Number: mean of |x[d]| / rms on sink tokens. ' if with_numbers else ''}"
        "\u25cf: all thresholds hold; grey: no candidate in this layer; bold: taken."
    )
    title = f"Dimensions by layer, {findings.model.id}"
    add_title(figure, title, how + more, _about(findings))
    return figure


def tau_sweep(findings: Findings) -> Figure:
    """Shares that each tau flags: of sink tokens, of ordinary ones, and of all vision tokens.

    Raises:
        ValueError: no sink dimension was found, so no tau was swept.
    """
    if not findings.sweep or findings.tau is None:
        raise ValueError(f"There is no sweep of tau to draw: {findings.reason}")
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    taus = [point.tau for point in findings.sweep]
    by_layer = np.asarray([point.by_layer for point in findings.sweep])
    if by_layer.size:
        low, high = by_layer.min(1), by_layer.max(1)
        label = "from layer to layer"
        axes.fill_between(taus, low, high, color=GREY, alpha=0.2, linewidth=0, label=label)
    for name, colour, style, label in (
        ("sinks", SINK, "-", "of the sink tokens"),
        ("ordinary", ORDINARY, "--", "of the ordinary ones in the same layers"),
        ("flagged", BLACK, "-.", "of all vision tokens in all layers"),
    ):
        shares = [getattr(point, name) for point in findings.sweep]
        axes.plot(taus, shares, style, color=colour, label=label)
    axes.axvline(findings.tau, color=BLACK, linewidth=1, linestyle=(0, (6, 3)))
    axes.axhline(MANY_FLAGGED, color=GREY, linewidth=0.8, linestyle=":")
    shares_axis(axes, "flagged (phi > tau)")
    tau_axis(axes, taus, findings.tau)
    legend(axes)
    add_title(figure, f"What a threshold flags, {findings.model.id}", _about(findings))
    return figure


def _quantiles(counts: Sequence[Sequence[int]], edges: Numbers, share: float) -> Numbers:
    """(layers,) quantile of each layer's histogram, interpolated within a bin; NaN if empty."""
    quantiles = np.full(len(counts), np.nan)
    for place, bins in enumerate(counts):
        total = np.concatenate(([0], np.cumsum(bins))).astype(np.float64)
        if total[-1] > 0:
            # Only where the sum rises, so that empty bins do not make the position ambiguous.
            kept = np.concatenate(([True], np.diff(total) > 0))
            kept[:-1] |= np.diff(total) > 0
            quantiles[place] = np.interp(share * total[-1], total[kept], edges[kept])
    return quantiles


def _shown(findings: Findings) -> tuple[Candidate, ...]:
    """Rows of the matrix: found dimensions, those with a verdict of their own, then the largest."""
    rest = sorted(
        (c for c in findings.candidates if c.dim not in findings.dims),
        key=lambda c: (c.kind == "none", -c.sink),
    )
    return (*findings.found, *rest[: max(0, MOST_ROWS - len(findings.dims))])


def _row_name(candidate: Candidate, dims: Sequence[int]) -> str:
    kind = "" if candidate.dim in dims or candidate.kind == "none" else f" ({candidate.kind})"
    return f"{candidate.dim}{kind}"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def _phi(dims: Sequence[int]) -> str:
    return f"sink score phi on dimension{'s' if len(dims) > 1 else ''} {', '.join(map(str, dims))}"


def _about(findings: Findings) -> str:
    settings = findings.settings
    outcome = findings.reason
    if findings.tau is not None:
        dims = ", ".join(map(str, findings.dims))
        outcome = f"dims {dims}, tau {findings.tau:.3g}, confidence {findings.confidence}."
    return (
        f"{len(findings.samples)} samples; sink tokens: the top {settings.top_percent:g} % by "
        f"{settings.tokens_by}, at least {settings.min_ratio:g} times the median; {outcome}"
    )
