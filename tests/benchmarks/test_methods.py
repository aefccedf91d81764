"""`benchmarks methods` measures what it reports, and reports methods that take too long."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest

from sinkscope.benchmarks import methods
from sinkscope.benchmarks.memory import supported
from sinkscope.methods.explain import METHODS


def result() -> dict[str, Any]:
    fast = {"clock": 0.5, "processor": 0.25}
    one = {"token": fast, "most": 2.0, "answer": fast, "answer_most": 20.0}
    made = {
        "rounds": 3,
        "threads": 1,
        "torch": "2",
        "positions": 74,
        "vision_tokens": 49,
        "tokens": 20,
        "methods": {"chefer": one, "relative": {"why_not": "no generic prompt"}},
        "peaks": {"forward": 10 << 20, "rollout": 5 << 20, "chefer": 29 << 20},
    }
    return {**made, "held": methods.within_limits(made)}


def test_what_is_held_and_what_is_not() -> None:
    good = result()
    assert good["held"]
    text = methods.table(good)
    assert (
        "0.50 (0.25)" in text
        and "2.90 x forward" in text
        and "All within their limits: yes." in text
    )
    assert "not possible: no generic prompt" in text
    for change in (
        lambda bad: bad["methods"]["chefer"]["token"].update(processor=2.1),
        lambda bad: bad["methods"]["chefer"]["answer"].update(processor=20.1),
        lambda bad: bad["peaks"].update(chefer=31 << 20),
    ):
        bad = copy.deepcopy(good)
        bad["methods"]["chefer"]["token"] = dict(bad["methods"]["chefer"]["token"])
        bad["methods"]["chefer"]["answer"] = dict(bad["methods"]["chefer"]["answer"])
        change(bad)
        assert not methods.within_limits(bad)


def test_seconds_are_of_the_call() -> None:
    made = methods._seconds(lambda: time.sleep(0.1), 3)
    assert 0.1 <= made["clock"] < 5 and made["processor"] < 0.1


@pytest.mark.slow
def test_a_whole_measurement() -> None:
    made = methods.measure(1, memory=supported("cpu"))
    assert set(made["methods"]) == {one.name for one in METHODS}
    assert made["tokens"] == methods.TOKENS and made["held"], methods.table(made)
