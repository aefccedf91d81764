"""The result of a region test, in numbers and words. Pure: numbers in, percentiles and sentences
out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sinkscope.experiments.boxes import ENOUGH, Box
from sinkscope.experiments.region_settings import How

Verdict = Literal["matters", "hinders", "no more than others"]
MOST = 0.95
"""A box stands out when it changes a token more than this share of the other boxes does ..."""
SMALL = 0.05
"""... and by at least this many nats (5 % of the token's probability)."""

_WITHOUT = {"cut": "With it cut", "grey": "With it greyed"}


@dataclass(frozen=True)
class RegionEffect:
    """How an answer's log-probabilities change without a box of the image, compared with other
    boxes.

    All changes are in nats: log p without the box - log p of the unchanged model, of the same token
    after the same tokens. Below 0: the token became less probable.

    Attributes:
        box: what was tested.
        how: `cut` (attention edges) or `grey` (pixels).
        texts: of the T answer tokens.
        plain: float32 (T,), log-probabilities of the unchanged model.
        changes: float32 (T,), of the box.
        others: the n other boxes of its size that are done so far.
        random: float32 (n, T), their changes.
        planned: how many others there will be.
        places: number of positions they are drawn from.
        overlapping: they may share cells with the box.
        seed: of the draw.
        var: in words, VAR that was active; "" for the plain model.
    """

    box: Box
    how: How
    texts: tuple[str, ...]
    plain: np.ndarray
    changes: np.ndarray
    others: tuple[Box, ...]
    random: np.ndarray
    planned: int
    places: int
    overlapping: bool
    seed: int
    var: str = ""

    @property
    def finished(self) -> bool:
        return len(self.others) == self.planned

    @property
    def change(self) -> float:
        """The change of the whole answer's log-probability."""
        return float(self.changes.sum())

    def percentile(self, token: int | None = None) -> float:
        """Share (0 to 1) of the other boxes without which a token loses LESS than without this one.
        None: the whole answer. Ties do not count. NaN before any other box is done."""
        change, others = self._of(token)
        return float((others > change).mean()) if len(others) else math.nan

    def verdict(self, token: int | None = None) -> Verdict:
        """Whether the box stands out among boxes of its size (`MOST`, `SMALL`)."""
        change, others = self._of(token)
        if len(others) and change <= -SMALL and (others > change).mean() >= MOST:
            return "matters"
        if len(others) and change >= SMALL and (others < change).mean() >= MOST:
            return "hinders"
        return "no more than others"

    def words(self, token: int) -> str:
        """Two short sentences about one token."""
        change, others = self._of(token)
        before = math.exp(float(self.plain[token]))
        after = math.exp(min(0.0, float(self.plain[token]) + change))
        was, now = _chance(before), _chance(after)
        moved = f"stays at {was}" if was == now else f"goes from {was} to {now}"
        moved = f"{_WITHOUT[self.how]}, {self._name(token)} {moved} ({_nats(change)})"
        return f"{moved}. {self._compared(change, others, 'it')}"

    def sentence(self) -> str:
        """The result for the box and the whole answer, in words."""
        return f"{self.headline()} {self.whole()}"

    def headline(self) -> str:
        """The words that the box matters for."""
        matters = [t for t in range(len(self.texts)) if self.verdict(t) == "matters"]
        matters.sort(key=lambda t: float(self.changes[t]))
        rest = "" if len(matters) <= 3 else f" and {len(matters) - 3} more"
        named = ", ".join(self._name(t) for t in matters[:3]) + rest
        return (
            f"This box matters for {named}." if matters else "This box matters for no single word."
        )

    def whole(self) -> str:
        """The result for the whole answer."""
        change, others = self._of(None)
        return f"The answer in all: {_nats(change)}. {self._compared(change, others, 'it')}"

    def notes(self) -> tuple[str, ...]:
        """The limits of the result, in sentences."""
        lines = []
        count = len(self.others)
        drawn = "all there are" if count == self.places else f"drawn from {self.places} places"
        size = f"{self.box.rows} × {self.box.columns} patches"
        lines.append(f"Compared with {count} other boxes of {size} on the same image ({drawn}).")
        if self.overlapping:
            lines.append("They may overlap with it, because too few do not.")
        if self.finished and count < ENOUGH:
            lines.append(
                f"That is too few to be sure: under {ENOUGH}, chance alone can look like 95 %."
            )
        return tuple(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a file or an API response."""
        box = self.box
        return {
            "box": {
                "image": box.image,
                "row": box.row,
                "column": box.column,
                "rows": box.rows,
                "columns": box.columns,
            },
            "how": self.how,
            "var": self.var,
            "seed": self.seed,
            "other_boxes": len(self.others),
            "planned": self.planned,
            "places": self.places,
            "overlapping": self.overlapping,
            "tokens": [
                {
                    "text": text,
                    "log_probability": round(float(self.plain[t]), 6),
                    "change": round(float(self.changes[t]), 6),
                    "percentile": _plain(self.percentile(t)),
                    "random_range": _quantiles(self.random[:, t]),
                    "verdict": self.verdict(t),
                    "words": self.words(t),
                }
                for t, text in enumerate(self.texts)
            ],
            "answer": {
                "change": round(self.change, 6),
                "percentile": _plain(self.percentile()),
                "random_range": _quantiles(self.random.sum(1)),
                "verdict": self.verdict(),
            },
            "headline": self.headline(),
            "whole": self.whole(),
            "notes": list(self.notes()),
        }

    def _of(self, token: int | None) -> tuple[float, np.ndarray]:
        if token is None:
            return self.change, self.random.sum(1)
        return float(self.changes[token]), self.random[:, token]

    def _name(self, token: int) -> str:
        return f"“{self.texts[token].strip() or self.texts[token]}”"

    def _compared(self, change: float, others: np.ndarray, what: str) -> str:
        """A change compared with those of the other boxes, as a sentence."""
        count = len(others)
        if not count:
            return "There is nothing to compare it with yet."
        if abs(change) < SMALL:
            return f"That is hardly a change (under {SMALL} nats)."
        lower = change < 0
        share = float(((others > change) if lower else (others < change)).mean())
        if share >= MOST:
            than = f"all {count} others" if share == 1 else f"{_percent(share)} of {count} others"
            verb = f"matters more for {what}" if lower else f"holds {what} back more"
            return f"This box {verb} than {than} of its size."
        verb = "cost" if lower else "help"
        return (
            f"That does not stand out: {_percent(share)} of {count} others of its size {verb} "
            f"{what} less (it takes {_percent(MOST)})."
        )


def _percent(share: float) -> str:
    """Rounded down: 99.6 % is not "all"."""
    return f"{math.floor(100 * share)} %"


def _nats(change: float) -> str:
    size = abs(change)
    if size < 0.0005:
        return "0 nats"
    digits = 1 if size >= 9.95 else 2 if size >= 0.095 else 3
    sign = "−" if round(change, digits) < 0 else "+"
    return f"{sign}{size:.{digits}f} nats"


def _chance(probability: float) -> str:
    size = 100 * probability
    if size >= 9.95:
        return f"{size:.0f} %"
    if size >= 0.995:
        return f"{size:.1f} %"
    return f"{size:.1g} %" if size >= 0.001 else "under 0.001 %"


def _quantiles(values: np.ndarray) -> list[float] | None:
    """Smallest, 5 %, median, 95 %, largest."""
    if not len(values):
        return None
    return [round(float(x), 6) for x in np.quantile(values, (0, 0.05, 0.5, 0.95, 1))]


def _plain(share: float) -> float | None:
    return None if math.isnan(share) else round(share, 4)
