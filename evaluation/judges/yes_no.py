"""Yes or no.

Rules, in this order; the record names the one that decided (`rule`):

    leading    the first word is yes or no (or yeah, nope, 是, 有, 否, 没有, ...): what follows does
               not matter, so "yes, there is no other" is yes
    stated     "the answer is no", "Answer: yes", "答案是否"
    last       the last word is yes or no
    sentence   "there is no dog", "there is a dog", if the question names that thing; in both
    directions, so that no answer is favoured

Anything else ("I have no idea", "yes and no", "不知道"): extraction None, score 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sinkscope.evaluation.base import Judgement, Question
from sinkscope.evaluation.judges.text import plain, words

_YES, _NO = r"(?:yes|yeah|yep|yup)", r"(?:no|nope|nah)"
_NOT_AN_ANSWER = r"(?!\s+(?:idea|way to|clue|one|doubt|problem|longer)\b)"
# The longer ones first: 不是 is no 是.
_CHINESE_NO = ("没有", "不是", "不对", "不存在", "错误", "否", "不", "没", "错")
_CHINESE_YES = ("是的", "正确", "存在", "对的", "是", "对", "有")
_CHINESE_NEITHER = (
    *("是否", "是/否", "是或否", "有没有", "不知道", "不确定", "不清楚", "不能", "不好说", "没法"),
    "没办法",
)
_BOTH = re.compile(rf"(?:{_YES}|{_NO})\s*(?:and|or|/|,? or)\s*(?:{_YES}|{_NO})\b")
_STATED = re.compile(
    rf"(?:answer|答案)\s*(?:to [^.:]*)?(?:is|would be|should be|:|=|是|为)*\s*:?\s*"
    rf"(?:({_YES}\b)|({_NO}\b)|(否|不是|没有)|(是))"
)
_THERE = re.compile(
    r"there(?:'s| is| are| was| were|)"
    r"(?P<no> no\b| not\b(?: any\b| an?\b)?|n't\b(?: any\b| an?\b)?| isn't\b(?: an?\b| any\b)?"
    r"| aren't\b(?: any\b)?)?"
    r"(?: an?\b| some\b| one\b| two\b| three\b| several\b| many\b)?\s+(?P<thing>\w+(?:\s+\w+)?)"
)


@dataclass(frozen=True)
class YesNo:
    """Yes or no; `truth` is one of the two in any case."""

    name: str = "yes_no"

    def judge(self, answer: str, question: Question) -> Judgement:
        """1 if the answer is right, else 0.

        Raises:
            ValueError: the truth is neither yes nor no.
        """
        truth = true_word(question)
        word, rule = word_meant(answer, question.text)
        return Judgement(float(word == truth), word, {"rule": rule})


def true_word(question: Question) -> str:
    """ "yes" or "no".

    Raises:
        ValueError: the truth is neither.
    """
    word = str(question.truth).strip().rstrip(".").lower()
    if word not in ("yes", "no"):
        raise ValueError(
            f"Question {question.id}: its truth is {question.truth!r}; allowed: yes, no."
        )
    return word


def word_meant(answer: str, question: str = "") -> tuple[str | None, str]:
    """ "yes", "no" or None, and the rule that found it ("none" if none did)."""
    text = plain(answer).lower().lstrip("([<{ ")
    if not text:
        return None, "empty"
    if _BOTH.match(text) or text.startswith(_CHINESE_NEITHER):
        return None, "neither"
    if match := re.match(rf"(?:({_YES})|({_NO})){_NOT_AN_ANSWER}(?![\w'])", text):
        return ("yes" if match[1] else "no"), "leading"
    if text in ("y", "y.", "n", "n."):
        return ("yes" if text[0] == "y" else "no"), "leading"
    if text.startswith(_CHINESE_NO):
        return "no", "leading"
    if text.startswith(_CHINESE_YES):
        return "yes", "leading"
    stated = {("yes" if m[1] or m[4] else "no") for m in _STATED.finditer(text)}
    if len(stated) == 1:
        return stated.pop(), "stated"
    if match := re.search(rf"(?<![\w'])(?:({_YES})|({_NO}))[.!)\]]*$", text):
        return ("yes" if match[1] else "no"), "last"
    return _sentence(text, question)


def _sentence(text: str, question: str) -> tuple[str | None, str]:
    match = _THERE.match(text)
    if not match:
        return None, "none"
    asked = {_singular(word) for word in words(question)}
    if any(_singular(word) in asked for word in words(match["thing"])):
        return ("no" if match["no"] else "yes"), "sentence"
    return None, "none"


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
