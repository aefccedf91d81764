"""`benchmarks var` measures every way, on runs in which VAR really acts."""

from __future__ import annotations

from pathlib import Path

import pytest

from sinkscope.benchmarks import var

pytestmark = pytest.mark.tiny


def test_a_whole_run(tmp_path: Path) -> None:
    result = var.measure("tiny", "cpu", "auto", [128], tokens=3, repeats=1, threads=1)
    (row,) = result["rows"]
    assert result["dtype"] == "float32"
    assert set(row["ways"]) == set(var.VARIANTS)
    assert row["ways"]["plain"]["total_ratio"] == 1
    assert all(variant["total_ratio"] > 0 for variant in row["ways"].values())
    assert all(words in var.table(result) for words in var.VARIANTS.values())
    var.plot(result, tmp_path / "var.png")
    assert (tmp_path / "var.png").stat().st_size > 5000


def test_a_device_that_is_none() -> None:
    with pytest.raises(ValueError, match="device is 'tpu'; allowed: cpu, cuda"):
        var.measure("tiny", "tpu", "auto", [128], tokens=3, repeats=1, threads=1)
