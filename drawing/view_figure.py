"""The page's view as a figure for print: panels, colour bars, and a caption with settings."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sinkscope.capture.decoding import shown_settings
from sinkscope.capture.trace import GenerationTrace, first_difference
from sinkscope.drawing.panels import Painter, Panel
from sinkscope.drawing.text import fonts, missing_note, printable, set_fonts, visible
from sinkscope.drawing.view import Side, View, make_side, selection_words, sinks_of
from sinkscope.methods.base import TokenSource
from sinkscope.methods.explain import method_of
from sinkscope.methods.precomputed import PrecomputedMaps

PANEL_INCHES = 3.6
PANEL_PIXELS = 1080  # 300 per printed inch
GAP, LINE = 0.2, 0.13  # inches: gap between panels, and height of a line of small text
ROW = (
    "The row drawn is that of the forward pass that produced the token. Attention says where a "
    "layer read, not whether the answer depends on it."
)
ROW_OF_PROMPT = (
    "The row drawn is that at the prompt's own token: what it gathered when it was read. Attention "
    "says where a layer read, not what it is for."
)


def view_figure(
    traces: GenerationTrace | Mapping[str, GenerationTrace],
    tokens: int | Sequence[int],
    view: View | None = None,
    *,
    second_tokens: Sequence[int] | None = None,
    idle: bool = False,
) -> Figure:
    """One answer, or two side by side, for some tokens, with everything needed to read it.

    Args:
        traces: a run, or up to two by their labels, left to right.
        tokens: index from 0, or several, whose maps are averaged.
        view: which part and how; by default `View()`.
        second_tokens: tokens of the second side, where it shows others than the first.
        idle: the second side's intervention changed nothing.

    Returns:
        A figure for `visualization.save`: photos at 300 pixels an inch, text as text. Its caption
        names selection, shares, scale, normalisation, VAR's settings, generation settings, model,
        revision and prompt.

    Raises:
        ValueError: no side has such a token, or a layer, head or image that a run does not hold.
    """
    view = view or View()
    chosen = [tokens] if isinstance(tokens, int) else sorted(tokens)
    sides = sides_of(traces, view.part)
    longest = max(len(side.rows.tokens) for side in sides)
    if not chosen or chosen[0] < 0 or chosen[0] >= longest:
        raise ValueError(f"token is {tokens}; the {view.part} has {longest}, from 0.")
    if second_tokens is not None:
        check_second_tokens(sides, second_tokens)
    panels = Painter(sides, view, PANEL_PIXELS, idle=idle).panels(chosen, second_tokens)
    done = next(panel.normalisation for panel in panels if panel.scale is not None)
    lines, title = (
        [
            *_caption(sides, view, done),
            *(_different_tokens(sides, chosen) if second_tokens is None else ()),
        ],
        _title(sides, chosen, view.part, second_tokens),
    )
    lines += missing_note(title, *lines, *(panel.label for panel in panels))
    return set_fonts(_laid_out(panels, title, lines))


def _laid_out(panels: Sequence[Panel], title: str, lines: Sequence[str]) -> Figure:
    """All sizes in inches from the top, so that nothing is moved or scaled to fit."""
    across = 2 if len(panels) == 4 else len(panels)
    wide = across * (PANEL_INCHES + GAP) + GAP
    tall = max(PANEL_INCHES * len(panel.pixels) / panel.pixels.shape[1] for panel in panels)
    words = ["\n".join(textwrap.wrap(printable(panel.words), 58)) for panel in panels]
    under = LINE * (2.2 + max(text.count("\n") + 1 for text in words))
    wrapped = [
        part for line in lines for part in textwrap.wrap(printable(line), round(wide * 17))[:6]
    ]
    head, above = 0.15 + LINE * 1.7 * (title.count("\n") + 1), 0.55
    row = above + tall + 0.22 + under
    high = head + row * (len(panels) // across) + LINE * len(wrapped) + GAP
    drawn = Figure(figsize=(wide, high))
    write = partial(drawn.text, parse_math=False, family=fonts(), va="top")
    write(GAP / wide, 1 - 0.15 / high, title, fontsize=12)
    for number, (panel, text) in enumerate(zip(panels, words, strict=True)):
        left = GAP + number % across * (PANEL_INCHES + GAP)
        top = head + number // across * row + above
        panel_height = PANEL_INCHES * len(panel.pixels) / panel.pixels.shape[1]
        place = (
            left / wide,
            1 - (top + panel_height) / high,
            PANEL_INCHES / wide,
            panel_height / high,
        )
        _draw(drawn.add_axes(place), panel)
        if panel.ticks:
            low = 1 - (top + panel_height + 0.2) / high
            _bar(drawn.add_axes((left / wide, low, PANEL_INCHES / wide, 0.1 / high)), panel)
            write(left / wide, low - 1.7 * LINE / high, text, fontsize=7)
    write(GAP / wide, (LINE * len(wrapped) + GAP * 0.7) / high, "\n".join(wrapped), fontsize=7.5)
    return drawn


def sides_of(
    traces: GenerationTrace | Mapping[str, GenerationTrace], part: TokenSource = "answer"
) -> list[Side]:
    """One or two sides, with their shares."""
    if isinstance(traces, GenerationTrace):
        traces = {"": traces}
    if not 1 <= len(traces) <= 2:
        raise ValueError(f"There are {len(traces)} runs to draw; allowed: one or two.")
    return [make_side(label, trace, part) for label, trace in traces.items()]


def check_second_tokens(sides: Sequence[Side], second_tokens: Sequence[int]) -> None:
    """Whether the second side can show these tokens of its own."""
    if len(sides) < 2:
        raise ValueError("second_tokens is given; allowed: of two answers side by side only.")
    count = len(sides[-1].rows.tokens)
    if not second_tokens or min(second_tokens) < 0 or max(second_tokens) >= count:
        raise ValueError(
            f"second_tokens is {list(second_tokens)[:9]}; {sides[-1].label} has {count} tokens, "
            "from 0."
        )


def tokens_words(side: Side, tokens: Sequence[int]) -> str:
    """The tokens of a side as a label: `token 14 "brown"`; numbers count from 0."""
    mine = [t for t in tokens if t < len(side.rows.tokens)]
    text = visible("".join(side.rows.tokens[t].text for t in mine))
    if len(tokens) == 1:
        return f"token {tokens[0]} “{text}”"
    return f"tokens {tokens[0]}–{tokens[-1]} (mean) “{text}”"


def _title(
    sides: Sequence[Side],
    tokens: Sequence[int],
    part: TokenSource,
    second_tokens: Sequence[int] | None = None,
) -> str:
    before = "prompt " if part == "prompt" else ""
    if second_tokens is not None:
        first, second = sides
        pair = ((first, tokens), (second, second_tokens))
        words = [f"{side.label}: {before}{tokens_words(side, mine)}" for side, mine in pair]
    else:
        with_token = [side for side in sides if tokens[0] < len(side.rows.tokens)]
        words = list(dict.fromkeys(before + tokens_words(side, tokens) for side in with_token))
    return "\n".join(textwrap.wrap(" | ".join(words), 90)[:2])


def _draw(axes: Axes, panel: Panel) -> None:
    axes.imshow(panel.pixels, interpolation="none", aspect="auto")
    axes.set_axis_off()
    title = "\n".join(part for part in (_short(printable(panel.label), 44), panel.numbers) if part)
    axes.set_title(title, parse_math=False, family=fonts(), fontsize=9, loc="left")
    if panel.note:
        middle: dict[str, Any] = {"ha": "center", "transform": axes.transAxes, "color": "white"}
        axes.text(0.5, 0.06, panel.note, fontsize=8, bbox={"color": "#0c0f14"}, **middle)


def _bar(axes: Axes, panel: Panel) -> None:
    axes.set_yticks([])
    table = matplotlib.colormaps[panel.colormap](np.linspace(0, 1, 256))
    axes.imshow(table[None], aspect="auto", extent=(0, 1, 0, 1))
    axes.set_xticks([u for u, _ in panel.ticks], labels=[text for _, text in panel.ticks])
    axes.tick_params(axis="x", labelsize=7, length=2)
    for label, (u, _) in zip(axes.get_xticklabels(), panel.ticks, strict=True):
        label.set_horizontalalignment("left" if u == 0 else "right" if u == 1 else "center")


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _caption(sides: Sequence[Side], view: View, normalisation: str) -> Iterator[str]:
    given = view.method if isinstance(view.method, PrecomputedMaps) else None
    if given is not None and not given.has("layer"):
        yield "One map of all layers and heads together."
    else:
        if given is not None and view.picked is not None and not given.has("head"):
            view = dataclasses.replace(view, picked=None, layers=view.picked.layers)
        chosen = selection_words(sides[0].trace, view)
        row = "" if given is not None else ROW if view.part == "answer" else ROW_OF_PROMPT
        yield f"{chosen[0].upper()}{chosen[1:]}. {row}".rstrip()
    marks = [
        "boxed ×: attention sink in at least one of the layers drawn"
        if any(sinks_of(side.rows, part) for part in _views(view))
        else "no attention sink in the layers drawn"
        if side.rows.sinks
        else "no sink dimensions are known, so no sinks are marked"
        for side in sides
    ]
    sinks_text = "; ".join(dict.fromkeys(marks)) if view.sinks else "sinks are not marked"
    method = method_of(view.method)
    source = f" ({method.source})" if method.source else ""
    yield f"Method: {method.label}{source}. Normalisation: {normalisation}; {sinks_text}."
    yield from about_sides(sides, view.image)


def _different_tokens(sides: Sequence[Side], tokens: Sequence[int]) -> Iterator[str]:
    """A sentence if the rows of the two answers belong to different texts."""
    if len(sides) < 2 or sides[0].rows is not sides[0].trace:
        return
    first = first_difference(*(side.trace for side in sides))
    if first is not None and tokens[-1] > first:
        yield f"The answers differ from token {first} on: these rows belong to different texts."


def _views(view: View) -> list[View]:
    return [
        dataclasses.replace(view, layers=(n,), separate_layers=()) for n in view.separate_layers
    ] or [view]


def about_sides(sides: Sequence[Side], image: int = 0) -> Iterator[str]:
    """How the sides were made: prompt, interventions, model, image, settings; common parts once."""
    summaries = [_side_summary(side.trace, image) for side in sides]
    for facts in zip(*summaries, strict=True):
        if len(set(facts)) == 1:
            yield facts[0]
            continue
        for side, fact in zip(sides, facts, strict=True):
            yield f"{side.label}: {fact}"


def _side_summary(trace: GenerationTrace, image: int) -> tuple[str, ...]:
    report = trace.var or {}
    var = _settings(report.get("settings") or {})
    nothing = report.get("reason") or "VAR changed nothing."
    acted = "" if report.get("changed") is not False else f" {nothing}"
    model, grids = trace.model, trace.layout.grids
    grid = grids[min(image, len(grids) - 1)]
    which = "Image" if len(grids) == 1 else f"Image {image} (of {len(grids)})"
    return (
        f"Prompt “{' '.join(trace.prompt.split())}”",
        f"With VAR: {var}.{acted}" if var else "; ".join(trace.applied) or "The plain model.",
        f"Model {model.id} @ {model.revision}, {model.layers} layers × {model.heads} heads, "
        f"{model.dtype} on {model.device}",
        f"{which} {grid.original[1]} × {grid.original[0]} px, seen as {grid.columns} × {grid.rows} "
        f"patches. Generation: {_settings(shown_settings(trace))}.",
    )


def _settings(settings: Mapping[str, Any]) -> str:
    decoding = (
        (name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else value)
        for name, value in settings.items()
        if value is not None and name not in ("layers", "heads")
    )
    return ", ".join(f"{name} {value}" for name, value in decoding)
