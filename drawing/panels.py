"""The panels of a view: each side's map over its photo, and their difference, as pixels and words.

Figures and animations are made of the same panels, which show what the page's figures show.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from sinkscope.attention_processor import PatchMap
from sinkscope.drawing.overlay import (
    DIVERGING,
    Pixels,
    bar_colours,
    mark_cells,
    overlay,
    ring_cells,
    scale_of,
    under_map,
)
from sinkscope.drawing.scale import Scaling, Ticks, difference_of, percent
from sinkscope.drawing.view import (
    Side,
    View,
    map_of,
    maps_of,
    rare_of,
    same_grids,
    sinks_of,
    treated_of,
)
from sinkscope.methods.explain import method_of
from sinkscope.methods.precomputed import PrecomputedMaps


@dataclass(frozen=True)
class Panel:
    """One picture with its texts.

    Attributes:
        label: of its side, or "Difference".
        numbers: the raw shares, in words.
        pixels: uint8 (height, width, 3).
        note: why there is no map on it; empty if there is one.
        colormap: name of the colour map of its bar.
        ticks: (position, text) on the bar.
        words: what the colours mean.
        scale: from values to colours; None where there is no map.
        normalisation: of the map's values, in words.
    """

    label: str
    numbers: str
    pixels: Pixels
    note: str
    colormap: str
    ticks: Ticks
    words: str
    scale: Scaling | None = None
    normalisation: str = ""


@dataclass(frozen=True)
class _PanelSpec:
    """The plan of one panel: side, layers, and marks."""

    label: str
    side: Side
    view: View
    photo: Pixels
    sinks: tuple[int, ...]
    rare: tuple[int, ...] = ()
    treated: tuple[int, ...] = ()


class Painter:
    """Paints the panels of some sides for any selection of tokens; photos are prepared once."""

    def __init__(
        self, sides: Sequence[Side], view: View, width: int, *, idle: bool = False
    ) -> None:
        """
        Args:
            sides: one answer, or two.
            view: what is shown.
            width: of a panel, in pixels.
            idle: the difference between the two sides' settings had no effect, so the difference of
                their maps is rounding, which must not look like an effect.

        Raises:
            ValueError: a layer, head or image that a run does not hold, or a difference of two
                sides that have none.
        """
        self.sides, self.view, self._idle = tuple(sides), view, idle
        for side in self.sides:
            if not 0 <= view.image < len(side.trace.images):
                raise ValueError(
                    f"image is {view.image}; {side.label} has {len(side.trace.images)}, from 0."
                )
        if view.difference:
            self._check_difference()
        if view.separate_layers and len(self.sides) > 1:
            raise ValueError("Layers one by one are drawn of one side only.")
        self._looks = [look for side in self.sides for look in _looks(side, view, width)]
        for look in self._looks:
            if look.side.rows.tokens and not isinstance(view.method, PrecomputedMaps):
                map_of(look.side, [0], look.view)  # refuses what the run does not contain
        self._whole = self._scales_of_all() if view.whole_answer else None

    @property
    def heights(self) -> list[int]:
        """Of each panel, in pixels."""
        heights = [len(look.photo) for look in self._looks]
        return [*heights, heights[0]] if self.view.difference else heights

    def panels(
        self, tokens: Sequence[int], second_tokens: Sequence[int] | None = None
    ) -> list[Panel]:
        """The panels for some tokens (their mean); a side that has already ended shows only its
        photo.

        Args:
            tokens: from 0.
            second_tokens: tokens of the second side, where it shows others.
        """
        asked = [
            second_tokens if second_tokens is not None and look.side is self.sides[-1] else tokens
            for look in self._looks
        ]
        token_lists = [
            [t for t in mine if t < len(look.side.rows.tokens)]
            for look, mine in zip(self._looks, asked, strict=True)
        ]
        both = [
            maps_of(look.side, mine, look.view) if mine else (None, None)
            for look, mine in zip(self._looks, token_lists, strict=True)
        ]
        maps = [shown for shown, _ in both]
        scales = self._whole or self._scales(maps)
        panels = [
            self._panel(look, mine, patches, scale, min(every))
            for look, mine, patches, scale, every in zip(
                self._looks, token_lists, maps, scales, asked, strict=True
            )
        ]
        if self.view.difference:
            panels.append(self._difference(token_lists, [plain for _, plain in both]))
        return panels

    def _check_difference(self) -> None:
        if len(self.sides) != 2:
            raise ValueError("difference is on; allowed: for two sides only.")
        if not same_grids(*(side.trace for side in self.sides)):
            raise ValueError(
                "difference is on, but the two images were cut into different patches, so there "
                "is none; switch difference off."
            )

    def _scales(self, maps: Sequence[PatchMap | None]) -> list[Scaling | None]:
        return self._scales_for([[] if m is None else [m] for m in maps])

    def _scales_of_all(self) -> list[Scaling | None]:
        """Scales over every token's map."""
        return self._scales_for(
            [
                [map_of(k.side, [t], k.view) for t in range(len(k.side.rows.tokens))]
                for k in self._looks
            ]
        )

    def _scales_for(self, pools: Sequence[list[PatchMap]]) -> list[Scaling | None]:
        if self.view.same_scale:
            pools = [[m for pool in pools for m in pool]] * len(pools)
        return [scale_of(pool, self.view.style()) if pool else None for pool in pools]

    def _panel(
        self,
        look: _PanelSpec,
        tokens: list[int],
        patches: PatchMap | None,
        scale: Scaling | None,
        first: int,
    ) -> Panel:
        colormap, part = self.view.colormap, self.view.part
        if patches is None or scale is None:
            note = f"This {part} ended before token {first}."
            return Panel(look.label, "", look.photo, note, colormap, (), "")
        image, held = look.side.shares(tokens, look.view)
        numbers = f"image {percent(image)}"
        if look.side.rows.sinks:
            numbers += f" · sinks hold {percent(held)} of it"
        if self.view.overlay != "off":
            style = dataclasses.replace(self.view.style(), sinks=look.sinks, rare=look.rare)
            pixels = overlay(look.photo, patches, style, scale)
        else:
            pixels = mark_cells(look.photo, patches, look.sinks, look.rare)
        pixels = ring_cells(pixels, patches, look.treated)
        words = f"{method_of(self.view.method).words(look.side.trace)} · {scale.words}"
        if self.view.whole_answer:
            words += f"; range of the whole {part}"
        if self.view.same_scale and len(self._looks) > 1:
            words += (
                "; same scale on all" if self.view.separate_layers else "; same scale on both sides"
            )
        done, bar = patches.normalisation, bar_colours(scale, colormap)
        return Panel(look.label, numbers, pixels, "", bar, scale.ticks, words, scale, done)

    def _difference(self, token_lists: list[list[int]], maps: Sequence[PatchMap | None]) -> Panel:
        left, right = maps
        photo = self._looks[0].photo
        if left is None or right is None:
            note = "One of the answers has no such token."
            return Panel("Difference", "", photo, note, DIVERGING, (), "")
        values = difference_of(left.values, right.values, idle=self._idle)
        signed = dataclasses.replace(left, values=values, signed=True)
        scale = scale_of(signed, self.view.style())
        pixels, sinks, rare = photo, self._looks[0].sinks, self._looks[0].rare
        if self.view.overlay != "off":
            style = dataclasses.replace(self.view.style(), sinks=sinks, rare=rare)
            pixels = overlay(photo, signed, style, scale)
        else:
            pixels = mark_cells(photo, signed, sinks, rare)
        shares = [
            side.shares(mine, self.view)[0]
            for side, mine in zip(self.sides, token_lists, strict=True)
        ]
        gain = shares[1] - shares[0]
        sign = "" if gain == 0 else "+" if gain > 0 else "−"
        words = scale.words
        if not scale.empty:
            words = f"{self.sides[1].label} − {self.sides[0].label}, {left.unit} · {scale.words}"
        numbers = f"image {sign}{percent(abs(gain))} of the row"
        return Panel("Difference", numbers, pixels, "", DIVERGING, scale.ticks, words, scale)


