"""The older script's `string_match`. WARNING: it is wrong, and exists only for old figures.

It ignores case, punctuation and spaces, and accepts an answer that contains the truth anywhere. So
the truth "(A)", which becomes "a", is found in every answer with an "a" in it: "blank", "(B) a
cat". Its figures are too high, and differ between methods by how long their answers are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sinkscope.evaluation.base import Judgement, Question
from sinkscope.evaluation.judges.exact_match import texts

WARNING = (
    "substring-legacy takes every answer for right that has the truth's letters in it: the truth "
    "(A) is found in every answer with an a. Its figures are too high. Use them beside those of "
    "option_letter."
)


@dataclass(frozen=True)
class SubstringLegacy:
    """Right if the truth is a substring; see the warning above, which every record carries."""

    name: str = "substring-legacy"

    def judge(self, answer: str, question: Question) -> Judgement:
        """1 if the answer contains the truth, without case, punctuation and spaces, else 0."""
        squeezed = _squeezed(answer)
        # As in the file: the script's files may say "blue" where other judges expect a letter.
        worded = question.fields.get("truth")
        truths = [worded] if isinstance(worded, str) else texts(question)
        right = any(_squeezed(truth) in squeezed for truth in truths)
        return Judgement(float(right), squeezed or None, {"warning": WARNING})


def _squeezed(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.lower())
