"""CHAIR (Rohrbach et al., EMNLP 2018): hallucinated objects in captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from sinkscope.evaluation.base import Judged
from sinkscope.evaluation.metrics.tally import Array, Tally, TallyMetric, ratio, summed


@dataclass(frozen=True)
class Chair(TallyMetric):
    """Of captions judged by `judges.chair`:

        chair_s     captions with a hallucinated object / captions
        chair_i     hallucinated mentions / mentions
        recall      objects of the images that are mentioned / objects of the images
        mentions    mentions per caption: shorter captions hallucinate less

    Less is better in the first two.
    """

    name: str = "chair"
    lower_is_better: ClassVar[tuple[str, ...]] = ("chair_s", "chair_i")
    points: ClassVar[tuple[str, ...]] = ("mentions",)

    def tally(self, judged: Sequence[Judged]) -> Tally:
        return summed((entry for one in judged for entry in _entries(one)), _figures)


def _entries(one: Judged) -> list[tuple[str, str, float]]:
    details = one.judgement.details
    if "mentioned" not in details or "hallucinated" not in details:
        raise ValueError(
            f"Question {one.id} was not judged by chair, which the metric chair needs."
        )
    mentioned, hallucinated, truth = details["mentioned"], details["hallucinated"], set(one.truth)
    sums = {
        "captions": 1,
        "with one": bool(hallucinated),
        "mentions": len(mentioned),
        "hallucinated": len(hallucinated),
        "objects": len(truth),
        "found": len(truth & set(mentioned)),
    }
    return [(one.cluster, name, float(value)) for name, value in sums.items()]


def _figures(of: Mapping[str, Array]) -> dict[str, Array]:
    return {
        "chair_s": ratio(of["with one"], of["captions"]),
        "chair_i": ratio(of["hallucinated"], of["mentions"]),
        "recall": ratio(of["found"], of["objects"]),
        "mentions": ratio(of["mentions"], of["captions"]),
    }
