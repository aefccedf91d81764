"""Difficult answers to multiple choice, and the option that they mean."""

from __future__ import annotations

import pytest

from sinkscope.evaluation.judges.option_letter import OptionLetter, option_meant
from tests.evaluation.judges.questions import ANIMALS, question

LETTERS = [
    ("B", "B", "alone"),
    ("b", "B", "alone"),
    ("(b)", "B", "alone"),
    ("B.", "B", "alone"),
    ("[B]", "B", "alone"),
    ("**B**", "B", "alone"),
    ('"B"', "B", "alone"),
    ("Ｂ", "B", "alone"),
    ("（B）", "B", "alone"),
    (" B\n", "B", "alone"),
    ("a dog", "B", "text"),
    ("A dog.", "B", "text"),
    ("a black dog", "C", "text"),
    ("B. a cat", "B", "leading"),  # the letter counts, not the text
    ("(C) blue", "C", "leading"),
    ("B. A cat", "B", "leading"),
    ("b) it is one", "B", "leading"),
    ("B: because it barks", "B", "leading"),
    ("B, since a cat would meow", "B", "leading"),
    ("B\nBecause it barks.", "B", "leading"),
    ("B，因为它在叫", "B", "leading"),
    ("The answer is B.", "B", "stated"),
    ("The correct answer is **(B)**. Here is why: A is wrong.", "B", "stated"),
    ("Answer: (C) blue", "C", "stated"),
    ("answer is b", "B", "stated"),
    ("答案是B。", "B", "stated"),
    ("我选B", "B", "stated"),
    ("正确选项为（C）", "C", "stated"),
    ("Option A shows a cat and option C a hat. The answer is C.", "C", "stated"),
    ("It has a tail, and it barks.\n\nB", "B", "last line"),
    ("Option B", "B", "named"),
    ("I would say option B fits", "B", "named"),
    ("It must be B then", "B", "single"),
    ("Not A but B", "B", "single"),
    ("A is correct", "A", "single"),
    ("It looks like a black dog to me", "C", "contains"),
    ("I see a dog there", "B", "contains"),
    ("A dog is in the picture", "B", "contains"),  # an article, not a letter
    ("It is not a cat, it is a dog", "B", "contains"),
]
NOTHING = [
    ("", "empty"),
    ("   \n", "empty"),
    ("A or B", "several letters"),
    ("A, B", "several letters"),
    ("(A) and (B)", "several letters"),
    ("A and C are both right", "several letters"),
    ("E", "unknown letter"),
    ("(F)", "unknown letter"),
    ("I'm sorry, I cannot see the image.", "none"),
    ("I cannot determine the answer.", "none"),
    ("It is not A", "none"),
    ("a cat or a dog", "several options"),
    ("(A) or (B)", "several letters"),
    ("The answer is (A) or (B).", "several letters"),
    ("Answer: A, B", "several letters"),
    ("A) or B)", "several letters"),
    ("是", "none"),
    ("The image shows a house.", "none"),
]


@pytest.mark.parametrize(("answer", "letter", "rule"), LETTERS)
def test_the_letter_and_the_rule_that_found_it(answer: str, letter: str, rule: str) -> None:
    assert option_meant(answer, ANIMALS) == (letter, rule)


@pytest.mark.parametrize(("answer", "rule"), NOTHING)
def test_answers_that_say_nothing_are_wrong(answer: str, rule: str) -> None:
    judgement = OptionLetter().judge(answer, question("A", options=ANIMALS))
    assert judgement.extraction is None
    assert judgement.score == 0
    assert judgement.details["rule"] == rule


@pytest.mark.parametrize("truth", ["B", "(B)", "b", "(b)", "a dog"])
def test_the_truth_may_be_a_letter_or_a_text(truth: str) -> None:
    judge = OptionLetter()
    assert judge.judge("(B) a dog", question(truth, options=ANIMALS)).score == 1
    assert judge.judge("C", question(truth, options=ANIMALS)).score == 0


@pytest.mark.parametrize("truth", ["E", "", "a horse", "AB"])
def test_a_truth_that_is_no_option_is_refused(truth: str) -> None:
    with pytest.raises(ValueError, match=r"allowed: A, B, C, D"):
        OptionLetter().judge("A", question(truth, options=ANIMALS))


def test_options_that_are_letters_themselves() -> None:
    """As in BLINK: an option is a point, and its text contains a letter."""
    points = (("A", "Point B"), ("B", "Point A"))
    assert option_meant("Point A", points) == ("B", "text")
    assert option_meant("A", points) == ("A", "alone")
    depth = (("A", "A is closer"), ("B", "B is closer"))
    assert option_meant("A is closer", depth) == ("A", "text")
    assert option_meant("Point B is closer", depth)[0] == "B"


def test_yes_and_no_as_options() -> None:
    both = (("A", "yes"), ("B", "no"))
    assert option_meant("Yes, there is no other.", both) == ("A", "contains")
    assert option_meant("no", both) == ("B", "text")


def test_the_pronoun_i_is_no_letter() -> None:
    nine = tuple((letter, "") for letter in "ABCDEFGHI")
    assert option_meant("I think it is H", nine)[0] == "H"
    assert option_meant("I", nine) == ("I", "alone")


def test_without_listed_options_any_letter_counts() -> None:
    assert OptionLetter().judge("The answer is (D).", question("(D)")).score == 1
