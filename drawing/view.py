"""Which part of a run is drawn and how, in the page's terms: the view, its sides, their maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from sinkscope.attention_processor import (
    PatchMap,
    Rows,
    for_heads,
    image_share,
    map_label,
    rare_sink_cells,
    sink_cells,
    sink_share,
    slots_of,
)
from sinkscope.capture.trace import MEAN_HEAD, GenerationTrace
from sinkscope.config import Reduce
from sinkscope.drawing.overlay import Colormap, OverlayStyle, Photo, refuse
from sinkscope.drawing.scale import Scale
from sinkscope.methods.base import Chosen, Method, Target, TokenSource
from sinkscope.methods.explain import explain, method_of
from sinkscope.methods.head_list import PickedHeads
from sinkscope.methods.precomputed import PrecomputedMaps
from sinkscope.methods.together import SlotChoice
from sinkscope.setting.heads import Heads
from sinkscope.utils import index_ranges

Overlay = Literal["value", "flat", "off"]


@dataclass(frozen=True)
class View:
    """The choices of the page's view bar.

    Attributes:
        part: rows of the answer's tokens, or of the prompt's own.
        layers, heads: indices in the model; None is all that were captured.
        picked: single heads, (layer, head) of each, in the place of `layers` and `heads`.
        separate_layers: draw a map for each of these layers, instead of one over `layers`; of one
            side only.
        reduce: how layers and heads become one map.
        image: which image of the prompt, from 0.
        method: which explanation, by name (`methods.explain.METHODS`) or your own method.
        scale: `percentile`, `linear`, `log` or `rank` (`drawing.scale.scaling`).
        whole_answer: the scale covers all tokens of the answer, not only the one drawn.
        same_scale: several sides share one scale.
        difference: with two sides, also draw the second minus the first.
        colormap, opacity, smooth: of the map.
        overlay: opacity by `value`, `flat`, or `off`.
        photo: `dim`, `full` or `none`.
        sinks: mark them.
    """

    part: TokenSource = "answer"
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    picked: PickedHeads | None = None
    separate_layers: tuple[int, ...] = ()
    reduce: Reduce = "mean"
    image: int = 0
    method: str | Method = "attention"
    scale: Scale = "percentile"
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
            ("part", get_args(TokenSource)),
            ("scale", get_args(Scale)),
            ("overlay", get_args(Overlay)),
            ("photo", get_args(Photo)),
        ):
            if getattr(self, setting) not in allowed:
                raise refuse(setting, getattr(self, setting), ", ".join(allowed))
        if self.picked is not None and (self.separate_layers or self.layers or self.heads):
            raise ValueError(
                "Single heads are chosen; allowed: no layers, heads or layers one by one with them."
            )
        method_of(self.method)
        self.style()  # which checks the rest

    @property
    def shown_layers(self) -> tuple[int, ...] | None:
        """The layers that the map is made of; None is all that were captured."""
        return self.layers if self.picked is None else self.picked.layers

    @property
    def pairs(self) -> Heads | None:
        """The single heads as maps take them."""
        return None if self.picked is None else self.picked.pairs

    def style(self) -> OverlayStyle:
        """The same for `drawing.overlay`, without sinks."""
        return OverlayStyle(
            self.colormap,
            self.opacity,
            self.scale,
            alpha_by_value=self.overlay != "flat",
            smoothing=self.smooth,
        )


def method_and_scale(method: str, scale: str) -> tuple[str, Scale]:
    """Both by their names, or by the old names from when some scales were methods.

    `View` checks what this lets through.
    """
    old = {"relative": ("relative", "percentile"), "nosink": ("without_sinks", "linear")}
    if isinstance(scale, str) and method in ("", "attention"):
        method, scale = old.get(scale, (method or "attention", scale))
    # Checked by `View`.
    return method, "percentile" if scale == "clip" else scale  # type: ignore[return-value]


@dataclass(frozen=True)
class Side:
    """One answer to draw: a run, or one of two side by side.

    Attributes:
        label: its name.
        trace: the run.
        rows: the run itself, or the rows of its prompt.
        mass: float32 (T, L, H), attention on all images.
        held: float32 (T, L, H), the part of it that sinks hold.
    """

    label: str
    trace: GenerationTrace
    rows: Rows
    mass: npt.NDArray[np.float32]
    held: npt.NDArray[np.float32]

    def shares(self, tokens: Sequence[int], view: View) -> tuple[float, float]:
        """Attention mass on all images, and the part of it that sinks hold, for the selection.

        From the true masses of whole rows, whatever the scale of the map.
        """
        mass, part = (self._chosen(one[list(tokens)], view) for one in (self.mass, self.held))
        image, held = float(mass.mean()), float((mass * part).mean())
        return image, held / image if image > 0 else 0.0

    def _chosen(self, part: npt.NDArray[np.float32], view: View) -> npt.NDArray[np.float32]:
        layers, heads = self.trace.layers, self.trace.heads
        if view.picked is not None:
            chosen: npt.NDArray[np.float32] = for_heads(
                part[..., None], layers, heads, view.picked.pairs
            )
            return chosen
        slots = [slots_of("layer", layers, view.layers), slots_of("head", heads, view.heads)]
        return part[:, slots[0]][:, :, slots[1]]


def make_side(label: str, trace: GenerationTrace, part: TokenSource = "answer") -> Side:
    """A side, with its shares computed once for all of its tokens.

    Raises:
        ValueError: the rows of the prompt are requested, and the run has none.
    """
    rows = trace if part == "answer" else trace.prompt_rows
    if rows is None:
        raise ValueError("The run has no rows of its prompt's own tokens.")
    return Side(label, trace, rows, image_share(rows).numpy(), sink_share(rows).numpy())


def maps_of(side: Side, tokens: Sequence[int], view: View) -> tuple[PatchMap, PatchMap]:
    """The view's map of some tokens (their mean), and the map for differences.

    These are the same map, except that for a ratio the second is only the numerator.

    Raises:
        ValueError: as `methods.explain.explain_map`.
    """
    stack = explain(side.trace, Target(tuple(tokens), view.part), view.method)
    chosen: Chosen = view.layers, view.heads, view.pairs
    if isinstance(view.method, PrecomputedMaps):  # as the page, which chooses of what there is
        chosen = SlotChoice(view.layers, view.heads, pairs=view.pairs).of(stack)
    layers, heads, pairs = chosen
    label = map_label(side.rows, tokens, layers, heads, view.reduce, pairs)
    how: dict[str, Any] = {"image": view.image, "label": label, "pairs": pairs}
    shown = stack.map(layers, heads, view.reduce, **how)
    if stack.ratio is None:
        return shown, shown
    return shown, stack.ratio[0].map(layers, heads, view.reduce, **how)


def map_of(side: Side, tokens: Sequence[int], view: View) -> PatchMap:
    """The map that the view shows of some tokens (their mean); errors as `maps_of`."""
    return maps_of(side, tokens, view)[0]


def same_images(a: GenerationTrace, b: GenerationTrace) -> bool:
    """Whether two runs have the same images, pixel by pixel."""
    return len(a.images) == len(b.images) and all(
        x.size == y.size and x.convert("RGB").tobytes() == y.convert("RGB").tobytes()
        for x, y in zip(a.images, b.images, strict=True)
    )


def same_grids(a: GenerationTrace, b: GenerationTrace) -> bool:
    """Whether two runs' images were cut into the same patches."""
    return a.layout.patches == b.layout.patches


