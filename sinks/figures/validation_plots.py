"""Figures of a validation: agreement with attention, other thresholds, and the effect of hiding."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from sinkscope.sinks.figures.style import (
    BLACK,
    GREY,
    ORDINARY,
    PURPLE,
    SINK,
    add_title,
    layer_axis,
    legend,
    plain,
    shares_axis,
    tau_axis,
)
from sinkscope.sinks.validating.validation import Estimate, Validation

SETS = {
    "sinks": "flagged as sinks",
    "random": "as many random tokens",
    "random_dims": "as many by random dimensions",
    "attended": "as many of the most attended others",
    "image": "the whole image",
}


def agreement(validation: Validation) -> Figure:
    """Precision and recall of the flagged tokens against the high-attention ones, by layer."""
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = figure.subplots()
    layers = np.asarray([layer.layer for layer in validation.layers])
    for name, colour, style, label in (
        ("precision", SINK, "-o", "precision: flagged ones that draw attention"),
        ("recall", ORDINARY, "--s", "recall: top-attention ones that are flagged"),
        ("flagged_share", BLACK, "-.^", "flagged, of all vision tokens"),
    ):
        shares = [getattr(layer, name) for layer in validation.layers]
        axes.plot(layers, shares, style, markersize=4, color=colour, label=label)
    shares_axis(axes, "share of tokens")
    layer_axis(axes, layers)
    legend(axes)
    both = validation.agreement
    overall = (
        f"All layers: precision {both.micro_precision:.0%}, recall {both.micro_recall:.0%}; mean "
        f"over layers {both.macro_precision:.0%} and {both.macro_recall:.0%}. A layer that flags "
        "nothing where nothing stands out counts as 100 %."
    )
    add_title(
        figure, f"Agreement with attention, {validation.model.id}", overall, *_held(validation)
    )
    return figure


def validation_sweep(validation: Validation) -> Figure:
    """Over tau: flagged, precision and recall; below, the effect of hiding the flagged tokens."""
    figure = Figure(figsize=(7.2, 6.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(5, 3))
    sweep = validation.sweep
    taus = [point.tau for point in sweep]
    for name, colour, style, label in (
        ("precision", SINK, "-o", "precision"),
        ("recall", ORDINARY, "--s", "recall"),
        ("flagged", BLACK, "-.^", "flagged, mean over layers"),
        ("most", GREY, ":v", "flagged in the worst layer"),
        ("selected", PURPLE, "-x", "rows that VAR would change"),
    ):
        shares = [getattr(point, name) for point in sweep]
        upper.plot(taus, shares, style, markersize=4, color=colour, label=label)
    shares_axis(upper, "share")
    legend(upper)
    for name, colour, style, label in (
        ("sinks", SINK, "-o", "the flagged tokens hidden"),
        ("random", ORDINARY, "--s", "as many random ones hidden"),
    ):
        effect = [math.nan if (v := getattr(point, name)) is None else v for point in sweep]
        if not np.isnan(effect).all():
            lower.plot(taus, effect, style, markersize=4, color=colour, label=label)
    # Never zoom in so far that a negligible change looks like a real one.
    margin = validation.settings.margin
    lower.axhspan(-margin, margin, color=GREY, alpha=0.15, linewidth=0)
    lower.axhline(0, color=GREY, linewidth=0.8)
    low, high = lower.get_ylim()
    lower.set_ylim(min(low, -1.6 * margin), max(high, 1.6 * margin))
    lower.set_ylabel("change of the answer,\nnats per token")
    for axes in (upper, lower):
        axes.axvline(validation.profile.tau, color=BLACK, linewidth=1, linestyle=(0, (6, 3)))
        plain(axes)
    if lower.get_legend_handles_labels()[0]:
        legend(lower)
    else:
        lower.text(0.5, 0.5, "nothing was hidden", transform=lower.transAxes, ha="center")
    tau_axis(lower, taus, validation.profile.tau, at=upper)
    title = f"Profile at other thresholds, {validation.model.id}"
    add_title(
        figure, title, f"Grey band: {margin:g} nats, which count as none.", *_held(validation)
    )
    return figure


def masking_effect(validation: Validation) -> Figure:
    """Change of the answer's log-probability when tokens are hidden: sinks beside the controls.

    Raises:
        ValueError: nothing was hidden.
    """
    if not validation.hidden:
        raise ValueError(f"There is no effect to draw: {validation.verdict.text}")
    shown = [
        (f"{SETS[part.name]}\n{part.tokens:.3g} tokens, {part.attention:.0%} of the attention",
         part.change, SINK if part.name == "sinks" else GREY if part.name == "image" else ORDINARY)
        for part in validation.hidden
    ]  # fmt: skip
    against = [
        (f"sinks \u2212 {SETS[name]}", estimate, PURPLE)
        for name, estimate in validation.contrasts.items()
    ]
    figure = Figure(figsize=(7.2, 1.9 + 0.5 * (len(shown) + len(against))), layout="constrained")
    axes = figure.subplots()
    for place, (_, estimate, colour) in enumerate([*shown, *against]):
        _bar(axes, place, estimate, colour)
    margin = validation.settings.margin
    axes.axvspan(-margin, margin, color=GREY, alpha=0.15, linewidth=0)
    axes.axvline(0, color=GREY, linewidth=0.8)
    if against:
        axes.axhline(len(shown) - 0.5, color=GREY, linewidth=0.6)
    axes.set_yticks(range(len(shown) + len(against)), [n for n, _, _ in [*shown, *against]])
    axes.tick_params(axis="y", labelsize=8, length=0)
    axes.invert_yaxis()
    axes.set_xlabel("change of the answer's log-probability when hidden, nats per token")
    changes = [bound for _, e, _ in [*shown, *against] for bound in (e.low, e.high)]
    if max(map(abs, changes)) > 20 * margin:  # a whole image has a far larger effect
        axes.set_xscale("symlog", linthresh=2 * margin)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        low, high = min(*changes, -2 * margin), max(*changes, 2 * margin)
        axes.set_xlim(1.5 * low, 1.5 * high)
    plain(axes)
    about = (
        f"Mean over samples, {validation.settings.confidence:.0%} bootstrap intervals; grey band: "
        f"within {margin:g} nats, which counts as none. Negative: the answer gets less probable."
    )
    title = f"What hiding them does, {validation.model.id}"
    add_title(figure, title, about, *_held(validation))
    return figure


def _bar(axes: Axes, place: int, estimate: Estimate, colour: str) -> None:
    spread = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
    axes.errorbar(
        estimate.value, place, xerr=spread, fmt="o", color=colour, capsize=4, markersize=6
    )


def _held(validation: Validation) -> tuple[str, str]:
    verdict = validation.verdict
    on = "held-out samples" if validation.held_out else "samples, finding's own among them"
    return (f"{len(validation.samples)} {on}.", f"Verdict: {verdict.word}. {verdict.text}")
