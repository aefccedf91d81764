"""What of a run is drawn and how, in the terms of the page, with the page's own scales.

The inspector computes the same in the browser (`web/static/inspector/30_scale.js`); both say in
words what a scale does, and a picture that was saved says it as the screen did.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from attention_processor import PatchMap, Rows, image_share, patch_map, relative_map, sink_share
from capture.trace import MEAN_HEAD, GenerationTrace
from config import Reduce
from drawing.overlay import Colormap, OverlayStyle, Scaling, Values, refuse

ViewScale = Literal["clip", "linear", "log", "rank", "nosink", "relative"]
Part = Literal["answer", "prompt"]
Overlay = Literal["value", "flat", "off"]
Photo = Literal["dim", "full", "none"]


@dataclass(frozen=True)
class View:
    """The choices of the page's view bar.

    Attributes:
        part: whose rows: the answer's tokens, or the prompt's own.
        layers, heads: indices in the model; None is all that were captured.
        each: these layers one by one, a map for each, instead of `layers`; of one side only.
        reduce: how layers and heads become one map.
        image: which image of the prompt, from 0.
        scale: `clip` (linear, the strongest patches clipped), `linear`, `log` (three decades),
            `rank`, `nosink` (linear, sinks set to zero before layers are combined) or `relative`
            (divided by the map of a generic prompt, strongest patches clipped).
        whole_answer: the scale is that of all tokens of the answer, not of the one drawn.
        same_scale: several sides share one scale.
        difference: of two sides, draw the second minus the first too.
        colormap, opacity, smooth: of the map.
        overlay: opacity by `value`, `flat`, or `off`.
        photo: `dim`, `full` or `none`.
        sinks: mark them.
    """

    part: Part = "answer"
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    each: tuple[int, ...] = ()
    reduce: Reduce = "mean"
    image: int = 0
    scale: ViewScale = "clip"
    whole_answer: bool = False
    same_scale: bool = True
    difference: bool = False
    colormap: Colormap = "inferno"
    opacity: float = 0.8
    overlay: Overlay = "value"
    photo: Photo = "dim"
    smooth: bool = False
    sinks: bool = True

    def __post_init__(self) -> None:
        for setting, allowed in (
            ("part", get_args(Part)),
            ("scale", get_args(ViewScale)),
            ("overlay", get_args(Overlay)),
            ("photo", get_args(Photo)),
        ):
            if getattr(self, setting) not in allowed:
                raise refuse(setting, getattr(self, setting), ", ".join(allowed))
        self.style()  # which checks the rest

    def style(self) -> OverlayStyle:
        """The same for `drawing.overlay`, without a scale or sinks."""
        return OverlayStyle(
            self.colormap,
            self.opacity,
            alpha_by_value=self.overlay != "flat",
            fade="quick",
            smoothing=self.smooth,
        )


@dataclass(frozen=True)
class ViewScaling:
    """A scale with what is said about it.

    Attributes:
        scaling: from values to colours; None where no patch has any attention.
        ticks: (place from 0 to 1, text) on the colour bar.
        words: what the scale does.
    """

    scaling: Scaling | None
    ticks: tuple[tuple[float, str], ...]
    words: str


@dataclass(frozen=True)
class Side:
    """One answer to draw: a run, or one of those that stand side by side.

    Attributes:
        label: what to call it.
        trace: the run.
        rows: what is drawn of it: the run itself, or the rows of its prompt.
        mass: float32 (T, L, H), attention on all images.
        held: float32 (T, L, H), the part of it that sinks hold.
    """

    label: str
    trace: GenerationTrace
    rows: Rows
    mass: npt.NDArray[np.float32]
    held: npt.NDArray[np.float32]

    def shares(self, tokens: Sequence[int], view: View) -> tuple[float, float]:
        """Attention mass on all images, and the part of it that sinks hold: of the selection.

        From the true masses of whole rows, whatever the scale of the map.
        """
        rows = [list(tokens)]
        for captured, wanted in (
            (self.trace.layers, view.layers),
            (self.trace.heads, view.heads),
        ):
            rows.append([captured.index(n) for n in (captured if wanted is None else wanted)])
        cut = np.ix_(*rows)
        image = float(self.mass[cut].mean())
        held = float((self.mass[cut] * self.held[cut]).mean())
        return image, held / image if image > 0 else 0.0


def make_side(label: str, trace: GenerationTrace, part: Part = "answer") -> Side:
    """A side, with its shares computed once for all of its tokens.

    Raises:
        ValueError: the rows of the prompt are asked for, and the run has none.
    """
    rows = trace if part == "answer" else trace.prompt_rows
    if rows is None:
        raise ValueError("The run has no rows of its prompt's own tokens.")
    return Side(label, trace, rows, image_share(rows).numpy(), sink_share(rows).numpy())


def map_of(side: Side, tokens: Sequence[int], view: View) -> PatchMap:
    """The map that the view shows of some tokens (their mean).

    Raises:
        ValueError: as `attention_processor.patch_map` and `relative_map`.
    """
    chosen = (view.layers, view.heads, view.reduce)
    if view.scale == "relative":
        asked = view.part == "prompt"
        return relative_map(side.trace, list(tokens), *chosen, image=view.image, of_prompt=asked)
    return patch_map(
        side.rows, list(tokens), *chosen, image=view.image, exclude_sinks=view.scale == "nosink"
    )


CLIP_LEAVES = 0.05  # of a map's sum, what the patches that are not clipped must hold


def clipped(patches: float) -> int:
    """How many of the largest patches of a map are clipped: 1 %, and at least three.

    Sinks come in ones and twos, and on a small grid a bare 99th percentile would be one of them.
    """
    return int(min(max(3, math.ceil(patches * 0.01)), max(0, math.floor(patches / 4))))


def view_scaling(kind: ViewScale, maps: Sequence[npt.NDArray[np.float32]]) -> ViewScaling:
    """The scale of one map or of a pool of maps."""
    pool: Values = np.sort(np.concatenate([m.ravel() for m in maps]).astype(np.float32))
    high = float(pool[-1]) if pool.size else 0.0
    if not high > 0:
        return ViewScaling(None, ((0.0, "0"),), "no attention here")
    if kind in ("clip", "relative"):
        return _clip(kind, pool, len(maps))
    if kind == "log":
        low = high / 1000
        places = tuple((k / 3, percent(low * 1000 ** (k / 3))) for k in range(4))
        words = "logarithmic, three decades up to the maximum"
        return ViewScaling(Scaling("log", low, high, pool), places, words)
    if kind == "rank":
        middle = percent(float(pool[len(pool) // 2]))
        ticks = ((0.0, "lowest"), (0.5, f"median {middle}"), (1.0, "highest"))
        words = "rank: order only, sizes are not shown"
        return ViewScaling(Scaling("rank", 0, high, pool), ticks, words)
    words = (
        "linear, sinks set to zero before layers are combined"
        if kind == "nosink"
        else "linear to the maximum"
    )
    return ViewScaling(Scaling("linear", 0, high, pool), _linear_ticks(high, percent), words)


def _clip(kind: ViewScale, pool: Values, maps: int) -> ViewScaling:
    cut = clipped(len(pool) / maps) * maps
    # Where the strongest hold nearly all, they are the map: clipped, 50 % and 1 % would look alike.
    below = np.cumsum(pool, dtype=np.float64)
    while cut and below[len(pool) - 1 - cut] < CLIP_LEAVES * below[-1]:
        cut -= 1
    top = float(pool[len(pool) - 1 - cut])
    over = int((pool > np.float32(top)).sum())
    said = times if kind == "relative" else percent
    ticks = _linear_ticks(top, said)
    if over:
        ticks = (*ticks[:-1], (1.0, f"≥ {ticks[-1][1]}"))
        place = 100 * (len(pool) - over) / len(pool)
        words = f"linear to the {place:.1f}th percentile; {_strongest(over)} above"
    else:
        words = "linear, nothing clipped"
    words = words if kind == "relative" else f"percentile clip: {words}"
    return ViewScaling(Scaling("linear", 0, top, pool), ticks, words)


def _strongest(count: int) -> str:
    return f"the {count} strongest patches lie" if count > 1 else "the strongest patch lies"


def _linear_ticks(top: float, said: object) -> tuple[tuple[float, str], ...]:
    assert callable(said)
    return tuple((k / 4, said(k / 4 * top)) for k in range(5))


def difference_top(values: npt.NDArray[np.float32]) -> float:
    """End of the symmetric scale of a difference, clipped like a map; 0 where nothing differs."""
    sizes = np.sort(np.abs(values).ravel())
    if not sizes.size:
        return 0.0
    top = float(sizes[len(sizes) - 1 - clipped(len(sizes))])
    return top if top > 0 else float(sizes[-1])


def percent(share: float) -> str:
    """0.0123 -> "1.23 %": three digits that matter, so that a small share is never shown as 0."""
    value = 100 * share
    size = abs(value)
    if size == 0:
        return "0 %"
    if size >= 9.95:
        return f"{value:.1f} %"
    if size >= 0.995:
        return f"{value:.2f} %"
    return f"{value:.2g} %" if size >= 0.00095 else f"{value:.0e} %".replace("e-0", "e-")


def times(value: float) -> str:
    """2.46 -> "2.5 ×"."""
    if value >= 9.95:
        return f"{value:.0f} ×"
    if value >= 0.995:
        return f"{value:.1f} ×"
    return f"{value:.1g} ×" if value else "0 ×"


def same_images(a: GenerationTrace, b: GenerationTrace) -> bool:
    """Whether two runs are of the same pictures, pixel by pixel."""
    return len(a.images) == len(b.images) and all(
        x.size == y.size and x.convert("RGB").tobytes() == y.convert("RGB").tobytes()
        for x, y in zip(a.images, b.images, strict=True)
    )


def same_grids(a: GenerationTrace, b: GenerationTrace) -> bool:
    """Whether two runs' images were cut into the same patches."""
    return a.layout.patches == b.layout.patches


