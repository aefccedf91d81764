"""Questions that come in pairs: MMVP's pairs of images, MME's two questions per image.

A cluster is a pair. A pair with a missing answer (`--limit`, a failed question) counts in no figure
of pairs; the number of such pairs is reported as a figure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

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

PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark"),
    *("artwork", "OCR"),
)
COGNITION = (
    *("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
)


@dataclass(frozen=True)
class PairAccuracy(TallyMetric):
    """MMVP (Tong et al., CVPR 2024): pairs of which both are right; also the accuracy of single
    questions, complete pair or not."""

    name: str = "pair_accuracy"
    points: ClassVar[tuple[str, ...]] = ("incomplete_pairs",)

    def tally(self, judged: Sequence[Judged]) -> Tally:
        entries = [
            (one.cluster, name, value)
            for one in judged
            for name, value in (
                ("right", one.judgement.score),
                ("n", 1.0),
                ("unparsable", unparsable(one)),
            )
        ]
        for _, cluster, _, both in _pairs(judged):
            entries += [
                (cluster, "pairs", float(both is not None)),
                (cluster, "both", both or 0.0),
                (cluster, "incomplete", float(both is None)),
            ]
        return summed(entries, _pair_figures)


def _pair_figures(of: Mapping[str, Array]) -> dict[str, Array]:
    return {
        "pair_accuracy": ratio(of["both"], of["pairs"]),
        "accuracy": ratio(of["right"], of["n"]),
        "unparsable": ratio(of["unparsable"], of["n"]),
        "incomplete_pairs": of["incomplete"],
    }


@dataclass(frozen=True)
class Mme(TallyMetric):
    """MME's official score (Fu et al., 2023): in each category accuracy x 100, plus accuracy+ x
    100, the share of images of which both answers are right: 200 at most. Perception is the sum of
    ten categories (2000), cognition of four (800), total of both; of those that the run has. An
    unparsable answer is wrong.
    """

    name: str = "mme"
    points: ClassVar[tuple[str, ...]] = ("*",)

    def tally(self, judged: Sequence[Judged]) -> Tally:
        categories = {one.category for one in judged}
        if unknown := sorted(categories - {*PERCEPTION, *COGNITION}):
            raise ValueError(
                f"MME has no category {', '.join(map(repr, unknown))}; allowed: "
                f"{', '.join((*PERCEPTION, *COGNITION))}."
            )
        entries = []
        for category, cluster, right, both in _pairs(judged):
            entries.append((cluster, "incomplete", float(both is None)))
            if both is not None:
                entries += [
                    (cluster, f"right {category}", right),
                    (cluster, f"images {category}", 1.0),
                    (cluster, f"both {category}", both),
                ]
        present = [name for name in (*PERCEPTION, *COGNITION) if name in categories]

        def compute(of: Mapping[str, Array]) -> dict[str, Array]:
            zero = np.zeros_like(of["incomplete"])
            scores = {}
            for name in present:
                images = of.get(f"images {name}", zero)
                right, both = of.get(f"right {name}", zero), of.get(f"both {name}", zero)
                scores[name] = 100 * ratio(right, 2 * images) + 100 * ratio(both, images)
            sums = {
                part: sum((_or_zero(scores[n]) for n in names if n in scores), start=zero)
                for part, names in (("perception", PERCEPTION), ("cognition", COGNITION))
            }
            total = sums["perception"] + sums["cognition"]
            return {"total": total, **sums, **scores, "incomplete_pairs": of["incomplete"]}

        return summed(entries, compute)


def _pairs(judged: Sequence[Judged]) -> Iterator[tuple[str, str, float, float | None]]:
    """(category, cluster, how many are right, 1 where both are and 0 where not, None where an
    answer is missing)."""
    members: dict[tuple[str, str], list[Judged]] = defaultdict(list)
    for one in judged:
        members[one.category, one.cluster].append(one)
    for (category, cluster), entries in members.items():
        if len(entries) > 2:
            raise ValueError(f"The pair {cluster} has {len(entries)} answers; allowed: 2.")
        right = sum(one.judgement.score for one in entries)
        yield category, cluster, right, float(right == 2) if len(entries) == 2 else None


def _or_zero(values: Array) -> Array:
    return np.where(np.isnan(values), 0.0, values)