def sinks_of(rows: Rows, view: View) -> tuple[int, ...]:
    """Cells of the view's image that are a sink in at least one of its layers."""
    return sink_cells(rows, view.shown_layers, view.image)


def rare_of(rows: Rows, view: View) -> tuple[int, ...]:
    """Those of `sinks_of` that are a sink in fewer than half of the view's layers."""
    return rare_sink_cells(rows, view.shown_layers, view.image)


def treated_of(trace: GenerationTrace, view: View) -> tuple[int, ...]:
    """Cells of the view's image that a control treated instead of the sinks, in any of its layers;
    none for a run without a control."""
    report = trace.var or {}
    if (report.get("settings") or {}).get("control", "none") == "none":
        return ()
    chosen = view.shown_layers
    layers = set(trace.layers if chosen is None else chosen)
    acted = (one for one in report.get("layers") or () if one["layer"] in layers)
    positions = {p for one in acted for p in one.get("positions", ())}
    grid = trace.layout.grids[view.image]
    return grid.cells_of(k for k, p in enumerate(grid.positions) if p in positions)


def selection_words(trace: GenerationTrace, view: View) -> str:
    """Which layers and heads, and how combined: "mean over all 6 layers and head 3"."""
    over = {"mean": "mean", "max": "maximum", "min": "minimum"}[view.reduce]
    if view.picked is not None:
        return f"{over} over {view.picked.words}"
    layers = _spelt("layer", trace.layers, view.layers)
    if view.separate_layers:
        layers = f"layers {', '.join(map(str, view.separate_layers))} one by one", True
    heads = _spelt("head", trace.heads, view.heads)
    if layers[1] and heads[1]:
        return f"{layers[0]}, {heads[0]}"
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
    return f"{word}s {index_ranges(chosen, '–')}", False