def _looks(side: Side, view: View, width: int) -> list[_PanelSpec]:
    photo = panel_photo(side.trace.images[view.image], width, view)
    specs = []
    for layer in view.separate_layers or (None,):
        layer_view = (
            view
            if layer is None
            else dataclasses.replace(view, layers=(layer,), separate_layers=())
        )
        words = (side.label, "" if layer is None else f"layer {layer}")
        sinks = sinks_of(side.rows, layer_view) if view.sinks else ()
        rare = rare_of(side.rows, layer_view) if view.sinks else ()
        treated = treated_of(side.trace, layer_view) if view.sinks else ()
        label = ", ".join(word for word in words if word)
        specs.append(_PanelSpec(label, side, layer_view, photo, sinks, rare, treated))
    return specs


def panel_photo(image: Image.Image, width: int, view: View) -> Pixels:
    """The photo under the map: uint8 (height, width, 3)."""
    size = width, max(1, round(width * image.height / image.width))
    # Enlarged without smoothing, to show the pixels that the model saw.
    way = Image.Resampling.LANCZOS if image.width >= width else Image.Resampling.NEAREST
    if image.width < width and image.width * 3 > width:
        way = Image.Resampling.BICUBIC
    return under_map(image.convert("RGB").resize(size, way), view.photo)
