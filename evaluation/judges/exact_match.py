"""Exact match without case and punctuation: GQA's score as both harnesses compute it, repaired."""

from __future__ import annotations

from dataclasses import dataclass

from sinkscope.evaluation.base import Judgement, Question
from sinkscope.evaluation.judges.text import plain, without_punctuation


@dataclass(frozen=True)
class ExactMatch:
    """Right if the whole answer is the truth; `truth` is a text, or several of which one is enough.

    Compared without case and punctuation, and with single spaces. Articles count: "a dog" is not
    "dog". An answer that becomes empty has no extraction and is wrong.
    """

    name: str = "exact_match"

    def judge(self, answer: str, question: Question) -> Judgement:
        """1 if they are the same, else 0.

        Raises:
            ValueError: the truth is empty.
        """
        extraction = normalised(answer)
        truths = [normalised(one) for one in texts(question)]
        if not all(truths):
            raise ValueError(f"Question {question.id}: its truth is empty.")
        return Judgement(float(extraction in truths), extraction or None)


def normalised(text: str) -> str:
    """Lower case, no punctuation, single spaces."""
    return " ".join(without_punctuation(plain(text)).casefold().split())


def texts(question: Question) -> list[str]:
    """The question's truth as a list of texts.

    Raises:
        ValueError: it is neither text nor a list of texts, or the list is empty.
    """
    truth = question.truth
    if isinstance(truth, str | int | float) and not isinstance(truth, bool):
        return [str(truth)]
    if isinstance(truth, list | tuple) and truth and all(isinstance(one, str) for one in truth):
        return list(truth)
    raise ValueError(f"Question {question.id}: its truth is {truth!r}; allowed: a text or texts.")
