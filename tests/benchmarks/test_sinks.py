"""`benchmarks sinks` times every way on the same sample, and finding really measures it."""

from __future__ import annotations

from typing import Any

import pytest

from sinkscope.benchmarks import memory, sinks
from sinkscope.benchmarks.shapes import build_prompt, prepared_handle
from sinkscope.benchmarks.sink_variants import VARIANTS
from sinkscope.sinks.finding.stats import SampleStats

pytestmark = pytest.mark.tiny


def test_a_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []

    def peak(variant: str, *args: Any, returned_at_once: bool) -> int:
        asked.append((variant, returned_at_once))
        return 1000 if variant == "forward" else 1020 + 10 * len(asked)

    monkeypatch.setattr(memory, "peak_extra", peak)
    result = sinks.measure("tiny", "cpu", "auto", [128], 1, repeats=1, threads=1, memory=True)
    (row,) = result["rows"]
    assert set(row["ways"]) == set(sinks.VARIANTS) == set(VARIANTS)
    assert row["ways"]["forward"]["ratio"] == 1
    assert all(variant["ratio"] > 0 for variant in row["ways"].values())
    (peaks,) = result["memory"]["rows"]
    assert asked == [("forward", True), ("received", True)] * 3
    assert peaks["extra"] == pytest.approx(0.06)  # the median of 1040, 1060 and 1080, by 1000
    assert peaks["spread_bytes"] == {"forward": 0, "received": 40}
    said = sinks.table(result)
    assert all(words in said for words in sinks.VARIANTS.values())
    assert "+6.0% (target +5%" in said and "(target 1.5)" in said


def test_the_measured_way_measures_each_sample_of_the_batch() -> None:
    handle = prepared_handle("tiny", "cpu", "auto", 1)
    inputs = build_prompt(handle, 128)
    marks: list[None] = []
    one, two = VARIANTS["received"](handle, inputs, 2, lambda: marks.append(None))
    assert isinstance(one, SampleStats) and len(marks) == 2
    assert one.received.shape == (handle.info.layers, inputs.layout.vision_tokens)
    assert (one.received > 0).any() and (one.received == two.received).all()


def test_a_device_that_is_none() -> None:
    with pytest.raises(ValueError, match="device is 'tpu'; allowed: cpu, cuda"):
        sinks.measure("tiny", "tpu", "auto", [128], 1, repeats=1, threads=1, memory=False)
