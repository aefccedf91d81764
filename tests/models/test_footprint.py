"""What a load will take, known before it: against the model that is then loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sinkscope.config import ModelSettings
from sinkscope.models.footprint import NotOnDiskError, footprint
from sinkscope.models.loading import load_model
from sinkscope.models.source import ModelError, on_disk


@pytest.mark.tiny
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_what_the_loaded_model_has(tiny_folder: Path, dtype: str) -> None:
    found = footprint(ModelSettings(str(tiny_folder), device="cpu", dtype=dtype))  # type: ignore[arg-type]
    model = load_model(str(tiny_folder), device="cpu", dtype=dtype).model  # type: ignore[arg-type]
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.nbytes == sum(p.numel() * p.element_size() for p in model.parameters())
    assert (found.dtype, found.device.type) == (dtype, "cpu")


def test_a_hub_model_that_was_never_fetched() -> None:
    with pytest.raises(NotOnDiskError, match="owner/name is not on this machine"):
        footprint(ModelSettings("owner/name"))


@pytest.mark.tiny
def test_a_fetched_hub_model_is_found_by_branch_and_by_commit(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--owner--name" / "snapshots" / commit
    shutil.copytree(tiny_folder, snapshot)
    refs = tmp_path / "models--owner--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit)
    for revision in (None, "main", commit):
        assert on_disk(ModelSettings("owner/name", revision)) == snapshot
    assert on_disk(ModelSettings("owner/name", "other")) is None
    assert footprint(ModelSettings("owner/name")).parameters > 0
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="1 of 2 weight files are missing, model-2"):
        footprint(ModelSettings("owner/name"))


@pytest.mark.tiny
def test_a_weight_file_cut_short(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(ModelError, match="damaged or half downloaded"):
        footprint(ModelSettings(str(folder)))
