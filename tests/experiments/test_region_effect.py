"""Percentiles, verdicts and words of a region test, from made-up numbers."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from sinkscope.experiments.boxes import Box
from sinkscope.experiments.region_effect import RegionEffect


def effect(changes: list[float], random: list[list[float]], **other: Any) -> RegionEffect:
    count = len(random)
    values: dict[str, Any] = {
        "box": Box(1, 2, 2, 3),
        "how": "cut",
        "texts": (" red", " star", ".")[: len(changes)],
        "plain": np.log(np.full(len(changes), 0.8, np.float32)),
        "changes": np.array(changes, np.float32),
        "others": tuple(Box(0, k, 2, 3) for k in range(count)),
        "random": np.array(random, np.float32).reshape(count, len(changes)),
        "planned": count,
        "places": 90,
        "overlapping": False,
        "seed": 0,
    }
    return RegionEffect(**{**values, **other})


def test_a_percentile_is_the_share_of_boxes_that_cost_less() -> None:
    found = effect([-1.0, 0.5], [[-2.0, 0.0], [-1.0, 0.0], [-0.5, 0.0], [0.3, 1.0]])
    assert found.percentile(0) == 0.5  # the tie does not count
    assert found.percentile(1) == 0.25
    assert found.change == pytest.approx(-0.5)
    assert found.percentile() == 0.25  # of the sums -2, -1, -0.5 (a tie) and 1.3
    assert math.isnan(effect([-1.0], []).percentile(0))


@pytest.mark.parametrize(
    ("change", "verdict", "words"),
    [
        (-2.0, "matters", "This box matters more for it than all 40 others of its size."),
        (-0.96, "matters", "This box matters more for it than 95 % of 40 others of its size."),
        (
            -0.51,
            "no more than others",
            "50 % of 40 others of its size cost it less (it takes 95 %).",
        ),
        (-0.01, "no more than others", "That is hardly a change (under 0.05 nats)."),
        (0.2, "hinders", "This box holds it back more than all 40 others of its size."),
    ],
)
def test_what_is_said_of_a_token(change: float, verdict: str, words: str) -> None:
    """Others cost 0.025, 0.05, ... 0.975 and, the last two, 1.5."""
    others = [[-0.025 * k] for k in range(1, 39)] + [[-1.5], [-1.5]]
    found = effect([change], others)
    assert found.verdict(0) == verdict
    assert found.words(0).endswith(words)
    before, after = found.words(0).split(" goes from ")
    assert before == "With it cut, “red”" and after.startswith("80 % to ")


def test_a_small_change_is_no_verdict_however_rare() -> None:
    found = effect([-0.04], [[0.0]] * 40)
    assert found.percentile(0) == 1.0 and found.verdict(0) == "no more than others"


def test_the_sentence_names_the_words_by_what_they_lose() -> None:
    others = [[0.0, -0.01 * k, 0.0] for k in range(40)]
    found = effect([-1.0, -3.0, 0.0], others)
    assert found.sentence() == (
        "This box matters for “star”, “red”. The answer in all: −4.00 nats. "
        "This box matters more for it than all 40 others of its size."
    )
    none = effect([0.0, 0.0, 0.0], others)
    assert none.sentence().startswith("This box matters for no single word.")


def test_limits_are_said() -> None:
    few = effect([-1.0], [[0.0]] * 5, places=5, overlapping=True)
    assert few.notes() == (
        "Compared with 5 other boxes of 2 × 3 patches on the same image (all there are).",
        "They may overlap with it, because too few do not.",
        "That is too few to be sure: under 20, chance alone can look like 95 %.",
    )
    assert "drawn from 90 places" in effect([-1.0], [[0.0]] * 40).notes()[0]
    assert not effect([-1.0], [[0.0]] * 5, planned=40).finished


def test_json_has_everything_and_no_nan() -> None:
    found = effect([-1.0, 0.1], [])
    text = json.dumps(found.to_json(), allow_nan=False)
    made = json.loads(text)
    assert made["tokens"][0]["percentile"] is None and made["answer"]["random_range"] is None
    whole = effect([-1.0, 0.1], [[-0.5, 0.0], [0.0, 0.0]]).to_json()
    assert whole["tokens"][0]["change"] == -1 and whole["tokens"][0]["percentile"] == 1
    assert whole["tokens"][0]["random_range"] == [-0.5, -0.475, -0.25, -0.025, 0.0]
    assert whole["box"] == {"image": 0, "row": 1, "column": 2, "rows": 2, "columns": 3}


def test_probabilities_are_said_with_digits_that_matter() -> None:
    said = [
        effect([c], [], plain=np.log(np.array([0.9999], np.float32))).words(0)
        for c in (-0.5, -4.0, -9.0, -14.0)
    ]
    assert [text.split(" (")[0].rsplit("to ", 1)[1] for text in said] == [
        "61 %",
        "1.8 %",
        "0.01 %",
        "under 0.001 %",
    ]
