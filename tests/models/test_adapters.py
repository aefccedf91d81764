"""Adapters beside a base model: merged ones equal peft's result; others are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sinkscope.attention_extractor import generate
from sinkscope.config import GenerationSettings, ModelSettings
from sinkscope.models.adapters import adapter_fingerprint
from sinkscope.models.loading import load_model
from sinkscope.models.source import ModelError

pytestmark = pytest.mark.tiny
PLAIN = {"device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def adapter(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the tiny model with random weights, as `save_pretrained` writes it."""
    peft = pytest.importorskip("peft")
    base = load_model(ModelSettings(str(tiny_folder), **PLAIN)).model
    torch.manual_seed(3)
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=r".*language_model.*(q|v|o)_proj")
    made = peft.get_peft_model(base, config)
    for name, weight in made.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.2)
    folder = tmp_path_factory.mktemp("lora")
    made.save_pretrained(str(folder))
    return folder


def test_what_is_merged_is_what_peft_computes(
    adapter: Path, tiny_folder: Path, photo: Image.Image
) -> None:
    from peft import PeftModel

    base = load_model(ModelSettings(str(tiny_folder), **PLAIN))
    tuned = load_model(ModelSettings(str(tiny_folder), adapter=str(adapter), **PLAIN))
    assert not any("lora" in name for name, _ in tuned.model.named_parameters())
    inputs = tuned.prepare([photo.resize((84, 56))], "What is it?")
    with torch.no_grad():
        plain = base.model(**inputs.tensors, use_cache=False).logits
        ours = tuned.model(**inputs.tensors, use_cache=False).logits
        wrapped = PeftModel.from_pretrained(base.model, str(adapter))
        theirs = wrapped(**inputs.tensors, use_cache=False).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (ours - plain).abs().max() > 1e-2
    assert tuned.info.id == f"{tiny_folder} + {adapter.name}"
    base_revision, _, own = tuned.info.revision.partition("+adapter:")
    assert base_revision == base.info.revision and own == adapter_fingerprint(adapter)
    run = generate(tuned, inputs, GenerationSettings(max_new_tokens=2))
    assert run.attention.shape[0] == 2 and run.model.id == tuned.info.id


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("other", "has no adapter_config.json; allowed"),
        ("bin", "adapter_model.bin, a pickle, which is never read"),
        ("shape", "does not fit the model"),
        ("unknown", "does not fit the model"),
        ("damaged", "does not fit the model"),
        ("config", "cannot be read"),
    ],
)
def test_what_is_no_adapter_of_this_model_is_refused(
    change: str, said: str, adapter: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "lora"
    folder.mkdir()
    about = (adapter / "adapter_config.json").read_text(encoding="utf-8")
    weights = load_file(adapter / "adapter_model.safetensors")
    first = next(iter(weights))
    if change == "shape":
        weights[first] = torch.zeros(2, 5)
    if change == "unknown":
        weights["base_model.model.elsewhere.lora_A.weight"] = weights.pop(first)
    if change != "other":
        (folder / "adapter_config.json").write_text("{" if change == "config" else about)
    if change == "bin":
        (folder / "adapter_model.bin").write_bytes(b"x")
    else:
        save_file(weights, folder / "adapter_model.safetensors")
    if change == "damaged":
        (folder / "adapter_model.safetensors").write_bytes(b"\x08" + bytes(30))
    with pytest.raises(ModelError, match=said):
        load_model(ModelSettings(str(tiny_folder), adapter=str(folder), **PLAIN))


def test_without_peft_the_package_is_named(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    save_file({"a": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"pip install 'sinkscope\[adapters\]'"):
        load_model(ModelSettings(str(tiny_folder), adapter=str(tmp_path), **PLAIN))
