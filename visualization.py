"""Drawing: a patch map over its image, as pixels, as a figure with its numbers, or as a sheet.

This file knows no model and no trace. It takes values on a grid (`PatchMap`) and the image they lie
on, and never changes either. A cell is drawn exactly where `ImageGrid.boxes` says it is.

Every picture can say how its colours came about: `Scaling` maps values to colours and back, so that
a colour bar shows attention, not colour indices.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from PIL import Image, ImageDraw

from attention_processor import PatchMap
from utils import write_atomically

Scale = Literal["percentile", "linear", "log", "rank"]
Colormap = Literal["inferno", "magma", "plasma", "viridis", "cividis", "gray", "turbo"]
Pixels = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float32]
Edges = npt.NDArray[np.float64]

SHEET_LIMIT = 96  # more small pictures than this on one sheet can no longer be read
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
        smoothing: interpolate between the centres of cells. Off by default: the model sees cells.
        sinks: cells to mark with a boxed x, as row-major indices.
    """

    colormap: Colormap = "inferno"
    opacity: float = 0.7
    scale: Scale = "percentile"
    percentile: float = 99.0
    limits: tuple[float, float] | None = None
    alpha_by_value: bool = True
    smoothing: bool = False
    sinks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for setting, allowed in (("colormap", get_args(Colormap)), ("scale", get_args(Scale))):
            if getattr(self, setting) not in allowed:
                raise _refuse(setting, getattr(self, setting), ", ".join(allowed))
        if not 0 <= self.opacity <= 1:
            raise _refuse("opacity", self.opacity, "a number from 0 to 1")
        if not 50 < self.percentile <= 100:
            raise _refuse("percentile", self.percentile, "a number above 50, at most 100")
        if self.limits is not None:
            low, high = self.limits
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise _refuse("limits", self.limits, "two finite numbers, the lower one first")
            if self.scale == "rank" or (self.scale == "log" and low <= 0):
                raise _refuse("limits", self.limits, "none with rank, positive ones with log")


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
    image: Image.Image | Pixels, patch_map: PatchMap, style: OverlayStyle | None = None
) -> Pixels:
    """The map over its image.

    Args:
        image: RGB, of the size that the map's grid calls original, or that image resized.
        patch_map: values on the grid.
        style: colours; by default `OverlayStyle()`.

    Returns:
        uint8 (H, W, 3), of the size of `image`. Neither argument is changed.

    Raises:
        ValueError: the image has another shape than the map's, the values do not fit the grid, or a
            marked cell is outside it.
    """
    style = style or OverlayStyle()
    photo = _pixels(image)
    x_edges, y_edges = _edges(patch_map, photo.shape[1], photo.shape[0])
    unit = scaling(patch_map.values, style).unit(patch_map.values)
    colours = matplotlib.colormaps[style.colormap](np.linspace(0, 1, 256))[:, :3] * 255
    across = _sampling(x_edges, photo.shape[1], style.smoothing)
    result = np.empty_like(photo)
    for top in range(0, len(photo), _BAND):
        band = slice(top, min(top + _BAND, len(photo)))
        down = _sampling(y_edges, photo.shape[0], style.smoothing, band)
        place = _sample(unit, down, across)  # (band, W)
        colour = colours[np.rint(place * 255).astype(np.uint8)]  # (band, W, 3)
        alpha = (style.opacity * (place if style.alpha_by_value else np.ones_like(place)))[
            ..., None
        ]
        result[band] = np.rint(photo[band] * (1 - alpha) + colour * alpha).astype(np.uint8)
    return _mark(result, style.sinks, x_edges, y_edges) if style.sinks else result


def figure(
    image: Image.Image | Pixels,
    patch_map: PatchMap,
    style: OverlayStyle | None = None,
    *,
    token: str = "",
    share: float | None = None,
    note: str = "",
) -> Figure:
    """One overlay with all that is needed to read it: token, colour bar in numbers, and a caption.

    Args:
        image, patch_map, style: as for `overlay`.
        token: text of the token that the map explains, for the title.
        share: attention mass that the same rows put on this whole image, unscaled, from 0 to 1.
        note: a last line, such as model and prompt.
    """
    style = style or OverlayStyle()
    pixels = overlay(image, patch_map, style)
    height, width = pixels.shape[:2]
    wide = 8.0
    tall = min(max(wide * 0.85 * height / width, 1.0), 24.0)
    drawn = Figure(figsize=(wide, tall + 1.6), layout="constrained")
    axes = drawn.add_subplot()
    axes.imshow(pixels, interpolation="none" if max(height, width) < 500 else "antialiased")
    axes.set_axis_off()
    if token:
        axes.set_title(visible(token), parse_math=False, family=fonts(), fontsize=16)
    scale = scaling(patch_map.values, style)
    places = np.linspace(0, 1, 5)
    bar = drawn.colorbar(
        ScalarMappable(Normalize(0, 1), style.colormap), ax=axes, fraction=0.05, pad=0.02
    )
    bar.set_ticks(places.tolist(), labels=[f"{scale.value(place):.3g}" for place in places])
    bar.set_label(patch_map.unit)
    lines = [patch_map.label, f"{_how_scaled(style)}; normalisation: {patch_map.normalisation}"]
    if share is not None:
        lines.append(f"attention on this image: {share:.1%} of the whole row")
    caption(drawn, [*lines, note], characters=96)
    return drawn


