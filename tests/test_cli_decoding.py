"""A checkpoint's own decoding settings on the command line: what is reported, used and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sinkscope.capture.trace import GenerationTrace
from tests.test_cli import image, refused, run

__all__ = ["image"]

pytestmark = pytest.mark.tiny

WORDS = "sampling (temperature 1e-06, top k 50), repetition penalty 1.05"
LENGTH = ("--max-new-tokens", "4")


@pytest.fixture
def checkpoint(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny model with the generation settings of the published Qwen2.5-VL."""
    return with_own(tiny_folder, tmp_path / "model", {"temperature": 1e-6})


def with_own(source: Path, folder: Path, values: dict[str, Any]) -> Path:
    shutil.copytree(source, folder)
    file = folder / "generation_config.json"
    own = {"do_sample": True, "repetition_penalty": 1.05, **values}
    file.write_text(json.dumps({**json.loads(file.read_text()), **own}))
    return folder


def test_it_is_said_and_not_followed_by_default(
    image: Path, checkpoint: Path, tmp_path: Path
) -> None:
    out, kept = tmp_path / "out.png", tmp_path / "run.safetensors"
    done = run("heatmap", image, "What?", "--model", checkpoint, "-o", out, *LENGTH)
    assert done.exit_code == 0, done.output
    said = f"Not used: the checkpoint's own generation_config.json, {WORDS}. --decoding checkpoint"
    assert said in done.stderr and "generation_config" not in done.stdout
    options = ("--save-trace", kept, "--decoding", "checkpoint", "--seed", "3")
    done = run("heatmap", image, "What?", "--model", checkpoint, "-o", out, *LENGTH, *options)
    assert f"Decoding as the checkpoint says: {WORDS}, max new tokens 4." in done.stderr
    trace = GenerationTrace.open(kept)
    assert (trace.settings["decoding"], trace.seed) == ("checkpoint", 3)
    assert f"Decoding: as the checkpoint says: {WORDS}." in run("show", kept).stderr


def test_a_checkpoint_that_asks_for_nothing_is_not_spoken_of(
    image: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "run.safetensors"
    options = ("-o", tmp_path / "out.png", "--save-trace", kept)
    done = run("heatmap", image, "What?", "--model", tiny_folder, *LENGTH, *options)
    assert done.exit_code == 0 and "generation_config" not in done.stderr
    assert "Decoding: greedy decoding.\n" in run("show", kept).stderr


def test_a_comparison_follows_it_too(image: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    options = ("--dims", "3,40", "--tau", "2", "--decoding", "checkpoint", "-o", out)
    done = run("compare", image, "What?", "--model", checkpoint, *LENGTH, *options)
    assert done.exit_code == 0, done.output
    numbers = json.loads(out.read_text())
    assert numbers["settings"]["decoding"] == "checkpoint"
    assert numbers["decoding"]["used"]["repetition_penalty"] == 1.05
    assert numbers["decoding"]["words"] == WORDS


def test_what_cannot_be_followed_is_one_sentence(
    image: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = with_own(tiny_folder, tmp_path / "beams", {"num_beams": 4, "temperature": "hot"})
    words = ("heatmap", image, "What?", "--model", folder, "-o", tmp_path / "out.png", *LENGTH)
    said = refused(run(*words, "--decoding", "checkpoint"))
    assert "num_beams is 4, which is beam search" in said and "temperature is 'hot'" in said
    done = run(*words)
    assert done.exit_code == 0 and "It cannot be followed: temperature is 'hot'" in done.stderr


def test_an_option_that_would_have_no_effect_is_refused_before_the_model_loads(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr("sinkscope.models.loading.load_model", loaded)
    words = ("compare", image, "What?", "-o", tmp_path / "out.html", "--decoding", "checkpoint")
    assert "temperature is 0.5 and decoding 'checkpoint'" in refused(
        run(*words, "--temperature", "0.5")
    )


def test_why_an_answer_is_cut_off(image: Path, tiny_folder: Path, tmp_path: Path) -> None:
    folder = with_own(tiny_folder, tmp_path / "slow", {"do_sample": False, "max_time": 0})
    words = ("heatmap", image, "What?", "--model", folder, "-o", tmp_path / "out.png", *LENGTH)
    done = run(*words, "--decoding", "checkpoint")
    assert "(stopped after 1 token: the checkpoint's max_time was over)" in done.stderr
    assert "(stopped after 4 tokens: the most allowed)" in run(*words).stderr
