"""VQA accuracy: agreement with ten annotators (Antol et al., ICCV 2015), after EvalAI's
normalisation.

For each annotator: min(1, matches among the other nine / 3); the score is the mean of these. Three
that agree with the answer give 0.9, four give 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from sinkscope.evaluation.base import Judgement, Question
from sinkscope.evaluation.judges.exact_match import texts
from sinkscope.evaluation.judges.vqa_words import ARTICLES, CONTRACTIONS, NUMBERS, PUNCTUATION

FEWEST = 4  # with fewer annotators no answer reaches 1
# The official pattern is (?!<=\d)(\.)(?!\d): the lookbehind is mistyped and holds everywhere, so
# what it takes out is each full stop without a digit after it, and re.sub's count is 32.
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_FULL_STOPS = 32
_COMMA_IN_NUMBER = re.compile(r"\d,\d")


def official_punctuation(text: str, full_stop: re.Pattern[str] = _FULL_STOP) -> str:
    """Signs next to a space are removed, others become a space; all are removed if a number has a
    comma."""
    cleaned = text
    number = _COMMA_IN_NUMBER.search(text) is not None
    for sign in PUNCTUATION:
        vanishes = number or f"{sign} " in text or f" {sign}" in text
        cleaned = cleaned.replace(sign, "" if vanishes else " ")
    return full_stop.sub("", cleaned, count=_MOST_FULL_STOPS)


def official_words(text: str) -> str:
    """Lower case, number words as digits, no articles, contractions with their apostrophe."""
    numbers = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in numbers if word not in ARTICLES)


def evalai(text: str) -> str:
    """EvalAI's normalisation, as the challenges of TextVQA and VizWiz have it
    (facebookresearch/mmf, `EvalAIAnswerProcessor`, commit c46b3b3)."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    return official_words(official_punctuation(text))


@dataclass(frozen=True)
class VqaAccuracy:
    """Leave-one-out accuracy; `truth` is the annotators' answers.

    Attributes:
        fewest: the least number of annotators of a question.
        normalise: what is done to answers and truths before they are compared.
    """

    name: str = "vqa_accuracy"
    fewest: int = FEWEST
    normalise: Callable[[str], str] = evalai

    def judge(self, answer: str, question: Question) -> Judgement:
        """From 0 to 1; `details["matches"]` is how many annotators agree.

        Raises:
            ValueError: there are too few annotators.
        """
        truths = [self.normalise(one) for one in texts(question)]
        if len(truths) < self.fewest:
            raise ValueError(
                f"Question {question.id} has {len(truths)} annotators' answers; {self.name} needs "
                f"{self.fewest} or more. For one right answer use exact_match or anls."
            )
        normalised = self.normalise(answer)
        matches = truths.count(normalised)
        others = [matches - (truth == normalised) for truth in truths]
        score = sum(min(1.0, count / 3) for count in others) / len(truths)
        return Judgement(score, normalised or None, {"matches": matches})
