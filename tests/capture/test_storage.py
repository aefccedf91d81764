"""The trace on disk: whole, checked, and never half written."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from capture.trace import Alternative, GeneratedToken, GenerationTrace, LayerSinks
from models.family import ImageGrid, PromptLayout, Segment
from models.info import ModelInfo

ROOT = Path(__file__).resolve().parents[2]


def small_trace(tokens: int = 3) -> GenerationTrace:
    generator = torch.Generator().manual_seed(tokens)
    rows = torch.rand(tokens, 2, 3, 6, generator=generator)
    shares = torch.rand(tokens, 2, 3, 4, generator=generator)
    return GenerationTrace(
        tokens=tuple(
            GeneratedToken(t, f"w{t}é", 0.5, 0, (Alternative(t, "w", 0.5),)) for t in range(tokens)
        ),
        layout=PromptLayout(
            10,
            (Segment("template", 0, 2), Segment("image", 2, 8, 0), Segment("user", 8, 10)),
            (ImageGrid(2, 1, 4, 6, 2, (56, 84), (50, 80)),),
        ),
        images=(Image.new("RGB", (80, 50), (1, 2, 3)),),
        prompt='a "quoted" prompt \ud7ff 你好',
        prompt_tokens=tuple("abcdefghij"),
        attention=rows.half(),
        layers=(0, 3),
        heads=(0, 1, 2),
        shares=shares / shares.sum(-1, keepdim=True),
        entropy=torch.rand(tokens, 2, 3, generator=generator),
        sinks=(LayerSinks(3, (4, 7), (20.5, 22.25)),),
        applied=("VAR",),
        model=ModelInfo("m", "r", "f", "float32", "cpu", 4, 3, 64),
        settings={"max_new_tokens": tokens},
        seed=5,
        finish="length",
        seconds=0.25,
        var={"moved": 0.5},
    )


def test_what_is_opened_is_what_was_saved(tmp_path: Path) -> None:
    trace = small_trace()
    trace.save(tmp_path / "run.safetensors")
    again = GenerationTrace.open(tmp_path / "run.safetensors")
    for field in dataclasses.fields(trace):
        before, after = getattr(trace, field.name), getattr(again, field.name)
        if isinstance(before, torch.Tensor):
            assert before.dtype == after.dtype
            assert torch.equal(before, after), field.name
        elif field.name == "images":
            assert [i.tobytes() for i in before] == [i.tobytes() for i in after]
        else:
            assert before == after, field.name


def test_an_answer_without_tokens_can_be_saved(tmp_path: Path) -> None:
    small_trace(0).save(tmp_path / "run.safetensors")
    assert GenerationTrace.open(tmp_path / "run.safetensors").tokens == ()


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is no trace file"):
        GenerationTrace.open(tmp_path / "none.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.99])
def test_a_truncated_file(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "run.safetensors"
    small_trace().save(path)
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(ValueError, match="damaged or no trace"):
        GenerationTrace.open(path)


def test_a_changed_byte(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    small_trace().save(path)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        GenerationTrace.open(path)


def test_a_safetensors_file_that_is_no_trace(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="no SinkScope trace"):
        GenerationTrace.open(tmp_path / "a.safetensors")


def test_a_file_of_a_newer_format(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    about = {"sinkscope-trace": json.dumps({"format": "sinkscope-trace", "version": 99})}
    save_file({"attention": torch.zeros(1)}, path, metadata=about)
    with pytest.raises(ValueError, match="format version 99; this SinkScope reads up to 2"):
        GenerationTrace.open(path)


def test_nothing_is_pickled(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    small_trace().save(path)
    assert set(load_file(path)) == {"attention", "shares", "entropy", "head_mean", "image_0"}


KILLED = """
import sys, os, pathlib
import utils
from tests.capture.test_storage import small_trace
real = os.fsync
def fsync(handle):
    print("written, not yet renamed", flush=True)
    sys.stdin.readline()  # the parent kills us here
    real(handle)
os.fsync = fsync
small_trace(40).save(pathlib.Path(sys.argv[1]))
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_kill_while_saving_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    small_trace(3).save(path)
    before = path.read_bytes()
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("written")
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    assert path.read_bytes() == before
    assert len(GenerationTrace.open(path).tokens) == 3


def test_a_folder_that_is_not_there_is_said_and_nothing_left(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none"):
        small_trace().save(tmp_path / "none" / "run.safetensors")
    assert list(tmp_path.iterdir()) == []
