"""A patch map over its image, as pixels: no model and no trace.

It takes values on a grid (`PatchMap`) and their image, and never changes either. A cell
is drawn exactly where `ImageGrid.boxes` says it is. `drawing.scale` says which colour a value has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from sinkscope.attention_processor import PatchMap
from sinkscope.drawing.names import Colormap as Colormap
from sinkscope.drawing.names import Photo as Photo
from sinkscope.drawing.scale import Places, Scale, Scaling, scaling, signed_scaling, value_format

Pixels = npt.NDArray[np.uint8]
Edges = npt.NDArray[np.float64]
Cells = npt.NDArray[np.float32]

DIVERGING = "coolwarm"  # of values of either sign, as on the page
DARK = (0x16, 0x18, 0x1D)  # used if the photo is hidden
_BAND = 256  # pixel rows blended at a time, so that a large photo needs no float copy of itself


@dataclass(frozen=True)
class OverlayStyle:
    """How values become colours over an image.

    Attributes:
        colormap: name of the colour map. All but `turbo` are perceptually uniform.
        opacity: of the strongest cell, from 0 (only the photo) to 1 (only the colour).
        scale: `percentile`, `linear`, `log` or `rank` (`drawing.scale.scaling`).
        limits: fixed (low, high) values for the ends of the scale instead, for pictures that share
            one. Not with `rank`.
        alpha_by_value: weak cells are transparent, so that the photo stays visible.
        smoothing: interpolate between the centres of cells. Off by default: the model sees cells.
        sinks: cells to mark with a boxed x, as row-major indices.
        rare: those of them whose box is dashed: sinks in fewer than half of the layers drawn.
    """

    colormap: Colormap = "inferno"
    opacity: float = 0.8
    scale: Scale = "percentile"
    limits: tuple[float, float] | None = None
    alpha_by_value: bool = True
    smoothing: bool = False
    sinks: tuple[int, ...] = ()
    rare: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for setting, allowed in (("colormap", get_args(Colormap)), ("scale", get_args(Scale))):
            if getattr(self, setting) not in allowed:
                raise refuse(setting, getattr(self, setting), ", ".join(allowed))
        if not 0 <= self.opacity <= 1:
            raise refuse("opacity", self.opacity, "a number from 0 to 1")
        if self.limits is not None:
            low, high = self.limits
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise refuse("limits", self.limits, "two finite numbers, the lower one first")
            if self.scale == "rank" or (self.scale == "log" and low <= 0):
                raise refuse("limits", self.limits, "none with rank, positive ones with log")


def scale_of(maps: PatchMap | Sequence[PatchMap], style: OverlayStyle) -> Scaling:
    """The scale that a style makes of one map, or of several of one method that share it."""
    pool = [maps] if isinstance(maps, PatchMap) else maps
    values, format_value = [patches.values for patches in pool], value_format(pool[0].unit)
    if pool[0].signed and style.limits is None:
        return signed_scaling(values, format_value)
    return scaling(values, style.scale, limits=style.limits, format_value=format_value)


def overlay(
    image: Image.Image | Pixels,
    patch_map: PatchMap,
    style: OverlayStyle | None = None,
    scale: Scaling | None = None,
) -> Pixels:
    """The map over its image.

    Args:
        image: RGB, of the size that the map's grid calls original, or that image resized.
        patch_map: values on the grid. A missing value (NaN) leaves the photo unchanged.
        style: colours; by default `OverlayStyle()`.
        scale: of these values among others, instead of the one that `style` makes of them alone.
            A signed one is drawn in `DIVERGING`, whatever the style's colour map.

    Returns:
        uint8 (H, W, 3), of the size of `image`. Neither argument is changed.

    Raises:
        ValueError: the image has another shape than the map's, the values do not fit the grid, one
            is infinite, or a marked cell is outside it.
    """
    style = style or OverlayStyle()
    photo = pixels_of(image)
    x_edges, y_edges = _edges(patch_map, photo.shape[1], photo.shape[0])
    cells = _coloured(patch_map, style, scale or scale_of(patch_map, style))
    across = _sampling(x_edges, photo.shape[1], style.smoothing)
    result = np.empty_like(photo)
    for top in range(0, len(photo), _BAND):
        band = slice(top, min(top + _BAND, len(photo)))
        down = _sampling(y_edges, photo.shape[0], style.smoothing, band)
        ink = _sample(cells, down, across, style.smoothing)  # (band, W, 4)
        result[band] = np.rint(photo[band] * (1 - ink[..., 3:]) + ink[..., :3]).astype(np.uint8)
    return _mark(result, style.sinks, x_edges, y_edges, style.rare) if style.sinks else result


def mark_cells(
    pixels: Pixels, patch_map: PatchMap, cells: Sequence[int], rare: Sequence[int] = ()
) -> Pixels:
    """Boxed x on cells of an image without a map; a copy, if there is a cell."""
    edges = _edges(patch_map, pixels.shape[1], pixels.shape[0])
    return _mark(pixels, cells, *edges, rare) if len(cells) else pixels


RING = "#5ad1ff"
_PAGE_WIDTH = 420  # of a map on the page, in pixels: marks have the same size relative to it


def ring_cells(pixels: Pixels, patch_map: PatchMap, cells: Sequence[int]) -> Pixels:
    """A ring on cells that a control treated, so that none is taken for a sink; a copy, if any."""
    if not cells:
        return pixels
    x, y = _edges(patch_map, pixels.shape[1], pixels.shape[0])
    picture = Image.fromarray(pixels)
    draw, thin = ImageDraw.Draw(picture), max(1, round(picture.width / 220))
    for cell in cells:
        row, column = divmod(cell, len(x) - 1)
        across, down = (x[column] + x[column + 1]) / 2, (y[row] + y[row + 1]) / 2
        size = 0.36 * min(x[column + 1] - x[column], y[row + 1] - y[row])
        box = (across - size, down - size, across + size, down + size)
        for colour, stroke in (("black", thin + 2), (RING, thin)):
            draw.ellipse(box, outline=colour, width=stroke)
    return np.asarray(picture)


def _coloured(patch_map: PatchMap, style: OverlayStyle, scale: Scaling) -> Cells:
    """What each cell adds to the photo: (rows, columns, 4), colour times opacity, and opacity.

    The page does the same (`drawMap` in `web/static/inspector/40_figures.js`).
    """
    cells = np.zeros((*patch_map.values.shape, 4), np.float32)
    if scale.empty:
        return cells  # nothing to see is not the lowest colour
    places = scale.unit(patch_map.values)
    present = ~np.isnan(places)
    colours = colour_table(bar_colours(scale, style.colormap))
    colour = colours[np.floor(places[present] * 255 + 0.5).astype(np.intp)]
    alpha = style.opacity * (_weight(places[present], scale) if style.alpha_by_value else 1.0)
    cells[present, 3] = alpha
    cells[present, :3] = colour * cells[present, 3:]
    return cells


def bar_colours(scale: Scaling, colormap: str) -> str:
    """The colour map of a scale's bar: the one that was chosen, but for values of either sign."""
    return DIVERGING if scale.kind == "signed" else colormap


