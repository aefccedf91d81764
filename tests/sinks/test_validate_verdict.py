"""The verdicts of a validation: each one for the figures that call for it, and no others."""

from __future__ import annotations

import pytest

from sinkscope.sinks.validating.settings import ValidateSettings
from sinkscope.sinks.validating.validation import Estimate
from sinkscope.sinks.validating.verdict import Evidence, judge

SETTINGS = ValidateSettings()  # 10 samples, 30 %, lift 2, margin 0.05


def about(value: float, half: float = 0.01) -> Estimate:
    return Estimate(value, value - half, value + half, 20)


def found(
    *,
    samples: int = 20,
    paired: int = 20,
    flagged: float = 0.05,
    lift: Estimate | None = None,
    own: Estimate | None = None,
    beside: Estimate | None = None,
    image: float = -2.0,
) -> Evidence:
    return Evidence(
        samples,
        paired,
        flagged,
        lift or about(5.0, 0.5),
        {"sinks": own or about(0.0), "random": about(0.0), "image": about(image)},
        {"random": beside or about(0.0)},
    )


@pytest.mark.parametrize(
    ("evidence", "word", "says"),
    [
        (found(), "confirmed", "collect attention and the answers hardly need them"),
        (found(samples=9), "too few samples", "9 samples could be used"),
        (found(paired=9), "too few samples", "9 of 20 samples have flagged tokens"),
        (found(flagged=0.31), "flags too much", "31% of the vision tokens are flagged"),
        (found(flagged=0.31, paired=0), "flags too much", "tau is too low"),
        (found(lift=about(1.5, 0.4)), "not sinks", "do not collect attention"),
        (
            found(lift=about(2.1, 0.4)),
            "undecided",
            "remains open whether this is more than 2 times",
        ),
        # they receive attention, and the answers need them more than random tokens
        (found(own=about(-0.5), beside=about(-0.4)), "contradicted", "need these tokens more"),
        (found(own=about(-0.5), beside=about(-0.05, 0.1)), "undecided", "remains open"),
        # needed as much as random tokens, and not for nothing
        (found(own=about(-0.5), beside=about(0.0)), "attention only", "no more than random"),
        (
            found(own=about(-0.04, 0.1), beside=about(0.0)),
            "undecided",
            "open whether the answers need them at all",
        ),
        # needed, but clearly less than random tokens
        (found(own=about(-0.5), beside=about(0.3)), "confirmed", "need them less than random"),
        # the answers ignore the image: nothing can be learned from hiding
        (found(image=0.0), "attention only", "hiding the whole image"),
    ],
)
def test_words(evidence: Evidence, word: str, says: str) -> None:
    verdict = judge(evidence, SETTINGS)
    assert verdict.word == word
    assert says in verdict.text


def test_nothing_flagged() -> None:
    nothing = Evidence(20, 0, 0.0, None, {"image": about(-2.0)}, {})
    verdict = judge(nothing, SETTINGS)
    assert verdict.word == "flags nothing"
    assert "VAR would do nothing" in verdict.text


def test_figures_and_thresholds_are_in_the_words() -> None:
    verdict = judge(found(own=about(-0.021), beside=about(0.013)), SETTINGS)
    assert "5.0 times [4.5, 5.5]" in verdict.text
    assert "-0.021 [-0.031, -0.011] nats per token" in verdict.text
    assert "+0.013 [+0.003, +0.023] against random tokens" in verdict.text
    named = " ".join(verdict.thresholds)
    for threshold in ("min_samples = 10", "max_flagged = 30%", "min_lift = 2", "margin = 0.05"):
        assert threshold in named
    assert "95% interval" in named


def test_thresholds_are_settings() -> None:
    harm = found(own=about(-0.5), beside=about(-0.4))
    assert judge(harm, ValidateSettings(margin=0.6)).word == "confirmed"
    assert judge(found(), ValidateSettings(min_samples=21)).word == "too few samples"
    assert judge(found(), ValidateSettings(min_lift=6)).word == "not sinks"
    assert judge(found(flagged=0.31), ValidateSettings(max_flagged=0.4)).word == "confirmed"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"hide_in": "some"}, "hide_in is 'some'; allowed: all_layers, own_layers"),
        ({"from_queries": "all"}, "from_queries is 'all'"),
        ({"answers": "yes"}, "answers is 'yes'"),
        ({"taus": ()}, "taus is \\(\\)"),
        ({"taus": (0.0, 1.0)}, "above 0"),
        ({"taus": (float("nan"),)}, r"taus is \(nan,\)"),
        ({"min_samples": 1}, "min_samples is 1"),
        ({"random_draws": 0}, "random_draws is 0"),
        ({"max_flagged": 2.0}, "max_flagged is 2.0"),
        ({"margin": -1.0}, "margin is -1.0"),
        ({"top_percent": 0.0}, "top_percent is 0.0"),
        ({"layers": (1, 1)}, "layers is \\(1, 1\\)"),
        ({"allow_finding_samples": 1}, "allow_finding_samples is 1"),
    ],
)
def test_settings_are_checked(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ValidateSettings(**wrong)  # type: ignore[arg-type]
