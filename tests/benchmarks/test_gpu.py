"""`benchmarks gpu` runs to its end on a CPU with tiny shapes, also if a check fails."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from sinkscope.benchmarks import gpu_checks
from sinkscope.benchmarks.__main__ import app
from sinkscope.benchmarks.exactness import rows_against_eager
from sinkscope.benchmarks.gpu_checks import CHECKS, PLANS
from sinkscope.benchmarks.shapes import build_handle, build_prompt
from tests.checkpoints.real_size import write_real_size

pytestmark = pytest.mark.tiny
TINY = ["gpu", "--plan", "tiny", "--device", "cpu"]


def run(output: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    done = CliRunner().invoke(app, [*TINY, "--output", str(output), *words])
    return done.exit_code, json.loads(output.read_text()), done.output


def test_checks_of_one_model(tmp_path: Path) -> None:
    code, result, said = run(tmp_path / "gpu.json", "--only", "capture,memory,exact")
    assert code == 0, said
    checks = result["checks"]
    assert list(checks) == ["capture", "memory", "exact"] and not result["judged"]
    goals = [goal for check in checks.values() for goal in check["goals"]]
    assert goals and all(goal["met"] is None for goal in goals)
    assert "not judged here" in said
    capture = checks["capture"]
    assert set(capture["each_by_floor"]) == set(capture["ways"]) >= {"again", "ours", "graph"}
    assert all(variant["asks"]["operations"] > 0 for variant in capture["ways"].values())
    assert checks["memory"]["payload_bytes"] > 0
    exact = checks["exact"]
    assert exact["float32"]["rows_largest"] < 1e-3 and exact["float32"]["layers"] == 2
    assert exact["bfloat16"]["graph"]["no_farther"] and exact["bfloat16"]["loop"]["no_farther"]


def test_a_folder_in_the_published_layout(tmp_path: Path) -> None:
    folder = write_real_size(tmp_path / "model", "tiny", "cpu")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) == 2
    assert "vision_config" in json.loads((folder / "config.json").read_text())
    code, result, said = run(tmp_path / "gpu.json", "--only", "folder", "--folder", str(folder))
    assert code == 0, said
    found = result["checks"]["folder"]
    assert found["dtype"] == "bfloat16" and found["layers"] == 5 and found["samples"] == 8
    assert set(found["work_seconds"]) >= {"load", "ask", "compare", "compare_again", "find"}
    assert found["folder_bytes"] > 1e6


def test_a_check_that_fails_is_told_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(bench: Any) -> dict[str, Any]:
        raise RuntimeError("made up")

    first, second = CHECKS[0], next(check for check in CHECKS if check.name == "memory")
    changed = (dataclasses.replace(first, run=broken), second)
    monkeypatch.setattr(gpu_checks, "CHECKS", changed)
    code, result, said = run(tmp_path / "gpu.json")
    assert code == 1
    assert result["checks"]["capture"]["error"] == "RuntimeError: made up"
    assert "error" not in result["checks"]["memory"]
    assert "FAILED: RuntimeError: made up" in said


def test_what_does_not_fit_into_the_time_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = dataclasses.replace(PLANS["tiny"], name="full")
    monkeypatch.setattr(gpu_checks, "PLANS", {"tiny": plan})
    code, result, _ = run(tmp_path / "gpu.json", "--minutes", "0.2", "--only", "capture,folder")
    assert code == 0
    assert all("s are left" in entry["skipped"] for entry in result["checks"].values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "nothing"], "only has nothing; allowed: capture, var,"),
        (["--device", "cuda"], "torch finds no CUDA device"),
    ],
)
def test_mistakes_are_said(tmp_path: Path, words: list[str], said: str) -> None:
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = CliRunner().invoke(app, [*TINY, "--output", str(tmp_path / "a.json"), *words])
    assert done.exit_code == 2 and said in done.stderr


def test_a_wrong_row_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = build_handle("tiny", "cpu", torch.float32)
    inputs = build_prompt(handle, 100)
    good = rows_against_eager(handle, inputs, 4, "graph")
    assert good["rows_relative"] < 1e-2

    real = rows_against_eager.__globals__["generate"]

    def shifted(*args: Any, **kwargs: Any) -> Any:
        trace = real(*args, **kwargs)
        return dataclasses.replace(trace, attention=trace.attention.roll(1, 0))

    monkeypatch.setitem(rows_against_eager.__globals__, "generate", shifted)
    assert rows_against_eager(handle, inputs, 4, "graph")["rows_relative"] > 3 * max(
        good["rows_relative"], 1e-3
    )