def colour_table(name: str) -> npt.NDArray[np.float32]:
    """A colour map's 256 entries, float32 (256, 3) from 0 to 255."""
    table: npt.NDArray[np.float32] = matplotlib.colormaps[name](np.arange(256))[:, :3] * 255
    return table.astype(np.float32)


def _weight(places: Places, scale: Scaling) -> Places:
    """The opacity of a position on the bar: rising quickly, so that cells of medium value are
    visible too."""
    size = np.abs(2 * places - 1) if scale.kind == "signed" else places
    weight: Places = np.minimum(1, 1.3 * size**0.7)
    return weight


def under_map(image: Image.Image | Pixels, photo: Photo = "dim") -> Pixels:
    """The photo under a map: dimmed and half grey, as it is, or hidden.

    Returns:
        uint8 (height, width, 3), never the given array.
    """
    pixels = pixels_of(image)
    if photo == "none":
        return np.broadcast_to(np.asarray(DARK, np.uint8), pixels.shape).copy()
    if photo == "full":
        return pixels.copy()
    darkened = np.empty_like(pixels)
    for top in range(0, len(pixels), _BAND):
        colour = pixels[top : top + _BAND].astype(np.float32)
        grey = colour @ np.asarray([0.299, 0.587, 0.114], np.float32)
        dimmed = (0.5 * colour + 0.5 * grey[..., None]) * 0.74 + 0.26 * np.asarray([8, 10, 16])
        darkened[top : top + _BAND] = np.rint(dimmed).astype(np.uint8)
    return darkened


