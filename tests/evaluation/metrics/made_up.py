"""Judged answers for metrics."""

from __future__ import annotations

from typing import Any

from sinkscope.evaluation.base import Judged, Judgement


def judged(
    score: float,
    said: str | None = "x",
    truth: Any = "x",
    category: str = "",
    cluster: str = "",
    *,
    number: int = 0,
    details: dict[str, Any] | None = None,
) -> Judged:
    name = f"q{number}"
    return Judged(name, truth, category, cluster or name, Judgement(score, said, details or {}))


def right_or_wrong(scores: list[float], categories: list[str] | None = None) -> list[Judged]:
    """Independent questions with these scores."""
    names = categories or [""] * len(scores)
    return [
        judged(score, category=name, number=i)
        for i, (score, name) in enumerate(zip(scores, names, strict=True))
    ]


def yes_no(
    truth: str, said: str | None, subset: str = "", image: str = "", number: int = 0
) -> Judged:
    return judged(float(said == truth), said, truth, subset, image, number=number)
