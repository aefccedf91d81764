"""Judges that extract as lmms-eval 0.7.2 does, including its errors, for comparable figures.

Written from the behaviour of `lmms_eval/tasks/*/utils.py` at commit 75571cf. Each docstring says
what is wrong with it.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass

from sinkscope.evaluation.base import Judgement, Question
from sinkscope.evaluation.judges.option_letter import true_letter
from sinkscope.evaluation.judges.vqa_accuracy import VqaAccuracy
from sinkscope.evaluation.judges.yes_no import true_word

_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class LmmsBlink:
    """The first letter of the answer, whatever it is. "The answer is B" gives T, and is wrong."""

    name: str = "lmms-eval-blink"

    def judge(self, answer: str, question: Question) -> Judgement:
        """1 if that letter is right."""
        match = re.match(r"[(\s]*([A-Za-z])", answer.strip())
        letter = match[1].upper() if match else None
        return Judgement(float(letter == true_letter(question)), letter)


# In order: the letter alone, the letter in front, "answer is", "option", any A or B that ends a
# word.
_MMVP = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"^\s*\(?([AB])\)?\.?\s*$",
        r"^\s*\(?([AB])\)?[.\s]",
        r"answer\s+is\s+\(?([AB])\)?",
        r"option\s+\(?([AB])\)?",
        r"\(?([AB])\)?(?:\s|$)",
    )
)


@dataclass(frozen=True)
class LmmsMmvp:
    """Patterns for A and B without word boundaries: "a cat" gives A, and so does "the sea"."""

    name: str = "lmms-eval-mmvp"

    def judge(self, answer: str, question: Question) -> Judgement:
        """1 if the letter found is right."""
        text = answer.strip()
        match = next((m for p in _MMVP if (m := p.search(text))), None)
        first = text[:1].upper()
        letter = match[1].upper() if match else (first if first in ("A", "B") else None)
        return Judgement(float(letter == true_letter(question)), letter)


@dataclass(frozen=True)
class LmmsSat:
    """Compares the first word, without punctuation, as a whole: "The answer is B" and "B\\nsince"
    are wrong. Options written into the question as "A. text" are looked for as a text first."""

    name: str = "lmms-eval-sat"

    def judge(self, answer: str, question: Question) -> Judgement:
        """1 if that word is the right letter, in any case."""
        cleaned = re.sub(r"[^\w\s]", "", answer).strip()
        texts = [option.strip() for option in re.findall(r"\b[A-Z]\.\s+([^\n]*)", question.text)]
        letters = {option: chr(ord("A") + i) for i, option in enumerate(texts)}
        match = re.search("|".join(re.escape(option) for option in texts), cleaned)
        if match and match.group() in letters:
            cleaned = letters[match.group()]
        word = cleaned.split(" ")[0].lower()
        return Judgement(float(word == true_letter(question).lower()), word or None)


@dataclass(frozen=True)
class LmmsPope:
    """The whole answer must be "yes" or "no": "Yes." is wrong, and counts as neither."""

    name: str = "lmms-eval-pope"

    def judge(self, answer: str, question: Question) -> Judgement:
        """1 if it is the truth, without case and blanks around it."""
        text = answer.lower().strip()
        word = text if text in ("yes", "no") else None
        return Judgement(float(text == true_word(question)), word)


@dataclass(frozen=True)
class LmmsMme:
    """Looks for yes or no in the first four letters, without full stops: "Noise" is no, "Not" too;
    "The answer is yes" is neither, and wrong."""

    name: str = "lmms-eval-mme"

    def judge(self, answer: str, question: Question) -> Judgement:
        """1 if the word found is the truth."""
        text = answer.lower().strip().replace(".", "")
        front = text[:4]
        if len(text) == 1:
            word = {"y": "yes", "n": "no"}.get(text)
        else:
            word = "yes" if "yes" in front else "no" if "no" in front else None
        return Judgement(float(word == true_word(question)), word)


@dataclass(frozen=True)
class LmmsExactMatch:
    """GQA: ignores case and punctuation, but not white space: "red " is not "red"."""

    name: str = "lmms-eval-exact-match"

    def judge(self, answer: str, question: Question) -> Judgement:
        """1 if both are the same."""
        text = answer.lower().translate(_PUNCTUATION)
        truth = str(question.truth).lower().translate(_PUNCTUATION)
        return Judgement(float(text == truth), text or None)


LMMS_VQA = VqaAccuracy("lmms-eval-vqa", fewest=1)
"""As ours; but one annotator is enough, and then every answer is wrong."""