def sinks_of(rows: Rows, view: View) -> tuple[int, ...]:
    """Cells of the view's image that are a sink in at least one of its layers."""
    layers = set(rows.layers if view.layers is None else view.layers)
    grid = rows.layout.grids[view.image]
    found = {p for sinks in rows.sinks if sinks.layer in layers for p in sinks.positions}
    inside = (p - grid.start for p in found if grid.start <= p < grid.stop)
    return tuple(sorted({k % (grid.rows * grid.columns) for k in inside}))  # frames share a grid


def selection_words(trace: GenerationTrace, view: View) -> str:
    """Which layers and heads, and how combined: "mean over all 6 layers and head 3"."""
    layers = _spelt("layer", trace.layers, view.layers)
    if view.each:
        layers = f"layers {', '.join(map(str, view.each))} one by one", True
    heads = _spelt("head", trace.heads, view.heads)
    if layers[1] and heads[1]:
        return f"{layers[0]}, {heads[0]}"
    over = {"mean": "mean", "max": "maximum", "min": "minimum"}[view.reduce]
    return f"{over} over {layers[0]} and {heads[0]}"


def _spelt(
    word: str, captured: tuple[int, ...], wanted: tuple[int, ...] | None
) -> tuple[str, bool]:
    chosen = captured if wanted is None else wanted
    if chosen == (MEAN_HEAD,):
        return "the mean of the heads", True
    if len(chosen) == 1:
        return f"{word} {chosen[0]}", True
    if chosen == captured:
        return f"all {len(chosen)} {word}s", False
    runs: list[list[int]] = []
    for index in sorted(chosen):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    spans = ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs)
    return f"{word}s {spans}", False
