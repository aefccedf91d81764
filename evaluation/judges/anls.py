"""ANLS, average normalised Levenshtein similarity (Biten et al., Scene Text VQA, ICCV 2019, eq.
1)."""

from __future__ import annotations

from dataclasses import dataclass

from sinkscope.evaluation.base import Judgement, Question
from sinkscope.evaluation.judges.exact_match import texts


@dataclass(frozen=True)
class Anls:
    """1 - NL to the nearest of the truths, and 0 where NL is `threshold` or more.

    NL is the edit distance divided by the length of the longer text, both in lower case and with
    single spaces. `truth` is a text or several.
    """

    name: str = "anls"
    threshold: float = 0.5

    def judge(self, answer: str, question: Question) -> Judgement:
        """From 0 to 1.

        Raises:
            ValueError: the truth is not text.
        """
        cleaned = _clean(answer)
        distance = min(normalised_distance(cleaned, _clean(truth)) for truth in texts(question))
        score = 0.0 if distance >= self.threshold else 1.0 - distance
        return Judgement(score, cleaned or None, {"distance": distance})


def normalised_distance(one: str, other: str) -> float:
    """Edit distance divided by the longer length, from 0 to 1; 0 for two empty texts."""
    longer = max(len(one), len(other))
    return edit_distance(one, other) / longer if longer else 0.0


def edit_distance(one: str, other: str) -> int:
    """Levenshtein: insertions, deletions and replacements, each 1."""
    before = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        now = [i]
        for j, b in enumerate(other, 1):
            now.append(min(before[j] + 1, now[j - 1] + 1, before[j - 1] + (a != b)))
        before = now
    return before[-1]


def _clean(text: str) -> str:
    return " ".join(text.lower().split())
