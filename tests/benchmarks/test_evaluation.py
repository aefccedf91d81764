"""`benchmarks evaluation` asks the same questions in every way."""

from __future__ import annotations

from typing import Any

import pytest

from sinkscope.benchmarks import evaluation


@pytest.mark.slow
def test_a_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from sinkscope.evaluation import work

    asked: list[tuple[str, ...]] = []
    own = work.work

    def noted(plan: Any, handle: Any, given: Any) -> Any:
        asked.append(tuple(method.name for method in plan.methods))
        return own(plan, handle, given)

    monkeypatch.setattr(work, "work", noted)
    result = evaluation.measure("demo", "cpu", "float32", 2, repeats=1, threads=1)
    assert set(result["ways"]) == set(evaluation.VARIANTS)
    assert result["ways"]["default"]["ratio"] == 1
    assert all(variant["ratio"] > 0 for variant in result["ways"].values())
    assert ("default",) in asked and ("default", "var") in asked and ("var",) in asked
    said = evaluation.table(result)
    assert all(words in said for words in evaluation.VARIANTS.values())
    assert "Target, pair / default alone <= 1.3" in said
