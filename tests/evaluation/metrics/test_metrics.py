"""Every metric on cases computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sinkscope.evaluation.judges.chair import Chair as ChairJudge
from sinkscope.evaluation.metrics.accuracy import Accuracy, MacroByCategory
from sinkscope.evaluation.metrics.chair import Chair
from sinkscope.evaluation.metrics.listed import METRICS, metric_named
from sinkscope.evaluation.metrics.pairs import Mme, PairAccuracy
from sinkscope.evaluation.metrics.pope import Pope
from tests.evaluation.judges.questions import question
from tests.evaluation.metrics.made_up import judged, right_or_wrong, yes_no


def test_accuracy_counts_unparsable_answers_as_wrong() -> None:
    given = [
        judged(1, number=0),
        judged(1, number=1),
        judged(0, None, number=2),
        judged(0, number=3),
    ]
    assert Accuracy().figures(given) == {"accuracy": 0.5, "unparsable": 0.25}
    assert next(iter(Accuracy().figures(given))) == "accuracy"


def test_macro_beside_micro() -> None:
    """9 of 10 in a large part, 0 of 2 in a small one: 9/12 and (0.9 + 0) / 2."""
    given = right_or_wrong([1] * 9 + [0] + [0, 0], ["large"] * 10 + ["small"] * 2)
    figures = MacroByCategory().figures(given)
    assert figures["accuracy"] == pytest.approx(0.75)
    assert figures["macro_accuracy"] == pytest.approx(0.45)


# 4 of truth yes: 2 yes, 1 no, 1 unparsable. 4 of truth no: 1 yes, 2 no, 1 unparsable.
SAID = [("yes", "yes"), ("yes", "yes"), ("yes", "no"), ("yes", None)]
SAID += [("no", "yes"), ("no", "no"), ("no", "no"), ("no", None)]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # precision 2/3; recall 2/4; F1 = 2*2 / (2*2 + 1 + 2) = 4/7; yes 3/8
        (
            "fixed",
            {"accuracy": 0.5, "precision": 2 / 3, "recall": 0.5, "f1": 4 / 7, "yes_ratio": 3 / 8},
        ),
        # the unparsable one is gone from recall: 2/3; F1 = 4 / (4 + 1 + 1); yes ratio of the truth
        (
            "lmms-eval",
            {"accuracy": 0.5, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "yes_ratio": 0.5},
        ),
        ("vlmevalkit", {"f1": 4 / 7, "accuracy": 0.5, "recall": 0.5, "yes_ratio": 3 / 8}),
    ],
)
def test_pope(rule: str, expected: dict[str, float]) -> None:
    given = [yes_no(truth, said, number=i) for i, (truth, said) in enumerate(SAID)]
    figures = Pope(rule=rule).figures(given)
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value), name
    assert figures["unparsable"] == 0.25
    assert next(iter(figures)) == next(iter(expected))


def test_pope_by_subset_and_pooled() -> None:
    given = [yes_no("yes", "yes", "random", number=0), yes_no("no", "no", "random", number=1)]
    given += [yes_no("yes", "no", "popular", number=2), yes_no("no", "yes", "popular", number=3)]
    figures = Pope().figures(given)
    assert figures["accuracy"] == 0.5
    assert figures["random.accuracy"] == 1 and figures["random.f1"] == 1
    assert figures["popular.accuracy"] == 0 and figures["popular.f1"] == 0
    assert figures["f1"] == 0.5  # 2 / (2 + 1 + 1)


def test_pope_without_a_yes_has_no_precision() -> None:
    given = [yes_no("no", "no", number=0), yes_no("no", "no", number=1)]
    ours, theirs = Pope().figures(given), Pope(rule="lmms-eval").figures(given)
    assert math.isnan(ours["precision"]) and math.isnan(ours["recall"]) and math.isnan(ours["f1"])
    assert theirs["precision"] == theirs["recall"] == theirs["f1"] == 0


def test_pope_refuses_other_answers() -> None:
    with pytest.raises(ValueError, match="taken to be 'B'"):
        Pope().figures([yes_no("yes", "B")])
    with pytest.raises(ValueError, match="its truth is 'maybe'"):
        Pope().figures([yes_no("maybe", "yes")])
    with pytest.raises(ValueError, match="allowed: fixed, lmms-eval, vlmevalkit"):
        Pope(rule="other")


def test_mme_by_the_official_score() -> None:
    """existence: images right 2/2 and 1/2: accuracy 3/4, accuracy+ 1/2: 75 + 50. OCR: one image,
    both right: 200. code_reasoning: one image, none right: 0."""
    given = []
    for category, image, scores in (
        ("existence", "a", (1, 1)),
        ("existence", "b", (1, 0)),
        ("OCR", "a", (1, 1)),  # the same name in another category is another image
        ("code_reasoning", "c", (0, 0)),
    ):
        given += [judged(s, category=category, cluster=image) for s in scores]
    assert Mme().figures(given) == {
        "total": 325,
        "perception": 325,
        "cognition": 0,
        "existence": 125,
        "OCR": 200,
        "code_reasoning": 0,
        "incomplete_pairs": 0,
    }


def test_mme_leaves_out_an_image_with_one_answer_and_says_so() -> None:
    given = [judged(1, category="count", cluster="a"), judged(1, category="count", cluster="a")]
    given += [judged(0, category="count", cluster="b")]
    figures = Mme().figures(given)
    assert (figures["count"], figures["incomplete_pairs"]) == (200, 1)
    with pytest.raises(ValueError, match="no category 'cats'; allowed: existence, count"):
        Mme().figures([judged(1, category="cats")])
    with pytest.raises(ValueError, match="The pair a has 3 answers"):
        Mme().figures([*given, judged(0, category="count", cluster="a")])


def test_pairs_of_which_both_are_right() -> None:
    given = [judged(s, cluster=c) for c, s in [("a", 1), ("a", 1), ("b", 1), ("b", 0), ("c", 1)]]
    figures = PairAccuracy().figures(given)
    assert figures["pair_accuracy"] == 0.5
    assert figures["accuracy"] == 0.8
    assert figures["incomplete_pairs"] == 1


def test_chair_on_captions() -> None:
    """Mentions 2 + 1 + 0, of which 1 is hallucinated; objects 2 + 1 + 1, of which 2 are found."""
    judge = ChairJudge()
    captions = [
        ("A dog and a cat", ["dog", "car"]),
        ("A man", ["person"]),
        ("Nothing to see", ["bird"]),
    ]
    given = []
    for i, (caption, objects) in enumerate(captions):
        made = judge.judge(caption, question(objects))
        given.append(judged(made.score, truth=objects, number=i, details=dict(made.details)))
    figures = Chair().figures(given)
    assert figures["chair_s"] == pytest.approx(1 / 3)
    assert figures["chair_i"] == pytest.approx(1 / 3)
    assert figures["recall"] == pytest.approx(0.5)
    assert figures["mentions"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="was not judged by chair"):
        Chair().figures([judged(1)])


def test_without_answers_there_is_no_figure() -> None:
    for metric in METRICS:
        with pytest.raises(ValueError, match="No answer was judged"):
            metric.figures([])


def test_resampled_clusters_give_the_metric_of_the_repeated_sample() -> None:
    """Weights 2, 0, 1 on three images mean a sample in which the first one occurs twice."""
    given = [yes_no("yes", "yes", image="a"), yes_no("no", "yes", image="a")]
    given += [yes_no("yes", "no", image="b"), yes_no("no", "no", image="c")]
    tally = Pope().tally(given)
    assert tally.clusters == ("a", "b", "c")
    weighted = tally.figures(np.array([[2.0, 0.0, 1.0], [1.0, 1.0, 1.0]]))
    repeated = Pope().figures([*given[:2], *given[:2], given[3]])
    once = Pope().figures(given)
    for name in repeated:
        assert weighted[name] == pytest.approx([repeated[name], once[name]], nan_ok=True), name


def test_names() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    assert metric_named("mme").points == ("*",)
    with pytest.raises(ValueError, match="allowed: accuracy, mean_score, macro_by_category"):
        metric_named("bleu")
    assert not metric_named("mean_score").independent
