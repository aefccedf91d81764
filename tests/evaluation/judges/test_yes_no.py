"""Tricky answers to yes/no questions."""

from __future__ import annotations

import pytest

from sinkscope.evaluation.judges.yes_no import YesNo, word_meant
from tests.evaluation.judges.questions import question

ASKED = "Is there a dog in the image?"

SAID = [
    ("Yes", "yes"),
    ("yes.", "yes"),
    ("YES!", "yes"),
    ("Yes, there is no other animal.", "yes"),
    ("yes, there is no ...", "yes"),
    ("**No**", "no"),
    ("No, there is a cat. Yes, a cat.", "no"),
    ("nope", "no"),
    ("Yeah", "yes"),
    ("(Yes)", "yes"),
    ("y", "yes"),
    ("N.", "no"),
    ("The answer is no.", "no"),
    ("Answer: Yes", "yes"),
    ("The answer to the question is yes", "yes"),
    ("I looked everywhere, so no", "no"),
    ("是", "yes"),
    ("是的。", "yes"),
    ("否", "no"),
    ("不是", "no"),
    ("没有", "no"),
    ("有", "yes"),
    ("答案是：否", "no"),
    ("There is no dog in the image.", "no"),
    ("There isn't a dog.", "no"),
    ("There are no dogs.", "no"),
    ("There is a dog.", "yes"),
    ("There are two dogs in it", "yes"),
]
NOTHING = [
    *("", "  ", "I cannot see the image.", "I have no idea.", "No idea", "Yes or no", "yes/no"),
    *(
        "There is a cat.",
        "There is no cat.",
        "The image shows a street.",
        "Not",
        "Noise",
        "yesterday",
    ),
    *("是否", "不知道", "不确定", "A", "unknown"),
]


@pytest.mark.parametrize(("answer", "word"), SAID)
def test_what_is_said(answer: str, word: str) -> None:
    assert word_meant(answer, ASKED)[0] == word


@pytest.mark.parametrize("answer", NOTHING)
def test_what_says_nothing_is_wrong_whatever_the_truth(answer: str) -> None:
    for truth in ("yes", "no"):
        judgement = YesNo().judge(answer, question(truth, ASKED))
        assert judgement.extraction is None
        assert judgement.score == 0


def test_sentences_count_both_ways() -> None:
    """A rule only for "there is no" would be biased towards no."""
    for thing in ("dog", "dogs"):
        assert word_meant(f"There are {thing}", ASKED)[0] == "yes"
        assert word_meant(f"There are no {thing}", ASKED)[0] == "no"


def test_truths() -> None:
    assert YesNo().judge("yes", question("Yes")).score == 1
    assert YesNo().judge("yes", question("No ")).score == 0
    with pytest.raises(ValueError, match="allowed: yes, no"):
        YesNo().judge("yes", question("maybe"))
