"""The colour scale: from values of maps to positions on a colour bar, and its description.

Every picture takes its colours from here: overlays, figures, animations and the API. The page
computes the same in the browser (`web/static/inspector/30_scale.js`), and a test runs the browser's
code against inputs and results of this module (`tests/drawing/scale_vectors.json`).

A scale is made from a POOL: the values of one map, or of several that share it (both sides of a
comparison, every token of an answer). docs/method.md, "Scales", describes each kind and its reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from sinkscope.drawing.names import Scale as Scale

Kind = Literal["percentile", "linear", "log", "rank", "signed"]
Values = npt.NDArray[np.float32]
Places = npt.NDArray[np.float64]
Ticks = tuple[tuple[float, str], ...]
ValueFormat = Callable[[float], str]

CLIPPED_PART, CLIPPED_LEAST = 0.01, 3  # fraction of a map's patches that are clipped
CLIP_LEAVES = 0.05  # fraction of a pool's sum that the unclipped patches must hold
DECADES = 3  # that a logarithmic scale spans


@dataclass(frozen=True)
class Scaling:
    """A mapping between values and positions on a colour bar, in both directions.

    Attributes:
        kind: which scale; `signed` is that of differences, with 0 in the middle.
        low, high: values at the two ends of the bar; those beyond get the end's colour. Both 0 if
            there is nothing to show: no value is above 0 (`signed`: all are 0).
        over: number of values of the pool beyond the ends.
        ticks: (position from 0 to 1, text) on the bar.
        words: what the scale does, in words.
        ordered: all values in rising order, only for `rank`.
    """

    kind: Kind
    low: float
    high: float
    over: int
    ticks: Ticks
    words: str
    ordered: Values = field(
        default_factory=lambda: np.empty(0, np.float32), repr=False, compare=False
    )

    @property
    def empty(self) -> bool:
        """Whether there is nothing to colour."""
        return not self.high > self.low

    def unit(self, values: npt.ArrayLike) -> Places:
        """Values to positions from 0 to 1: float64 of the same shape, NaN where a value is missing.

        An empty scale puts all at 0 (`signed`: in the middle).
        """
        given = np.asarray(values, np.float32)
        if self.empty:
            places = np.full(given.shape, 0.5 if self.kind == "signed" else 0.0)
        elif self.kind == "rank":
            below = np.searchsorted(self.ordered, given, side="left")
            places = np.clip(below / max(1, len(self.ordered) - 1), 0, 1)
        else:
            inside = np.clip(given.astype(np.float64), self.low, self.high)
            if self.kind == "log":
                places = np.log(inside / self.low) / math.log(self.high / self.low)
            else:
                places = (inside - self.low) / (self.high - self.low)
        return np.where(np.isnan(given), np.nan, places)

    def value(self, position: float) -> float:
        """The value at this position on the bar."""
        if self.empty:
            return 0.0
        if self.kind == "rank":
            return float(self.ordered[math.floor(position * (len(self.ordered) - 1) + 0.5)])
        if self.kind == "log":
            return float(self.low * (self.high / self.low) ** position)
        return self.low + (self.high - self.low) * position


def percent(share: float) -> str:
    """0.0123 -> "1.23 %": three significant digits, so that a small share is never shown as 0."""
    value = 100 * share
    size = abs(value)
    if size == 0:
        return "0 %"
    if size >= 9.95:
        return f"{value:.1f} %"
    if size >= 0.995:
        return f"{value:.2f} %"
    return f"{value:#.2g} %" if size >= 0.00095 else f"{value:.0e} %".replace("e-0", "e-")


def times(value: float) -> str:
    """2.46 -> "2.5 ×"."""
    if value >= 9.95:
        return f"{value:.0f} ×"
    if value >= 0.995:
        return f"{value:.1f} ×"
    if value >= 0.00095:
        return f"{value:.1g} ×"
    return f"{value:.0e} ×".replace("e-0", "e-") if value else "0 ×"


def value_format(unit: str) -> ValueFormat:
    """How values of a unit are written: as percent, as times, or as plain numbers."""
    if unit.startswith("times"):
        return times
    if unit in ("attention mass", "share of image attention"):
        return percent
    return lambda value: f"{value:.3g}"


def scaling(
    maps: Sequence[npt.ArrayLike],
    kind: Scale = "percentile",
    *,
    limits: tuple[float, float] | None = None,
    format_value: ValueFormat = percent,
) -> Scaling:
    """The scale of a pool of maps.

    Args:
        maps: values of one map or of several, of any shape; NaN is a missing patch.
        kind: `percentile` is linear from 0 and clips the strongest patches; `linear` runs from 0
            to the maximum; `log` over three decades up to the maximum; `rank` is a patch's rank,
            where equal values share the lowest.
        limits: fixed (low, high) for the ends of the bar, instead of the pool's own. Not
            with `rank`.
        format_value: formats a value for the bar.

    Raises:
        ValueError: a value is infinite.
    """
    pool = _pooled(maps)
    if limits is not None:
        return _fixed(pool, kind, limits, format_value)
    high = float(pool[-1]) if pool.size else 0.0
    if not high > 0:
        return Scaling(kind, 0.0, 0.0, 0, ((0.0, "0"),), "no attention here")
    if kind == "percentile":
        top, over = _clip(pool, len(maps))
        ticks = _ticks(kind, 0.0, top, over, format_value)
        if not over:
            return Scaling(kind, 0.0, top, 0, ticks, "percentile clip: linear, nothing clipped")
        position = 100 * (len(pool) - over) / len(pool)
        words = (
            f"percentile clip: linear to the {position:.1f}th percentile; {_strongest(over)} above"
        )
        return Scaling(kind, 0.0, top, over, ticks, words)
    if kind == "log":
        low = high / 10**DECADES
        words = "logarithmic, three decades up to the maximum"
        return Scaling(kind, low, high, 0, _ticks(kind, low, high, 0, format_value), words)
    if kind == "rank":
        middle = format_value(float(pool[len(pool) // 2]))
        named = ((0.0, "lowest"), (0.5, f"median {middle}"), (1.0, "highest"))
        return Scaling(kind, 0.0, high, 0, named, "rank: order only, sizes are not shown", pool)
    return Scaling(
        kind, 0.0, high, 0, _ticks(kind, 0, high, 0, format_value), "linear to the maximum"
    )


def signed_scaling(maps: Sequence[npt.ArrayLike], format_value: ValueFormat = percent) -> Scaling:
    """The scale of values of either sign, such as differences: 0 in the middle of the bar, both
    ends at the same size, which is clipped as `percentile` clips.

    Raises:
        ValueError: a value is infinite.
    """
    sizes = np.sort(np.abs(_pooled(maps)))
    if not sizes.size or not sizes[-1] > 0:
        return Scaling("signed", 0.0, 0.0, 0, ((0.5, "0"),), "no difference anywhere")
    top, over = _clip(sizes, len(maps))
    below, above = ("≤ ", "≥ ") if over else ("", "")
    ticks = (
        (0.0, f"{below}−{format_value(top)}"),
        (0.5, "0"),
        (1.0, f"{above}+{format_value(top)}"),
    )
    words = "linear, the same on both sides of 0"
    words += f"; {_strongest(over)} beyond" if over else ""
    return Scaling("signed", -top, top, over, ticks, words)


def difference_of(left: Values, right: Values, *, idle: bool = False) -> Values:
    """right - left; all 0 if that could be rounding, which must not look like an effect.

    Args:
        left, right: attention of the same patches.
        idle: the difference between the two is known to have had no effect.
    """
    difference: Values = right - left
    least = np.finfo(np.float16).eps * max(_largest(left), _largest(right))  # as in traces
    return (
        np.zeros_like(difference) if idle or _largest(np.abs(difference)) <= least else difference
    )


def _largest(values: Values) -> float:
    return float(np.nanmax(values, initial=0))


def clipped(patches: float) -> int:
    """How many of the largest patches of a map are clipped: 1 %, at least three, at most a quarter.

    Sinks come in ones and twos, and on a small grid a bare 99th percentile would be one of them.
    """
    most = max(0, math.floor(patches / 4))
    return min(max(CLIPPED_LEAST, math.ceil(patches * CLIPPED_PART)), most)


def _pooled(maps: Sequence[npt.ArrayLike]) -> Values:
    """All values but the missing ones, in rising order."""
    flat = [np.asarray(values, np.float32).ravel() for values in maps]
    pool = np.concatenate(flat) if flat else np.empty(0, np.float32)
    if np.isinf(pool).any():
        raise ValueError("The map has values that are not finite.")
    pooled: Values = np.sort(pool[~np.isnan(pool)])
    return pooled


def _clip(pool: Values, maps: int) -> tuple[float, int]:
    """The value at the end of the bar, and how many are beyond it: the strongest patches are
    clipped.

    Fewer are clipped if the others would hold less than `CLIP_LEAVES` of the sum: then the
    strongest patches ARE the map, and with clipping 50 % and 1 % would have the same colour.
    """
    cut = clipped(len(pool) / maps) * maps
    below = np.cumsum(pool, dtype=np.float64)
    while cut and below[len(pool) - 1 - cut] < CLIP_LEAVES * below[-1]:
        cut -= 1
    top = pool[len(pool) - 1 - cut]
    return float(top), int((pool > top).sum())


def _fixed(
    pool: Values, kind: Scale, limits: tuple[float, float], format_value: ValueFormat
) -> Scaling:
    low, high = limits
    over = int(((pool < low) | (pool > high)).sum())
    way = "logarithmic" if kind == "log" else "linear"
    words = f"{way} from {format_value(low)} to {format_value(high)}"
    return Scaling(kind, low, high, over, _ticks(kind, low, high, over, format_value), words)


def _ticks(kind: Scale, low: float, high: float, over: int, format_value: ValueFormat) -> Ticks:
    if kind == "log":
        parts = DECADES
        values = [low * (high / low) ** (k / parts) for k in range(parts + 1)]
    else:
        parts = 4
        values = [low + (high - low) * (k / parts) for k in range(parts + 1)]
    texts = [format_value(value) for value in values]
    if over:
        texts[-1] = f"≥ {texts[-1]}"
    return tuple((k / parts, text) for k, text in enumerate(texts))


def _strongest(count: int) -> str:
    return f"the {count} strongest patches lie" if count > 1 else "the strongest patch lies"
