"""A patch map over its image, as pixels: no model and no trace.

It takes values on a grid (`PatchMap`) and the image they lie on, and never changes either. A cell
is drawn exactly where `ImageGrid.boxes` says it is. `Scaling` maps values to colours and back, so
that a colour bar shows attention, not colour indices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from sinkscope.attention_processor import PatchMap

Scale = Literal["percentile", "linear", "log", "rank"]
Colormap = Literal["inferno", "magma", "plasma", "viridis", "cividis", "gray", "turbo"]
Fade = Literal["linear", "quick"]
Pixels = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float32]
Edges = npt.NDArray[np.float64]

DIVERGING = "coolwarm"  # of differences, as on the page
_BAND = 256  # pixel rows blended at a time, so that a large photo needs no float copy of itself


@dataclass(frozen=True)
class OverlayStyle:
    """How values become colours over an image.

    Attributes:
        colormap: name of the colour map. All but `turbo` are perceptually uniform.
        opacity: of the strongest cell, from 0 (photo alone) to 1 (colour alone).
        scale: `percentile` clips both ends at `percentile`, so that one huge value (a sink) does
            not black out the rest; `linear` runs from 0 to the maximum; `log` from the smallest
            positive value to the maximum; `rank` spreads the cells evenly by their order.
        percentile: upper clip of the scale `percentile`; the lower one mirrors it (99: 1 to 99).
        limits: fixed (low, high) values for the ends of the colours instead, for pictures that
            share one scale. Not with `rank`.
        alpha_by_value: weak cells are transparent, so that the photo stays visible.
        fade: how opacity follows the place on the scale: `linear`, or `quick`, as on the page,
            min(1, 1.3 place^0.7), which shows middling cells more.
        smoothing: interpolate between the centres of cells. Off by default: the model sees cells.
        sinks: cells to mark with a boxed x, as row-major indices.
    """

    colormap: Colormap = "inferno"
    opacity: float = 0.7
    scale: Scale = "percentile"
    percentile: float = 99.0
    limits: tuple[float, float] | None = None
    alpha_by_value: bool = True
    fade: Fade = "linear"
    smoothing: bool = False
    sinks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        choices = (
            ("colormap", get_args(Colormap)),
            ("scale", get_args(Scale)),
            ("fade", get_args(Fade)),
        )
        for setting, allowed in choices:
            if getattr(self, setting) not in allowed:
                raise refuse(setting, getattr(self, setting), ", ".join(allowed))
        if not 0 <= self.opacity <= 1:
            raise refuse("opacity", self.opacity, "a number from 0 to 1")
        if not 50 < self.percentile <= 100:
            raise refuse("percentile", self.percentile, "a number above 50, at most 100")
        if self.limits is not None:
            low, high = self.limits
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise refuse("limits", self.limits, "two finite numbers, the lower one first")
            if self.scale == "rank" or (self.scale == "log" and low <= 0):
                raise refuse("limits", self.limits, "none with rank, positive ones with log")


@dataclass(frozen=True)
class Scaling:
    """A map between values and the unit interval of a colour map, in both directions.

    Attributes:
        scale: which of the scales.
        low, high: values at the two ends; those beyond are clipped.
        ordered: all values in order, for `rank`.
    """

    scale: Scale
    low: float
    high: float
    ordered: Values

    def unit(self, values: Values) -> Values:
        """Values to 0 .. 1, same shape, float32. A map without any difference becomes all 0."""
        if self.scale == "rank":
            below = np.searchsorted(self.ordered, values, side="left")
            upto = np.searchsorted(self.ordered, values, side="right")
            middle = (below + upto - 1) / 2  # ties share one place
            return (middle / max(1, len(self.ordered) - 1)).astype(np.float32)
        if self.high <= self.low:
            return np.zeros_like(values)
        inside = np.clip(values.astype(np.float64), self.low, self.high)
        if self.scale == "log":
            span = math.log(self.high) - math.log(self.low)
            return ((np.log(inside) - math.log(self.low)) / span).astype(np.float32)
        return ((inside - self.low) / (self.high - self.low)).astype(np.float32)

    def value(self, unit: float) -> float:
        """The value that has this place on the colour bar."""
        if self.scale == "rank":
            return float(np.quantile(self.ordered, unit))
        if self.scale == "log" and self.high > self.low:
            return float(self.low * (self.high / self.low) ** unit)
        return self.low + (self.high - self.low) * unit


def scaling(values: npt.ArrayLike, style: OverlayStyle) -> Scaling:
    """The scaling that `style` asks for on these values (any shape).

    Raises:
        ValueError: there is no value, or one that is not finite.
    """
    flat = np.sort(np.asarray(values, dtype=np.float32).ravel())
    if flat.size == 0 or not np.isfinite(flat).all():
        raise ValueError("The map has no values, or some that are not finite.")
    if style.limits:
        low, high = style.limits
    elif style.scale == "percentile":
        low, high = np.percentile(flat, [100 - style.percentile, style.percentile])
    elif style.scale == "log":
        positive = flat[flat > 0]
        low, high = (positive[0], positive[-1]) if positive.size else (0.0, 0.0)
    else:
        low, high = min(0.0, float(flat[0])), flat[-1]
    return Scaling(style.scale, float(low), float(high), flat)


def overlay(
    image: Image.Image | Pixels,
    patch_map: PatchMap,
    style: OverlayStyle | None = None,
    scale: Scaling | None = None,
) -> Pixels:
    """The map over its image.

    Args:
        image: RGB, of the size that the map's grid calls original, or that image resized.
        patch_map: values on the grid.
        style: colours; by default `OverlayStyle()`.
        scale: of these values among others, instead of the one that `style` makes of them alone.

    Returns:
        uint8 (H, W, 3), of the size of `image`. Neither argument is changed.

    Raises:
        ValueError: the image has another shape than the map's, the values do not fit the grid, or a
            marked cell is outside it.
    """
    style = style or OverlayStyle()
    photo = pixels_of(image)
    x_edges, y_edges = _edges(patch_map, photo.shape[1], photo.shape[0])
    unit = (scale or scaling(patch_map.values, style)).unit(patch_map.values)
    colours = matplotlib.colormaps[style.colormap](np.linspace(0, 1, 256))[:, :3] * 255
    across = _sampling(x_edges, photo.shape[1], style.smoothing)
    result = np.empty_like(photo)
    for top in range(0, len(photo), _BAND):
        band = slice(top, min(top + _BAND, len(photo)))
        down = _sampling(y_edges, photo.shape[0], style.smoothing, band)
        place = _sample(unit, down, across)  # (band, W)
        colour = colours[np.rint(place * 255).astype(np.uint8)]  # (band, W, 3)
        alpha = (style.opacity * _weight(place, style))[..., None]
        result[band] = np.rint(photo[band] * (1 - alpha) + colour * alpha).astype(np.uint8)
    return _mark(result, style.sinks, x_edges, y_edges) if style.sinks else result


def difference_overlay(
    image: Image.Image | Pixels,
    difference: PatchMap,
    top: float,
    opacity: float = 0.8,
    sinks: Sequence[int] = (),
) -> Pixels:
    """Signed values over the photo, 0 transparent, -top and top at the ends of `DIVERGING`.

    Args:
        image: as for `overlay`.
        difference: values on the grid, of either sign.
        top: the size that gets full colour; 0 draws the photo alone.
        opacity: of the largest size.
        sinks: cells to mark.

    Returns:
        uint8 (H, W, 3).
    """
    photo = pixels_of(image)
    x_edges, y_edges = _edges(difference, photo.shape[1], photo.shape[0])
    unit = np.zeros_like(difference.values, dtype=np.float32)
    if top > 0:
        unit = np.clip(difference.values / np.float32(top), -1, 1)
    place = _sample(
        unit, _sampling(y_edges, photo.shape[0], False), _sampling(x_edges, photo.shape[1], False)
    )
    colours = matplotlib.colormaps[DIVERGING](np.linspace(0, 1, 511))[:, :3].astype(np.float32)
    colour = 255 * colours[np.rint((place + 1) * 255).astype(np.intp)]
    alpha = np.float32(opacity) * np.abs(place)[..., None]
    result = np.rint(photo * (1 - alpha) + colour * alpha).astype(np.uint8)
    return _mark(result, sinks, x_edges, y_edges) if len(sinks) else result


def mark_cells(pixels: Pixels, patch_map: PatchMap, cells: Sequence[int]) -> Pixels:
    """Boxed x on cells of an image that lies under no map; a copy, if there is a cell."""
    edges = _edges(patch_map, pixels.shape[1], pixels.shape[0])
    return _mark(pixels, cells, *edges) if len(cells) else pixels


def _weight(place: Values, style: OverlayStyle) -> Values:
    if not style.alpha_by_value:
        return np.ones_like(place)
    return np.minimum(1, 1.3 * place**0.7) if style.fade == "quick" else place


def refuse(setting: str, value: object, allowed: str) -> ValueError:
    """The error that names a setting, its value and what is allowed."""
    return ValueError(f"{setting} is {value!r}; allowed: {allowed}.")


def pixels_of(image: Image.Image | Pixels) -> Pixels:
    """uint8 (height, width, 3); ValueError for anything that is no such image."""
    array = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise ValueError(
            f"The image is {array.dtype} of shape {array.shape}; allowed: uint8 (height, width, 3)."
        )
    return array


def _edges(patch_map: PatchMap, width: int, height: int) -> tuple[Edges, Edges]:
    """Edges of the grid's columns and rows on an image of this size: (columns + 1), (rows + 1)."""
    grid = patch_map.grid
    if patch_map.values.shape != (grid.rows, grid.columns):
        raise ValueError(
            f"The map's values are of shape {patch_map.values.shape}; "
            f"its grid is {grid.rows} x {grid.columns}."
        )
    tall, wide = grid.original
    if min(abs(width - height * wide / tall), abs(height - width * tall / wide)) > 1:
        raise ValueError(
            f"The image is {width} x {height} pixels; the map belongs to one of {wide} x {tall}."
        )
    boxes = grid.boxes().reshape(grid.rows, grid.columns, 4)
    x = np.append(boxes[0, :, 0], boxes[0, -1, 2]) * (width / wide)
    y = np.append(boxes[:, 0, 1], boxes[-1, 0, 3]) * (height / tall)
    return x, y


