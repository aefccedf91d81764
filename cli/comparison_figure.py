"""Baseline | VAR | difference for one token, as a figure with its numbers."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from sinkscope.attention_extractor import Comparison
from sinkscope.attention_processor import PatchMap, patch_map, sink_cells
from sinkscope.cli.comparison import token_numbers
from sinkscope.cli.drawing import sink_words
from sinkscope.drawing.overlay import DIVERGING, under_map
from sinkscope.drawing.scale import Ticks, difference_of
from sinkscope.drawing.text import printable
from sinkscope.visualization import (
    OverlayStyle,
    Scaling,
    caption,
    fonts,
    overlay,
    scale_of,
    visible,
)

LONGEST = 900  # pixels of a panel's longer side: more would not be visible in the figure
SHORTEST = 450  # fewer would make the marks of sinks coarse


def comparison_figure(pair: Comparison, tokens: Sequence[int], style: OverlayStyle) -> Figure:
    """The two maps on one scale, and VAR minus baseline on a symmetric one; sinks marked.

    Args:
        pair: the comparison; its first image is drawn.
        tokens: which tokens; several are averaged.
        style: colours of the two maps; sinks are set here.

    Raises:
        ValueError: one of the answers lacks a token.
    """
    image = under_map(_sized(pair.baseline.images[0].convert("RGB")))
    plain, changed = (patch_map(trace, list(tokens)) for trace in (pair.baseline, pair.var))
    scale = scale_of([plain, changed], style)
    style = dataclasses.replace(style, sinks=sink_cells(pair.baseline))
    idle = not (pair.var.var or {}).get("changed")
    values = difference_of(plain.values, changed.values, idle=idle)
    moved = dataclasses.replace(plain, values=values, signed=True)
    signed = scale_of(moved, style)

    wide = 4.0
    tall = min(max(wide * len(image) / image.shape[1], 0.8), 8.0)
    drawn = Figure(figsize=(3 * wide + 1.0, tall + 2.3), layout="constrained")
    asked = textwrap.shorten(printable(pair.baseline.prompt), 160, placeholder=" …")
    drawn.suptitle(asked, parse_math=False, family=fonts(), fontsize=10, color="0.35")
    axes = drawn.subplots(1, 3)
    panels = [
        (f"Baseline: {_words(pair, 0, tokens)}", overlay(image, plain, style, scale)),
        (f"VAR: {_words(pair, 1, tokens)}", overlay(image, changed, style, scale)),
        ("VAR − baseline", overlay(image, moved, style, signed)),
    ]
    for axis, (title, pixels) in zip(axes, panels, strict=True):
        axis.imshow(pixels, interpolation="none")
        axis.set_axis_off()
        axis.set_title(title, parse_math=False, family=fonts(), fontsize=12)
    _bar(drawn, style.colormap, axes[:2], scale.ticks)
    _bar(drawn, DIVERGING, axes[2:], ((0.5, "no difference"),) if signed.empty else signed.ticks)
    caption(drawn, _caption_lines(pair, tokens, plain, style, (scale, signed)), characters=150)
    return drawn


def _sized(image: Image.Image) -> Image.Image:
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    times = -(-SHORTEST // max(image.size))
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def _words(pair: Comparison, side: int, tokens: Sequence[int]) -> str:
    trace = (pair.baseline, pair.var)[side]
    return visible("".join(trace.tokens[t].text for t in tokens))


def _bar(drawn: Figure, colormap: str, axes: Any, ticks: Ticks) -> None:
    bar = drawn.colorbar(
        ScalarMappable(Normalize(0, 1), colormap),
        ax=axes,
        location="bottom",
        fraction=0.05,
        pad=0.03,
        aspect=40 if len(axes) > 1 else 20,
    )
    bar.set_ticks([position for position, _ in ticks], labels=[text for _, text in ticks])
    bar.set_label("attention mass" + ("" if len(axes) > 1 else ", VAR − baseline"), fontsize=9)


def _caption_lines(
    pair: Comparison,
    tokens: Sequence[int],
    shown: PatchMap,
    style: OverlayStyle,
    scales: tuple[Scaling, Scaling],
) -> list[str]:
    numbers = [token_numbers(trace) for trace in (pair.baseline, pair.var)]
    shares = [
        f"{name} {np.mean([n.image[t] for t in tokens]):.1%} of the row on the image, sinks hold "
        f"{np.mean([n.sinks[t] for t in tokens]):.1%} of that"
        for name, n in zip(("baseline", "VAR"), numbers, strict=True)
    ]
    first_difference = pair.first_difference
    base = pair.baseline
    report = pair.var.var or {}
    return [
        shown.label,
        "; ".join(shares),
        "" if report.get("changed") else str(report.get("reason") or "VAR changed nothing."),
        f"The answers part at token {first_difference}: these rows belong to different texts."
        if first_difference is not None and max(tokens) > first_difference
        else "",
        f"{scales[0].words}; the same scale for both maps. Difference: {scales[1].words}. "
        f"{sink_words(base, style.sinks)}",
        "; ".join(pair.var.applied),
        f"{base.model.id} ({base.model.revision}), prompt: {base.prompt}",
    ]
