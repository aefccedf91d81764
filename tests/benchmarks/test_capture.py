"""The benchmark of capture, on a shape small enough to run quickly: what it prints, and that it
refuses quickly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from sinkscope.benchmarks import memory, timing
from sinkscope.benchmarks.__main__ import app
from sinkscope.benchmarks.floor import weight_bytes
from sinkscope.benchmarks.shapes import SHORTEST, build_handle, build_prompt
from sinkscope.benchmarks.timing import Timing, noise, ratio, slope
from sinkscope.benchmarks.variants import VARIANTS

ROOT = Path(__file__).resolve().parents[2]


def test_help_loads_no_torch() -> None:
    script = (
        "import sys, sinkscope.benchmarks.__main__\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
    shown = CliRunner().invoke(app, ["capture", "--help"])
    assert shown.exit_code == 0 and "--lengths" in shown.output


@pytest.mark.parametrize("length", [SHORTEST, 100, 257, 600])
def test_a_prompt_is_as_long_as_asked_for(length: int) -> None:
    inputs = build_prompt(build_handle("tiny", "cpu", torch.float32), length)
    assert inputs.tensors["input_ids"].shape == (1, length)
    assert inputs.layout.length == inputs.layout.segments[-1].stop == length
    (grid,) = inputs.layout.grids
    assert inputs.tensors["pixel_values"].shape[0] == grid.patches
    assert int(inputs.tensors["mm_token_type_ids"].sum()) == grid.tokens > length - 100


@pytest.mark.tiny
def test_all_ways_give_the_same_answer_and_mark_every_token() -> None:
    handle = build_handle("tiny", "cpu", torch.float32)
    inputs = build_prompt(handle, 120)
    answers = {}
    for name, variant in VARIANTS.items():
        marks: list[None] = []
        answers[name] = variant(handle, inputs, 5, lambda marks=marks: marks.append(None))  # type: ignore[misc]
        assert len(marks) == 5
    assert len(answers["plain"]) == 5
    assert set(answers.values()) == {answers["plain"]}


@pytest.mark.tiny
def test_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    words = "capture --shape tiny --lengths 100,160 --tokens 4 --repeats 2 --no-memory --json"
    try:
        done = CliRunner().invoke(app, [*words.split(), "--output", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    assert done.exit_code == 0, done.output
    result: dict[str, Any] = json.loads(done.stdout)
    assert [row["length"] for row in result["lengths"]] == [100, 160]
    for row in result["lengths"]:
        assert row["same_tokens"]
        assert row["ways"]["plain"]["total_ratio"] == 1
        assert all(variant["total_seconds"] > 0 for variant in row["ways"].values())
        asks = {name: variant["asks"]["operations"] for name, variant in row["ways"].items()}
        assert asks["again"] == asks["plain"] > 50
        assert row["settled"]["runs"] >= 1
    assert result["floor"]["seconds"] > 0
    assert "memory" not in result
    assert set(result["reading"]) >= {"mean_seconds", "all_layers_and_heads_seconds"}
    table = (tmp_path / "capture.txt").read_text()
    assert "reading the weights once" in table
    assert (
        "SinkScope, loop" in table
        and "SinkScope, graph" in table
        and "the same tokens" in table
        and "OTHER" not in table
    )
    assert json.loads((tmp_path / "capture.json").read_text()) == result
    assert (tmp_path / "capture.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.tiny
@pytest.mark.skipif(not memory.supported("cpu"), reason="peaks of a CPU run need Linux")
def test_peak_memory_is_measured_in_a_process_of_its_own() -> None:
    peak = memory.peak_extra("ours", "tiny", "cpu", "float32", 300, 4)
    assert 0 < peak < 1 << 30
    with pytest.raises(ChildProcessError, match="no such way at 300 ended early: KeyError"):
        memory.peak_extra("no such way", "tiny", "cpu", "float32", 300, 4)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--lengths", "12"], "lengths has 12; allowed: prompt lengths from 66 up"),
        (["--lengths", "a"], "lengths is 'a'; allowed: a list"),
        (["--output", "no/such/folder"], "The folder no/such/folder of --output does not exist"),
    ],
)
def test_mistakes_are_said_in_one_sentence(words: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["capture", "--shape", "tiny", *words])
    assert done.exit_code == 2
    assert said in done.stderr


def test_the_floor_counts_what_a_token_reads() -> None:
    handle = build_handle("tiny", "cpu", torch.float32)
    text = handle.stack.language_model
    layers = sum(w.nbytes for layer in handle.stack.layers for w in layer.parameters())
    head = handle.model.get_input_embeddings().weight.nbytes  # tied, and read whole
    norm = text.norm.weight.nbytes
    assert weight_bytes(handle) == layers + norm + head


def test_plain_runs_settle() -> None:
    seconds = iter([9.0, 3.0, 1.0, 1.01, 7.0])

    def timed(run: object, device: object) -> Timing:
        took = next(seconds)
        return Timing(took, took, took)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "timed", timed)
        found = timing.settle(lambda mark: None, torch.device("cpu"), most=9)
        assert found == {"runs": 4, "apart": pytest.approx(0.01)}
        seconds = iter([4.0, 2.0, 1.0])
        found = timing.settle(lambda mark: None, torch.device("cpu"), most=3)
        assert found == {"runs": 3, "apart": pytest.approx(0.5)}


def test_ratios_are_paired_and_slopes_fitted() -> None:
    def runs(*seconds: float | None) -> list[Timing | None]:
        return [None if s is None else Timing(s, s, s) for s in seconds]

    slow_machine = runs(1.0, 10.0, 2.0)
    assert ratio(runs(2.0, 20.0, 4.0), slow_machine, "total") == (2.0, 2.0)
    assert ratio(runs(3.0, None, None), slow_machine, "total") == (3.0, 3.0)
    assert noise(runs(1.0, 1.1, 1.1), "total") == pytest.approx(0.05)
    assert noise(runs(1.0), "total") is None
    assert slope([1, 2, 3], [5, 7, 9]) == pytest.approx(2)
    assert slope([1], [5]) is None
