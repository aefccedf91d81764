"""Several methods on one token: the result or the reason for none, and how far maps agree."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import numpy as np
import pytest

from sinkscope.capture.trace import GenerationTrace
from sinkscope.jobs.job import Progress, Stopped
from sinkscope.methods.attention import Attention
from sinkscope.methods.base import MapStack, Method, Target, target_of
from sinkscope.methods.explain import METHODS, explain_map
from sinkscope.methods.together import (
    SlotChoice,
    agreement,
    explain_each,
    mean_ranks,
    methods_named,
    rank_correlation,
)
from tests.capture.test_storage import small_trace


class Slow(Method):
    """Two steps, no layers."""

    name = "slow"

    def explain(
        self,
        run: GenerationTrace,
        target: Target,
        session: Any | None = None,
        progress: Progress | None = None,
    ) -> MapStack:
        assert progress is not None
        progress(1, 2, "the first")
        stack = Attention().explain(run, target)
        values = stack.values.reshape(len(target.tokens), -1, stack.values.shape[-1]).mean(1)
        return dataclasses.replace(stack, values=values, axes=(("token", target.tokens),))


def test_methods_come_one_by_one_with_reasons() -> None:
    trace = small_trace()
    said: list[tuple[int, int, str]] = []
    made = list(
        explain_each(
            trace,
            target_of(trace, 1),
            (*METHODS[:3], Slow()),
            SlotChoice(layers=(3,)),
            on_progress=lambda *at: said.append(at),
        )
    )
    assert [one.method.name for one in made] == ["attention", "relative", "without_sinks", "slow"]
    assert made[1].patches is None and "no generic prompt" in made[1].why_not
    assert made[0].patches is not None
    expected = explain_map(trace, 1, "attention", [3]).values
    np.testing.assert_array_equal(made[0].patches.values, expected)
    assert made[3].patches is not None  # it has no layers to choose from
    assert (3, 4, "slow (1 of 2)") in said and said[-1] == (4, 4, "")


def test_a_stop_inside_a_method_keeps_what_was_given() -> None:
    trace, stop, kept = small_trace(), threading.Event(), []

    def report(done: int, total: int, text: str) -> None:
        if text == "slow":
            stop.set()

    with pytest.raises(Stopped, match="1 of 2 methods"):
        for one in explain_each(
            trace,
            target_of(trace, 0),
            (Attention(), Slow()),
            on_progress=report,
            stop=stop,
        ):
            kept.append(one)
    assert [one.method.name for one in kept] == ["attention"]


def test_names_of_methods() -> None:
    assert methods_named("all") == METHODS
    assert [m.name for m in methods_named("without-sinks, attention")] == [
        "without_sinks",
        "attention",
    ]
    for wrong, said in (("", "allowed: all"), ("x", "'x'"), ("attention,attention", "once")):
        with pytest.raises(ValueError, match=said):
            methods_named(wrong)


def test_rank_correlation_is_spearmans() -> None:
    assert mean_ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 5, 30).astype(float), rng.integers(0, 5, 30).astype(float)
    stats = pytest.importorskip("scipy.stats")
    assert rank_correlation(one, other) == pytest.approx(stats.spearmanr(one, other).statistic)
    assert rank_correlation(one, np.exp(one)) == pytest.approx(1.0)
    assert rank_correlation(one, -one) == pytest.approx(-1.0)
    assert np.isnan(rank_correlation(one, np.ones(30)))
    with_missing = one.copy()
    with_missing[:3] = np.nan
    assert rank_correlation(with_missing, other) == pytest.approx(
        rank_correlation(one[3:], other[3:])
    )
    trace = small_trace()
    maps = [explain_map(trace, token) for token in (0, 1)]
    table = agreement(maps)
    assert table.shape == (2, 2) and table[0, 1] == table[1, 0]
