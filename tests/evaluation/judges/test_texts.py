"""Judges of free text: VQA accuracy, exact match, ANLS, and the older script's."""

from __future__ import annotations

import pytest

from sinkscope.evaluation.judges.anls import Anls, edit_distance
from sinkscope.evaluation.judges.exact_match import ExactMatch
from sinkscope.evaluation.judges.substring_legacy import SubstringLegacy
from sinkscope.evaluation.judges.vqa_accuracy import VqaAccuracy, evalai
from tests.evaluation.judges.questions import question

# Computed by hand from the official rules.
NORMALISED = [
    ("The Dog", "dog"),
    ("A dog and a cat", "dog and cat"),
    ("two", "2"),
    ("none", "0"),
    ("Ten dogs", "10 dogs"),
    ("isnt", "isn't"),
    ("dont know", "don't know"),
    ("the man's hat", "man 's hat"),
    ("3.5", "3.5"),
    ("3.", "3"),  # the official lookbehind has a typo: a full stop after a digit is removed too
    ("yes.", "yes"),
    ("1,000", "1000"),
    ("red/blue", "red blue"),
    ("red / blue", "red blue"),
    ("t-shirt", "t shirt"),
    ("(left)", "left"),
    ("what?", "what"),
    ("a", ""),
    ("black\nand\twhite", "black and white"),
    ("somebody'd", "somebodyd"),  # as published
]


@pytest.mark.parametrize(("text", "normalised"), NORMALISED)
def test_evalai_normalisation(text: str, normalised: str) -> None:
    assert evalai(text) == normalised


@pytest.mark.parametrize(
    ("agree", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)
def test_vqa_accuracy_leaves_one_out(agree: int, score: float) -> None:
    """If one of ten agrees, nine subsets contain that answer: 9/10 x 1/3 = 0.3."""
    truths = ["red"] * agree + [f"colour {i}" for i in range(10 - agree)]
    judgement = VqaAccuracy().judge("Red.", question(truths))
    assert judgement.score == pytest.approx(score)
    assert judgement.details["matches"] == agree


def test_vqa_accuracy_needs_annotators() -> None:
    with pytest.raises(ValueError, match="has 3 annotators' answers; vqa_accuracy needs 4"):
        VqaAccuracy().judge("red", question(["red"] * 3))
    with pytest.raises(ValueError, match="allowed: a text or texts"):
        VqaAccuracy().judge("red", question(None))
    assert VqaAccuracy().judge("", question(["red"] * 10)).extraction is None


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("dog", True),
        ("Dog.", True),
        (" dog \n", True),
        ("**dog**", True),
        ("a dog", False),
        ("dogs", False),
        ("", False),
        (".", False),
    ],
)
def test_exact_match(answer: str, right: bool) -> None:
    assert ExactMatch().judge(answer, question("dog")).score == right


def test_exact_match_of_nothing_is_no_match() -> None:
    assert ExactMatch().judge("...", question("dog")).extraction is None
    with pytest.raises(ValueError, match="its truth is empty"):
        ExactMatch().judge("dog", question("?!"))
    assert ExactMatch().judge("cat", question(["dog", "cat"])).score == 1


def test_edit_distance() -> None:
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == 3
    assert edit_distance("abc", "abc") == 0


@pytest.mark.parametrize(
    ("answer", "truth", "score"),
    [
        ("Coca Cola", "coca  cola", 1.0),
        ("abcd", "abcx", 0.75),
        ("abcd", "abxx", 0.0),  # NL = 0.5 is not below the threshold
        ("", "abc", 0.0),
        ("abcd", ["zzzz", "abcx"], 0.75),
    ],
)
def test_anls(answer: str, truth: object, score: float) -> None:
    assert Anls().judge(answer, question(truth)).score == pytest.approx(score)


def test_the_older_judge_takes_substrings_and_says_so() -> None:
    judge = SubstringLegacy()
    for answer in ("A", "blank", "(B) a cat", "I cannot tell"):
        judgement = judge.judge(answer, question("(A)"))
        assert judgement.score == 1
        assert "too high" in judgement.details["warning"]
    assert judge.judge("(B)", question("(A)")).score == 0
    assert judge.judge("The LEFT-hand one", question("left hand")).score == 1
