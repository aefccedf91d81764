"""Metrics as sums over clusters, so that a bootstrap can compute the whole metric thousands of
times.

Every metric here is a function of sums: right answers and questions, true and false positives by
subset, images with both answers right. A `Tally` has these sums for each cluster, so a resample of
clusters is a product of a matrix of weights with them, and the metric is computed on the result.
The same function gives the run's own figures.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from sinkscope.evaluation.base import Judged

Array = npt.NDArray[np.float64]
Figures = Callable[[Mapping[str, Array]], dict[str, Array]]


@dataclass(frozen=True)
class Tally:
    """Sums of C clusters.

    Attributes:
        clusters: their names, in the order of their first question.
        names: of the K sums.
        counts: float64 (C, K).
        compute: name of a sum -> its totals, float64 of any shape S, to name of a figure -> float64
            S; NaN if a figure is not defined.
    """

    clusters: tuple[str, ...]
    names: tuple[str, ...]
    counts: Array
    compute: Figures

    def figures(self, weights: Array | None = None) -> dict[str, Array]:
        """The figures of this sample, float64 (), or of B resamples, float64 (B,).

        Args:
            weights: float64 (B, C): how often each cluster is in each resample.
        """
        totals = self.counts.sum(0) if weights is None else weights @ self.counts
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.compute({name: totals[..., k] for k, name in enumerate(self.names)})


class TallyMetric(ABC):
    """A metric by sums over clusters."""

    name: str

    lower_is_better: ClassVar[tuple[str, ...]] = ()
    """Figures for which lower is better."""

    points: ClassVar[tuple[str, ...]] = ()
    """Figures that are not shares from 0 to 1; "*" for all."""

    @property
    def independent(self) -> bool:
        """Whether the first figure is a plain mean over questions; see `base.Metric`."""
        return False

    @abstractmethod
    def tally(self, judged: Sequence[Judged]) -> Tally:
        """The sums of these answers.

        Raises:
            ValueError: there are none, or an answer does not fit this metric.
        """

    def figures(self, judged: Sequence[Judged]) -> dict[str, float]:
        """Name of a figure -> its value; NaN if it is not defined.

        Raises:
            ValueError: as `tally`.
        """
        return {name: float(value) for name, value in self.tally(judged).figures().items()}


def summed(entries: Iterable[tuple[str, str, float]], compute: Figures) -> Tally:
    """A tally of (cluster, name of a sum, value).

    Raises:
        ValueError: there is no entry.
    """
    clusters: dict[str, int] = {}
    names: dict[str, int] = {}
    kept = [
        (clusters.setdefault(c, len(clusters)), names.setdefault(n, len(names)), value)
        for c, n, value in entries
    ]
    if not kept:
        raise ValueError("No answer was judged, so there is no figure.")
    counts = np.zeros((len(clusters), len(names)))
    rows, columns, values = zip(*kept, strict=True)
    np.add.at(counts, (list(rows), list(columns)), list(values))
    return Tally(tuple(clusters), tuple(names), counts, compute)


def ratio(above: Array, below: Array, undefined: float = np.nan) -> Array:
    """above / below, and `undefined` where below is 0."""
    return np.where(below > 0, above / np.where(below > 0, below, 1.0), undefined)


def unparsable(one: Judged) -> float:
    """1 if the answer could not be parsed, else 0."""
    return float(one.judgement.extraction is None)
