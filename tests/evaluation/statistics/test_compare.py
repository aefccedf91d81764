"""Which test is used, and how a difference is described."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sinkscope.evaluation.base import Judged
from sinkscope.evaluation.metrics.accuracy import Accuracy, MacroByCategory
from sinkscope.evaluation.metrics.chair import Chair
from sinkscope.evaluation.metrics.pairs import Mme
from sinkscope.evaluation.metrics.pope import Pope
from sinkscope.evaluation.statistics.compare import (
    BETTER,
    EXACT,
    NONE_SHOWN,
    RESAMPLED,
    UNDEFINED,
    WORSE,
    compare,
)
from sinkscope.evaluation.statistics.intervals import mcnemar, wilson
from sinkscope.evaluation.statistics.settings import CompareSettings
from tests.evaluation.metrics.made_up import judged, right_or_wrong, yes_no

# 100 questions: 12 fixed, 2 broken, 50 right in both.
BASE = [1.0] * 50 + [0.0] * 12 + [1.0] * 2 + [0.0] * 36
BETTER_ONE = [1.0] * 50 + [1.0] * 12 + [0.0] * 2 + [0.0] * 36


def test_right_or_wrong_items_get_wilson_and_mcnemar() -> None:
    found = compare(
        Accuracy(), {"default": right_or_wrong(BASE), "var": right_or_wrong(BETTER_ONE)}
    )
    (one,) = found.differences
    assert (one.test, one.fixed, one.broken, one.same) == (EXACT, 12, 2, 86)
    assert one.difference == pytest.approx(0.1)
    assert one.p == one.adjusted == pytest.approx(mcnemar(12, 2))
    assert one.verdict == BETTER
    first = found.estimates["default"][0]
    assert (first.value, first.how, first.interval) == (0.52, "Wilson", wilson(52, 100))
    assert one.interval.low < 0.1 < one.interval.high


def test_a_loss_is_said_as_plainly_as_a_gain() -> None:
    found = compare(
        Accuracy(), {"default": right_or_wrong(BETTER_ONE), "var": right_or_wrong(BASE)}
    )
    assert found.differences[0].verdict == WORSE


def test_nothing_shown_and_what_would_have_been() -> None:
    found = compare(Accuracy(), {"default": right_or_wrong(BASE), "var": right_or_wrong(BASE)})
    (one,) = found.differences
    assert (one.verdict, one.p) == (NONE_SHOWN, 1.0)
    assert one.detectable == pytest.approx(0.1, abs=0.05)


def test_shared_images_and_graded_scores_get_the_bootstrap() -> None:
    shared = [judged(s, cluster=f"c{i // 2}", number=i) for i, s in enumerate(BASE)]
    graded = right_or_wrong([0.3, 0.6, 1.0] * 10)
    for metric, given in (
        (Accuracy(), shared),
        (Accuracy(), graded),
        (Accuracy(graded=True), right_or_wrong(BASE)),
    ):
        found = compare(metric, {"default": given, "var": given}, CompareSettings(resamples=50))
        assert found.differences[0].test == RESAMPLED
        assert found.estimates["var"][0].how == "bootstrap"


def test_methods_of_a_sweep_are_corrected_together() -> None:
    answers = {"default": right_or_wrong(BASE)}
    for i in range(5):
        answers[f"var keep=0.{i}"] = right_or_wrong(BETTER_ONE)
    found = compare(Accuracy(), answers)
    p = mcnemar(12, 2)
    assert [one.adjusted for one in found.differences] == pytest.approx([5 * p] * 5)
    assert p < 0.05 < 5 * p
    assert {one.verdict for one in found.differences} == {NONE_SHOWN}


def test_a_control_is_compared_with_its_method() -> None:
    answers = {"default": right_or_wrong(BASE), "var": right_or_wrong(BETTER_ONE)}
    answers["var-random"] = right_or_wrong(BETTER_ONE)
    found = compare(Accuracy(), answers, CompareSettings(controls=(("var", "var-random"),)))
    pairs = [(one.method, one.against, one.verdict) for one in found.differences]
    assert pairs[2] == ("var", "var-random", NONE_SHOWN)
    assert len(pairs) == 3


def test_questions_without_an_answer_are_left_out_of_all_and_named() -> None:
    short = right_or_wrong(BETTER_ONE)[:-3]
    found = compare(Accuracy(), {"default": right_or_wrong(BASE), "var": short})
    assert len(found.questions) == 97
    assert found.left_out == {f"q{i}": ("var",) for i in (97, 98, 99)}
    assert found.estimates["default"][0].value == pytest.approx(52 / 97)


def test_categories_are_a_family_of_their_own() -> None:
    names = ["a"] * 64 + ["b"] * 36
    answers = {"default": right_or_wrong(BASE, names), "var": right_or_wrong(BETTER_ONE, names)}
    found = compare(MacroByCategory(), answers)
    in_a, in_b = found.categories
    assert (in_a.category, in_a.fixed, in_a.broken, in_a.verdict) == ("a", 12, 2, BETTER)
    assert (in_b.category, in_b.p, in_b.verdict) == ("b", 1.0, NONE_SHOWN)
    assert in_a.adjusted == pytest.approx(2 * in_a.p)
    assert found.by_category["b"]["var"].value == 0
    macro = next(one for one in found.others if one.figure == "macro_accuracy")
    assert macro.test == RESAMPLED and macro.verdict == "" and math.isnan(macro.p)


def test_of_hallucinations_fewer_are_better() -> None:
    def captions(hallucinated: int) -> list[Judged]:
        return [
            judged(
                float(i >= hallucinated),
                truth=["dog"],
                number=i,
                details={
                    "mentioned": ["dog", "cat"] if i < hallucinated else ["dog"],
                    "hallucinated": ["cat"] if i < hallucinated else [],
                },
            )
            for i in range(60)
        ]

    found = compare(Chair(), {"default": captions(40), "var": captions(10)})
    assert (found.main, found.differences[0].verdict) == ("chair_s", BETTER)
    assert found.differences[0].difference == pytest.approx(-0.5)
    assert found.differences[0].fixed == 30
    worse = compare(Chair(), {"default": captions(10), "var": captions(40)})
    assert worse.differences[0].verdict == WORSE


def test_pope_and_mme_go_through_the_whole_metric() -> None:
    rng = np.random.default_rng(0)
    said = rng.choice(["yes", "no"], 120)
    pope = [
        yes_no(("yes", "no")[i % 2], str(word), ("random", "popular")[i % 4 // 2], f"i{i // 6}", i)
        for i, word in enumerate(said)
    ]
    found = compare(Pope(), {"default": pope, "var": pope}, CompareSettings(resamples=100))
    assert {one.figure for one in found.estimates["var"]} >= {"f1", "popular.precision"}
    assert [one.category for one in found.categories] == ["popular", "random"]
    mme = [
        judged(float(s), category=("count", "OCR")[i % 4 // 2], cluster=f"i{i // 2}", number=i)
        for i, s in enumerate(rng.integers(0, 2, 80))
    ]
    scores = compare(Mme(), {"default": mme, "var": mme}, CompareSettings(resamples=100))
    assert scores.main == "total"
    assert scores.estimates["var"][0].value == pytest.approx(Mme().figures(mme)["total"])


def test_a_figure_that_is_not_defined_gets_no_verdict() -> None:
    only_no = [yes_no("no", "no", number=i) for i in range(10)]
    found = compare(
        Pope(rule="fixed"), {"default": only_no, "var": only_no}, CompareSettings(resamples=20)
    )
    f1 = next(one for one in found.others if one.figure == "f1")
    assert math.isnan(f1.difference) and math.isnan(f1.interval.low)
    assert found.differences[0].verdict in (NONE_SHOWN, UNDEFINED)


def test_refusals() -> None:
    given = right_or_wrong(BASE)
    with pytest.raises(ValueError, match="baseline is 'default'; allowed: var"):
        compare(Accuracy(), {"var": given})
    with pytest.raises(ValueError, match="more than one answer by default"):
        compare(Accuracy(), {"default": [*given, given[0]]})
    with pytest.raises(
        ValueError, match="No question has an answer of every method: default has 100, var has 0"
    ):
        compare(Accuracy(), {"default": given, "var": []})
    for bad in ({"alpha": 0}, {"confidence": 1}, {"resamples": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            CompareSettings(**bad)  # type: ignore[arg-type]


def test_nothing_changed_in_clusters_is_no_certainty() -> None:
    """20 images without a changed answer: the bootstrap alone would report 0 to 0."""
    given = [judged(1.0, cluster=f"c{i // 5}", number=i) for i in range(100)]
    found = compare(Accuracy(), {"default": given, "var": given}, CompareSettings(resamples=50))
    (one,) = found.differences
    room = wilson(0, 20).high
    assert (one.interval.low, one.interval.high) == pytest.approx((-room, room))
    assert one.detectable == pytest.approx(6 / 100)
    first = found.estimates["var"][0]
    assert (first.interval.low, first.how) == (wilson(20, 20).low, "Wilson, of clusters")


def test_one_changed_cluster_of_many_does_not_make_a_small_difference_detectable() -> None:
    given = [judged(1.0, cluster=f"c{i // 2}", number=i) for i in range(400)]
    other = [judged(float(i != 7), cluster=f"c{i // 2}", number=i) for i in range(400)]
    (one,) = compare(Accuracy(), {"default": given, "var": other}).differences
    assert (one.broken, one.verdict) == (1, NONE_SHOWN)
    assert one.detectable == pytest.approx(6 / 400)


@pytest.mark.parametrize(("clusters", "verdict"), [(1, NONE_SHOWN), (5, NONE_SHOWN), (6, BETTER)])
def test_a_few_images_that_agree_show_no_difference(clusters: int, verdict: str) -> None:
    """All resamples of such a sample are equal: the bootstrap would be certain from one image."""
    base = [judged(float(i % 2), cluster=f"c{i // 2}", number=i) for i in range(2 * clusters)]
    all_right = [judged(1.0, cluster=f"c{i // 2}", number=i) for i in range(2 * clusters)]
    (one,) = compare(Accuracy(), {"default": base, "var": all_right}).differences
    assert (one.test, one.verdict) == (RESAMPLED, verdict)
    assert one.p == pytest.approx(max(2 / 5001, 2.0 ** (1 - clusters)))


def test_of_points_that_did_not_change_nothing_is_known() -> None:
    mme = [judged(1.0, category="OCR", cluster=f"i{i // 2}", number=i) for i in range(40)]
    (one,) = compare(Mme(), {"default": mme, "var": mme}, CompareSettings(resamples=50)).differences
    assert one.verdict == NONE_SHOWN
    assert math.isnan(one.interval.low) and math.isnan(one.detectable)
