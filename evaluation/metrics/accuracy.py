"""Mean scores: over all questions, and over categories with equal weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sinkscope.evaluation.base import Judged
from sinkscope.evaluation.metrics.tally import (
    Array,
    Tally,
    TallyMetric,
    ratio,
    summed,
    unparsable,
)


@dataclass(frozen=True)
class Accuracy(TallyMetric):
    """The mean score, and the share of unparsable answers, which count as wrong.

    Attributes:
        graded: whether scores lie between 0 and 1 (VQA accuracy, ANLS): then no item is right or
            wrong, and neither Wilson's interval nor McNemar's test applies.
    """

    name: str = "accuracy"
    graded: bool = False

    @property
    def independent(self) -> bool:
        return not self.graded

    def tally(self, judged: Sequence[Judged]) -> Tally:
        entries = [
            (one.cluster, name, value)
            for one in judged
            for name, value in (
                ("sum", one.judgement.score),
                ("n", 1.0),
                ("unparsable", unparsable(one)),
            )
        ]
        return summed(entries, _mean)


def _mean(of: Mapping[str, Array]) -> dict[str, Array]:
    return {
        "accuracy": ratio(of["sum"], of["n"]),
        "unparsable": ratio(of["unparsable"], of["n"]),
    }


@dataclass(frozen=True)
class MacroByCategory(TallyMetric):
    """Accuracy over all questions (micro), and the mean of the categories' accuracies (macro), in
    which a small category counts as much as a large one: BLINK's own figure is over its 14 parts.

    A category without a question in a resample is left out of that resample's mean.
    """

    name: str = "macro_by_category"

    @property
    def independent(self) -> bool:
        return True

    def tally(self, judged: Sequence[Judged]) -> Tally:
        categories = sorted({one.category for one in judged})
        entries = [
            (one.cluster, name, value)
            for one in judged
            for name, value in (
                (f"sum {one.category}", one.judgement.score),
                (f"n {one.category}", 1.0),
                ("unparsable", unparsable(one)),
            )
        ]

        def compute(of: Mapping[str, Array]) -> dict[str, Array]:
            sums = np.stack([of[f"sum {name}"] for name in categories])
            counts = np.stack([of[f"n {name}"] for name in categories])
            means, category_count = ratio(sums, counts, 0.0), (counts > 0).sum(0)
            return {
                "accuracy": ratio(sums.sum(0), counts.sum(0)),
                "macro_accuracy": ratio(means.sum(0), category_count.astype(np.float64)),
                "unparsable": ratio(of["unparsable"], counts.sum(0)),
            }

        return summed(entries, compute)