def refuse(setting: str, value: object, allowed: str) -> ValueError:
    """The error that names a setting, its value and what is allowed."""
    return ValueError(f"{setting} is {value!r}; allowed: {allowed}.")


def pixels_of(image: Image.Image | Pixels) -> Pixels:
    """uint8 (height, width, 3); ValueError for anything else."""
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
_Sampling = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float32]]


def _sampling(edges: Edges, size: int, smooth: bool, part: slice = slice(None)) -> _Sampling:
    """Which cells the pixels of one axis show: a pixel shows the cell that its centre is in."""
    centres = np.arange(size)[part] + 0.5
    last = len(edges) - 2
    if not smooth:
        cell = np.clip(np.searchsorted(edges, centres, side="right") - 1, 0, last)
        return cell, cell, np.zeros(len(centres), np.float32)
    at = np.clip(centres * (last + 1) / size - 0.5, 0, last)
    cell = at.astype(np.intp)
    return cell, np.minimum(cell + 1, last), (at - cell).astype(np.float32)


def _sample(cells: Cells, down: _Sampling, across: _Sampling, smooth: bool) -> Cells:
    """(rows, columns, 4) -> (pixels down, pixels across, 4)."""
    (top, bottom, v), (left, right, h) = down, across
    if not smooth:
        return cells[top][:, left]
    rows = cells[top] * (1 - v)[:, None, None] + cells[bottom] * v[:, None, None]
    sampled = rows[:, left] * (1 - h)[:, None] + rows[:, right] * h[:, None]
    return sampled.astype(np.float32, copy=False)


def _mark(
    pixels: Pixels,
    cells: Sequence[int],
    x_edges: Edges,
    y_edges: Edges,
    rare: Sequence[int] = (),
) -> Pixels:
    """Boxed x on cells, white over black, so that it shows on every colour; the box is dashed for
    `rare` ones.

    The page does the same (`drawSink` in `web/static/inspector/40_figures.js`).
    """
    columns, count = len(x_edges) - 1, (len(x_edges) - 1) * (len(y_edges) - 1)
    picture = Image.fromarray(pixels)
    draw, dense = ImageDraw.Draw(picture), max(1.0, picture.width / _PAGE_WIDTH)
    for cell in cells:
        if not 0 <= cell < count:
            raise refuse("sinks", cell, f"cells from 0 to {count - 1}")
        row, column = divmod(cell, columns)
        x0, x1 = x_edges[column], x_edges[column + 1]
        y0, y1 = y_edges[row], y_edges[row + 1]
        inset, arm = 1.5 * dense, 0.26 * min(x1 - x0, y1 - y0, 26 * dense)
        box = (x0 + inset, y0 + inset, x1 - inset, y1 - inset)
        if box[0] >= box[2] or box[1] >= box[3]:  # a cell of few pixels
            box = (x0, y0, x1, y1)
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        for colour, stroke in (("black", int(3 * dense)), ("white", round(1.3 * dense))):
            for line in _sides(box, 3 * dense if cell in rare else None):
                draw.line(line, fill=colour, width=stroke)
            draw.line((x - arm, y - arm, x + arm, y + arm), fill=colour, width=stroke)
            draw.line((x - arm, y + arm, x + arm, y - arm), fill=colour, width=stroke)
    return np.asarray(picture)


def _sides(
    box: tuple[float, float, float, float], dash: float | None
) -> Iterator[tuple[float, float, float, float]]:
    """The sides of a rectangle as lines, or as dashes of this length."""
    x0, y0, x1, y1 = box
    for ax, ay, bx, by in ((x0, y0, x1, y0), (x1, y0, x1, y1), (x1, y1, x0, y1), (x0, y1, x0, y0)):
        parts = 1 if dash is None else max(1, round((abs(bx - ax) + abs(by - ay)) / dash))
        for k in range(0, parts, 2):
            start, end = k / parts, (k + 1) / parts
            yield (
                ax + (bx - ax) * start,
                ay + (by - ay) * start,
                ax + (bx - ax) * end,
                ay + (by - ay) * end,
            )