def contact_sheet(
    image: Image.Image | Pixels,
    maps: Sequence[PatchMap],
    tokens: Sequence[str],
    shares: Sequence[float],
    style: OverlayStyle | None = None,
    *,
    title: str = "",
    note: str = "",
) -> Figure:
    """A small overlay for each token of an answer, in reading order, under the answer itself.

    Each picture has its own colour scale, since tokens differ in how much they look at the image at
    all; that is the number beside the token (`shares`, attention mass from 0 to 1).

    Raises:
        ValueError: there is no map, or the three sequences differ in length.
    """
    if not maps or not len(maps) == len(tokens) == len(shares):
        raise ValueError("A sheet needs at least one map, and a token and a share for each.")
    style = style or OverlayStyle()
    small = Image.fromarray(_pixels(image))
    small.thumbnail((360, 360))
    count = min(len(maps), SHEET_LIMIT)
    columns = min(count, 6)
    rows = math.ceil(count / columns)
    wide = 1.9
    tall = min(max(wide * small.height / small.width, 0.4), 3 * wide)
    heading = textwrap.wrap(_printable(title), 90)
    size = (max(columns * wide, 7.0), rows * (tall + 0.35) + 0.24 * len(heading) + 1.0)
    drawn = Figure(figsize=size, layout="constrained")
    drawn.suptitle("\n".join(heading), fontsize=11, family=fonts(), parse_math=False)
    grid = drawn.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, patch_map, token, share in zip(grid, maps[:count], tokens, shares, strict=False):
        axes.imshow(overlay(small, patch_map, style), interpolation="none")
        label = f"{visible(token)}  {share:.0%}"
        axes.set_title(label, parse_math=False, family=fonts(), fontsize=9)
    lines = [
        f"percentages: attention mass on this image. {_how_scaled(style)}, each for itself.",
        f"first {count} of {len(maps)} tokens" if len(maps) > count else "",
        note,
    ]
    caption(drawn, lines, characters=110)
    return drawn


def save(picture: Figure | Pixels, path: Path) -> None:
    """Write a figure (.png, .pdf or .svg) or pixels (.png), whole or not at all.

    Raises ValueError for another ending, OSError where the file cannot be written.
    """
    kind = check_ending(path, figure=isinstance(picture, Figure))
    if isinstance(picture, Figure):
        # A date in the file would make two runs of one seed differ.
        dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
        options: dict[str, Any] = {"format": kind, "dpi": 160, "metadata": dates.get(kind)}
        write_atomically(path, lambda file: picture.savefig(file, **options))
    else:
        write_atomically(path, lambda file: Image.fromarray(picture).save(file, kind))


def check_ending(path: Path, *, figure: bool = True) -> str:
    """The format that a path's ending names; ValueError if it is none that `save` writes."""
    allowed = (".png", ".pdf", ".svg") if figure else (".png",)
    if path.suffix.lower() not in allowed:
        raise _refuse("output", str(path), f"a file ending in {', '.join(allowed)}")
    return path.suffix.lower()[1:]


def visible(token: str) -> str:
    """A token's text as a label: white space and control characters get a sign that can be seen."""
    signs = {" ": "\u00b7", "\n": "\u23ce", "\t": "\u21e5", "": "\u2205"}
    shown = _printable("".join(signs.get(c, c) for c in token))
    return shown.removeprefix("\u00b7") or signs[token]


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() or c.isspace() else "\ufffd" for c in text)


def fonts() -> list[str]:
    """Matplotlib's own font, then those on this machine that know the scripts it lacks."""
    wider = "Noto Sans CJK SC, Noto Sans CJK JP, WenQuanYi Zen Hei, PingFang SC, Microsoft YaHei"
    known = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in wider.split(", ") if name in known)]


def _refuse(setting: str, value: object, allowed: str) -> ValueError:
    return ValueError(f"{setting} is {value!r}; allowed: {allowed}.")


def _pixels(image: Image.Image | Pixels) -> Pixels:
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
            raise _refuse("sinks", cell, f"cells from 0 to {count - 1}")
        row, column = divmod(cell, columns)
        x0, x1 = x_edges[column], x_edges[column + 1]
        y0, y1 = y_edges[row], y_edges[row + 1]
        inset = min(x1 - x0, y1 - y0) / 8
        box = (x0 + inset, y0 + inset, x1 - inset, y1 - inset)
        thin = max(1, round(inset / 2))
        for colour, stroke in (("black", thin + 2), ("white", thin)):
            draw.rectangle(box, outline=colour, width=stroke)
            draw.line((box[0], box[1], box[2], box[3]), fill=colour, width=stroke)
            draw.line((box[0], box[3], box[2], box[1]), fill=colour, width=stroke)
    return np.asarray(picture)


def _how_scaled(style: OverlayStyle) -> str:
    if style.limits:
        return f"colours: {style.scale} from {style.limits[0]:g} to {style.limits[1]:g}"
    ends = {
        "percentile": f"percentiles {100 - style.percentile:g} to {style.percentile:g}",
        "linear": "linear from 0 to the maximum",
    }
    return f"colours: {ends.get(style.scale, style.scale)}"


def caption(drawn: Figure, lines: Sequence[str], characters: int) -> None:
    """Lines of small text under a figure, each wrapped to at most four."""
    parts = [part for line in lines for part in textwrap.wrap(_printable(line), characters)[:4]]
    drawn.supxlabel("\n".join(parts), fontsize=8, family=fonts(), parse_math=False)
