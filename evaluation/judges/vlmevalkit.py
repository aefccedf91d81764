"""Judges that extract as VLMEvalKit does without an LLM ("exact_matching"), including its errors.

Written from the behaviour of `vlmeval/utils/matching_util.py`, `dataset/utils/yorn.py` and
`dataset/utils/vqa_eval.py` at commit e8e78f0. Where it would ask its judge model, the answer counts
as wrong, as it does in VLMEvalKit without a key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sinkscope.evaluation.base import Judgement, Question
from sinkscope.evaluation.judges.exact_match import texts
from sinkscope.evaluation.judges.option_letter import true_letter
from sinkscope.evaluation.judges.vqa_accuracy import (
    VqaAccuracy,
    official_punctuation,
    official_words,
)
from sinkscope.evaluation.judges.yes_no import true_word

_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_STATED = re.compile(r"(?:correct\s+)?answer\s+is\s+\**([ABCD])\**", re.IGNORECASE)
# Unlike the official pattern this keeps "3." as it is.
_FULL_STOP = re.compile(r"(?<!\d)\.(?!\d)")


@dataclass(frozen=True)
class KitOption:
    """Takes the only option letter among the words, if it is one of the last five words; else
    "answer is X"; else the only option whose text is in the answer.

    The article "A" counts as a letter: "A dog is in front of B" has two, "A dog" gives A.
    """

    name: str = "vlmevalkit-option"

    def judge(self, answer: str, question: Question) -> Judgement:
        """1 if the letter is right."""
        options = {letter.upper(): text for letter, text in question.options}
        letter = _option(answer, options) or _text(answer, options)
        return Judgement(float(letter == true_letter(question)), letter)


def _option(answer: str, options: dict[str, str]) -> str | None:
    if any(refusal in answer for refusal in _REFUSALS):
        return "Z"
    split = re.sub(r"[.()\[\],:;!*#{}]", " ", answer).split()
    standing = [letter for letter in options if letter in split]
    if len(standing) == 1 and split.index(standing[0]) > len(split) - 5:
        return standing[0]
    if not standing and "Z" in split:
        return "Z"
    match = _STATED.search(answer)
    return match[1].upper() if match and match[1].upper() in options else None


def _text(answer: str, options: dict[str, str]) -> str | None:
    lowered = answer.lower()
    if len(lowered) > 2 * sum(len(text) for text in options.values()):
        return None
    letters = [letter for letter, text in options.items() if text.lower() in lowered]
    return letters[0] if len(letters) == 1 else None


@dataclass(frozen=True)
class KitYesNo:
    """Takes yes or no as a word, unless both occur: "Yes, there is no other" is neither."""

    name: str = "vlmevalkit-yes-no"

    def judge(self, answer: str, question: Question) -> Judgement:
        """1 if that word is the truth."""
        answer_words = official_punctuation(answer.lower(), _FULL_STOP).split()
        words = [word for word in ("yes", "no") if word in answer_words]
        word = words[0] if len(words) == 1 else None
        return Judgement(float(word == true_word(question)), word)


@dataclass(frozen=True)
class KitExactMatch:
    """GQA: the same text, except for case and surrounding spaces: "Red." is not "red"."""

    name: str = "vlmevalkit-exact-match"

    def judge(self, answer: str, question: Question) -> Judgement:
        """1 if it is the truth."""
        text = answer.strip().lower()
        return Judgement(
            float(text in [one.strip().lower() for one in texts(question)]), text or None
        )


def _kit_normalised(text: str) -> str:
    text = text.replace("\n", " ").replace("\t", " ").strip()
    return official_words(official_punctuation(text, _FULL_STOP))


KIT_VQA = VqaAccuracy("vlmevalkit-vqa", fewest=1, normalise=_kit_normalised)
"""TextVQA: leave-one-out on its own normalisation, in which "3." is not "3"."""
