"""The paired cluster bootstrap: whole clusters are drawn with replacement, and the whole metric is
computed on each draw, for all methods on the same draws (Efron and Tibshirani 1993; Field and
Welsh, J. R. Stat. Soc. B 2007 for clusters)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sinkscope.evaluation.metrics.tally import Array, Tally
from sinkscope.evaluation.statistics.intervals import Interval
from sinkscope.evaluation.statistics.settings import CONFIDENCE, RESAMPLES

_MOST_VALUES = 4_000_000  # of weights at a time: 32 MB


@dataclass(frozen=True)
class Resamples:
    """Figures of each method on the same B resamples.

    Attributes:
        figures: method -> name of a figure -> float64 (B,).
        clusters: how many were drawn each time.
    """

    figures: Mapping[str, Mapping[str, Array]]
    clusters: int

    def interval(self, method: str, figure: str, confidence: float = CONFIDENCE) -> Interval:
        """Percentile interval of a method's figure."""
        return percentiles(self.figures[method][figure], confidence)

    def difference(self, method: str, baseline: str, figure: str) -> Array:
        """float64 (B,): method's figure minus the baseline's."""
        return self.figures[method][figure] - self.figures[baseline][figure]


def resample(tallies: Mapping[str, Tally], resamples: int = RESAMPLES, seed: int = 0) -> Resamples:
    """Resample clusters; the same draws for every method.

    Clusters with the same sums for every method are grouped, and a draw is a count per group: this
    has the same distribution as drawing clusters one by one, at a fraction of the work.

    Raises:
        ValueError: the methods' clusters differ, or there are fewer than 1 resample.
    """
    if resamples < 1:
        raise ValueError(f"The number of resamples is {resamples}; allowed: 1 or more.")
    methods = list(tallies)
    first = tallies[methods[0]]
    aligned = [_aligned(tallies[name], first.clusters) for name in methods]
    joint = np.concatenate(aligned, axis=1)
    kinds, sizes = np.unique(joint, axis=0, return_counts=True)
    total = len(first.clusters)
    rng = np.random.default_rng(seed)
    step = max(1, _MOST_VALUES // max(1, len(kinds)))
    parts: dict[str, list[dict[str, Array]]] = {name: [] for name in methods}
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        weights = rng.multinomial(total, sizes / total, size=count).astype(np.float64)
        column = 0
        for name, counts in zip(methods, aligned, strict=True):
            width = counts.shape[1]
            method_sums = kinds[:, column : column + width]
            column += width
            tally = tallies[name]
            of_kinds = Tally(("",) * len(kinds), tally.names, method_sums, tally.compute)
            parts[name].append(of_kinds.figures(weights))
    figures = {
        name: {
            key: np.concatenate([part[key] for part in method_figures]) for key in method_figures[0]
        }
        for name, method_figures in parts.items()
    }
    return Resamples(figures, total)


def percentiles(values: Array, confidence: float = CONFIDENCE) -> Interval:
    """The ends of the middle part of the draws; undefined figures (NaN) are left out."""
    kept = values[~np.isnan(values)]
    if not len(kept):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(kept, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def p_value(differences: Array) -> float:
    """Two-sided p of no difference: twice the share of draws on the other side of 0, never below
    2 / (B + 1). NaN if no draw is defined."""
    kept = differences[~np.isnan(differences)]
    if not len(kept):
        return float("nan")
    # Sums of floats may miss a tie by their last digit.
    near = 1e-12 * max(1.0, float(np.abs(kept).max()))
    below, above = int((kept <= near).sum()), int((kept >= -near).sum())
    return min(1.0, 2 * (1 + min(below, above)) / (len(kept) + 1))


def standard_error(differences: Array) -> float:
    """Standard deviation of the draws; NaN if fewer than two are defined."""
    kept = differences[~np.isnan(differences)]
    return float(np.std(kept, ddof=1)) if len(kept) > 1 else float("nan")


def _aligned(tally: Tally, clusters: Sequence[str]) -> Array:
    if tally.clusters == tuple(clusters):
        return tally.counts
    place = {name: i for i, name in enumerate(tally.clusters)}
    if set(place) != set(clusters):
        raise ValueError("The methods did not answer the same clusters of questions.")
    return tally.counts[[place[name] for name in clusters]]
