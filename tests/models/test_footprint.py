"""The predicted memory of a load, compared with the model that is then loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sinkscope.config import ModelSettings
from sinkscope.models.footprint import NotOnDiskError, footprint
from sinkscope.models.loading import load_model
from sinkscope.models.source import ModelError, on_disk
from tests.checkpoints.folders import edit_json, eight_bit_floats, resized_embeddings
from tests.checkpoints.published import write_like


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


@pytest.mark.tiny
def test_files_that_are_not_read_are_not_counted(tiny_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    alone = footprint(ModelSettings(str(folder), device="cpu"))
    save_file({"x": torch.zeros(1000)}, folder / "optimizer.safetensors")
    assert footprint(ModelSettings(str(folder), device="cpu")) == alone


@pytest.mark.tiny
def test_what_a_load_refuses_is_refused_before_it(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sinkscope.models.quantised._installed", lambda module: False)
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    quantised = {"quant_method": "awq", "bits": 4}
    edit_json(folder / "config.json", quantization_config=quantised)
    with pytest.raises(ModelError, match="install gptqmodel"):
        footprint(ModelSettings(str(folder)))
    edit_json(folder / "config.json", quantization_config=...)
    resized_embeddings(folder, 8)
    with pytest.raises(ModelError, match="The embeddings were resized"):
        footprint(ModelSettings(str(folder)))


@pytest.mark.tiny
def test_eight_bit_floats_are_counted_as_what_they_become(
    tiny_folder: Path, tmp_path: Path
) -> None:
    folder = write_like(tmp_path / "model", tiny_folder)
    plain = footprint(ModelSettings(str(folder), device="cpu", dtype="bfloat16"))
    eight_bit_floats(folder)
    edit_json(
        folder / "config.json",
        quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]},
    )
    found = footprint(ModelSettings(str(folder), device="cpu", dtype="bfloat16"))
    scales = found.parameters - plain.parameters
    assert 0 < scales < 100
    assert found.nbytes == plain.nbytes + 2 * scales