# Along one axis: two cells for each pixel, and the weight of the second.
_Sampling = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Values]


def _sampling(edges: Edges, size: int, smooth: bool, part: slice = slice(None)) -> _Sampling:
    """Which cells the pixels of one axis show: a pixel shows the cell that its centre is in."""
    centres = np.arange(size)[part] + 0.5
    last = len(edges) - 2
    if not smooth:
        cell = np.clip(np.searchsorted(edges, centres, side="right") - 1, 0, last)
        return cell, cell, np.zeros(len(centres), np.float32)
    place = np.clip(centres * (last + 1) / size - 0.5, 0, last)
    cell = place.astype(np.intp)
    return cell, np.minimum(cell + 1, last), (place - cell).astype(np.float32)


def _sample(unit: Values, down: _Sampling, across: _Sampling) -> Values:
    """(rows, columns) -> (pixels down, pixels across)."""
    (top, bottom, v), (left, right, h) = down, across
    rows = unit[top] * (1 - v)[:, None] + unit[bottom] * v[:, None]  # (pixels down, columns)
    return (rows[:, left] * (1 - h) + rows[:, right] * h).astype(np.float32)


def _mark(pixels: Pixels, cells: Sequence[int], x_edges: Edges, y_edges: Edges) -> Pixels:
    """Boxed x on cells; black under white, so that it shows on every colour."""
    columns, count = len(x_edges) - 1, (len(x_edges) - 1) * (len(y_edges) - 1)
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    for cell in cells:
        if not 0 <= cell < count:
            raise refuse("sinks", cell, f"cells from 0 to {count - 1}")
        row, column = divmod(cell, columns)
        x0, x1 = x_edges[column], x_edges[column + 1]
        y0, y1 = y_edges[row], y_edges[row + 1]
        inset = min(x1 - x0, y1 - y0) / 8
        box = (x0 + inset, y0 + inset, x1 - inset, y1 - inset)
        thin = max(1, round(min(inset / 2, picture.width / 270)))
        for colour, stroke in (("black", thin + 2), ("white", thin)):
            draw.rectangle(box, outline=colour, width=stroke)
            draw.line((box[0], box[1], box[2], box[3]), fill=colour, width=stroke)
            draw.line((box[0], box[3], box[2], box[1]), fill=colour, width=stroke)
    return np.asarray(picture)


def how_scaled(style: OverlayStyle) -> str:
    """The scale of a style in words."""
    if style.limits:
        return f"colours: {style.scale} from {style.limits[0]:g} to {style.limits[1]:g}"
    ends = {
        "percentile": f"percentiles {100 - style.percentile:g} to {style.percentile:g}",
        "linear": "linear from 0 to the maximum",
    }
    return f"colours: {ends.get(style.scale, style.scale)}"
