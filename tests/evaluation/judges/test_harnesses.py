"""The harnesses' own extraction: where and how it differs from ours. Expected values were read from
their code at the commits that the modules name."""

from __future__ import annotations

import pytest

from sinkscope.evaluation.base import Judge
from sinkscope.evaluation.judges.listed import JUDGES, judge_named
from sinkscope.evaluation.judges.option_letter import OptionLetter
from sinkscope.evaluation.judges.yes_no import YesNo
from tests.evaluation.judges.questions import ANIMALS, question

# answer, the judge's letter, ours
BLINK = [("The answer is B", "T", "B"), ("(b)", "B", "B"), ("B. a cat", "B", "B"), ("", None, None)]
MMVP = [
    ("The answer is B", "B", "B"),
    ("(B)", "B", "B"),
    ("I see the sea and a cat", "A", "A"),  # theirs by "sea", ours by the option's text
    ("It must be nothing", None, "D"),
    ("a dog", "A", "B"),
]
SAT = [("B.", "b", "B"), ("The answer is B", "the", "B"), ("B\nsince", "b\nsince", "B")]
KIT = [
    ("The answer is B.", "B", "B"),
    ("A dog", "A", "B"),  # an article is a letter
    ("A or C", None, None),
    ("a dog", "B", "B"),
    ("It shows a black dog", "C", "C"),
    ("B is the right one, as everybody here can see", None, "B"),  # not among the last five words
    ("Cannot determine the answer", "Z", None),
]


@pytest.mark.parametrize(
    ("name", "cases"),
    [
        ("lmms-eval-blink", BLINK),
        ("lmms-eval-mmvp", MMVP),
        ("lmms-eval-sat", SAT),
        ("vlmevalkit-option", KIT),
    ],
)
def test_letters(name: str, cases: list[tuple[str, str | None, str | None]]) -> None:
    judge, ours = judge_named(name), OptionLetter()
    for answer, theirs, fixed in cases:
        asked = question("B", options=ANIMALS)
        assert judge.judge(answer, asked).extraction == theirs, answer
        assert judge.judge(answer, asked).score == (theirs in ("B", "b")), answer
        assert ours.judge(answer, asked).extraction == fixed, answer


YES_NO = [
    # answer, lmms-eval's POPE, its MME, VLMEvalKit's, ours
    ("yes", "yes", "yes", "yes", "yes"),
    ("Yes.", None, "yes", "yes", "yes"),
    (" NO ", "no", "no", "no", "no"),
    ("Yes, there is no other.", None, "yes", None, "yes"),
    ("The answer is yes", None, None, "yes", "yes"),
    ("Not at all", None, "no", None, None),
    ("Noise", None, "no", None, None),
    ("y", None, "yes", None, "yes"),
    ("", None, None, None, None),
    ("I have no idea", None, None, "no", None),
]


@pytest.mark.parametrize(("answer", "pope", "mme", "kit", "ours"), YES_NO)
def test_yes_and_no(
    answer: str, pope: str | None, mme: str | None, kit: str | None, ours: str | None
) -> None:
    asked = question("Yes", "Is it a dog?")
    judges: list[tuple[Judge, str | None]] = [
        (judge_named("lmms-eval-pope"), pope),
        (judge_named("lmms-eval-mme"), mme),
        (judge_named("vlmevalkit-yes-no"), kit),
        (YesNo(), ours),
    ]
    for judge, word in judges:
        judgement = judge.judge(answer, asked)
        assert judgement.extraction == word, judge.name
        assert judgement.score == (word == "yes"), judge.name


def test_exact_match() -> None:
    asked = question("red")
    for answer, lmms, kit in [("Red.", 1, 0), ("red ", 0, 1), ("RED", 1, 1), ("a red", 0, 0)]:
        assert judge_named("lmms-eval-exact-match").judge(answer, asked).score == lmms, answer
        assert judge_named("vlmevalkit-exact-match").judge(answer, asked).score == kit, answer
        assert judge_named("exact_match").judge(answer, asked).score == (answer != "a red")


def test_vqa() -> None:
    """VLMEvalKit keeps the full stop after a number."""
    asked = question(["3"] * 10)
    assert judge_named("vlmevalkit-vqa").judge("3.", asked).score == 0
    assert judge_named("lmms-eval-vqa").judge("3.", asked).score == 1
    assert judge_named("lmms-eval-vqa").judge("3", question(["3"])).score == 0


def test_sat_finds_options_that_the_question_lists() -> None:
    asked = question("B", "Which way?\nA. left\nB. right")
    assert judge_named("lmms-eval-sat").judge("To the right!", asked).score == 1


def test_every_judge_has_its_own_name_and_an_unknown_one_lists_them() -> None:
    names = [judge.name for judge in JUDGES]
    assert len(set(names)) == len(names)
    with pytest.raises(ValueError, match="'gpt'; allowed: option_letter, yes_no"):
        judge_named("gpt")
