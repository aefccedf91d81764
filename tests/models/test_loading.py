"""What loading refuses, each with one clear sentence, and what it records."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from sinkscope.attention_extractor import GenerationTrace, generate
from sinkscope.config import GenerationSettings
from sinkscope.models.info import ModelInfo
from sinkscope.models.loading import ModelError, choose_dtype, load_model
from sinkscope.models.profiles import published

pytestmark = pytest.mark.tiny


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's folder that a test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def test_it_records_what_was_loaded(tiny_folder: Path) -> None:
    steps: list[tuple[str, float]] = []
    handle = load_model(str(tiny_folder), on_progress=lambda text, part: steps.append((text, part)))
    assert handle.info.family == "qwen2_5_vl"
    assert (handle.info.layers, handle.info.heads, handle.info.hidden_size) == (4, 4, 64)
    assert handle.info.revision.startswith("sha256:")
    assert not handle.model.training
    assert not any(p.requires_grad for p in handle.model.parameters())
    fractions = [fraction for _, fraction in steps]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_dtype_is_chosen(tiny_folder: Path) -> None:
    assert load_model(str(tiny_folder), device="cpu").info.dtype == "float32"
    handle = load_model(str(tiny_folder), device="cpu", dtype="bfloat16")
    assert handle.info.dtype == "bfloat16"
    assert handle.model.lm_head.weight.dtype == torch.bfloat16


def test_another_model_has_another_fingerprint(tiny_folder: Path, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_model(str(folder)).info.revision != load_model(str(tiny_folder)).info.revision


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is no model folder"):
        load_model(str(tmp_path / "nowhere"))


def test_a_hub_id_without_network() -> None:
    with pytest.raises(ModelError, match="not on this machine and the hub may not be asked"):
        load_model("Qwen/Qwen2.5-VL-3B-Instruct")


def test_a_hub_id_that_can_be_none() -> None:
    with pytest.raises(ModelError, match=r"not a valid hub id|no model folder"):
        load_model("no spaces/allowed here")


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(str(tmp_path))


def test_a_model_that_is_no_vlm(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="is a 'bert' model; SinkScope works with qwen2_5_vl"):
        load_model(str(folder))


@pytest.mark.parametrize("text", ["", "{", '{"model_type": "no such family"}', "[]"])
def test_a_damaged_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        load_model(str(folder))


def test_missing_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no \.safetensors weights"):
        load_model(str(folder))


def test_pickled_weights_are_not_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no \.safetensors weights"):
        load_model(str(folder))


def test_truncated_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"file model\.safetensors of .* is damaged or half down"):
        load_model(str(folder))


def test_a_shard_that_is_missing(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(ModelError, match="1 of 2 weight files are missing"):
        load_model(str(folder))


def test_weights_that_lack_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"not complete: 1 tensors are missing, lm_head\.weight"):
        load_model(str(folder))


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json"])
def test_a_processor_file_that_is_missing(folder: Path, name: str) -> None:
    (folder / name).unlink()
    for other in ("vocab.json", "merges.txt", "processor_config.json"):
        (folder / other).unlink(missing_ok=True)
    with pytest.raises(ModelError, match=r"tokenizer or image processor|chat template"):
        load_model(str(folder))


def test_a_quantised_model_without_its_library(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 128}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="quantised with awq; install gptqmodel"):
        load_model(str(folder))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match="0 CUDA devices"):
        load_model(str(tiny_folder), device="cuda")


def test_pixel_bounds_that_exclude_each_other(tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match="min_pixels is 99000000, above max_pixels"):
        load_model(str(tiny_folder), min_pixels=99_000_000)


def test_published_profiles_are_read_and_fit_themselves() -> None:
    profiles = {p.model: p for p in published()}
    assert profiles["Qwen/Qwen2.5-VL-7B-Instruct"].dims == (458, 2570)
    assert profiles["Qwen/Qwen2.5-VL-3B-Instruct"].confidence == "medium"


def test_a_folder_brings_its_own_profile(folder: Path) -> None:
    lines = [
        'model = "x"',
        'family = "qwen2_5_vl"',
        "hidden_size = 64",
        "layers = 4",
        "dims = [3, 7]",
    ]
    lines += ["tau = 5.0", 'source = "planted"', 'confidence = "high"']
    (folder / "sink_profile.toml").write_text("\n".join(lines))
    profile = load_model(str(folder)).profile
    assert profile is not None
    assert profile.dims == (3, 7)
    (folder / "sink_profile.toml").write_text("\n".join(lines).replace("= 64", "= 128"))
    with pytest.raises(ModelError, match="hidden size 128"):
        load_model(str(folder))


def test_a_file_is_no_folder(folder: Path) -> None:
    with pytest.raises(ModelError, match="is a file; give the model's folder"):
        load_model(str(folder / "model.safetensors"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer_types": ["linear_attention"] * 4}, "layers of the type 'linear_attention'"),
        ({"layer_types": ["sliding_attention"] * 4}, "sliding_window is None"),
        ({"layer_types": ["full_attention"] * 3}, "num_hidden_layers"),
        ({"use_sliding_window": True, "sliding_window": 0, "layer_types": None}, "window is 0"),
        (
            {"rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24]}},
            "must add up to half of the head size, 8",
        ),
    ],
)
def test_a_config_that_would_fail_in_a_run(
    folder: Path, change: dict[str, object], words: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    text = {**config["text_config"], **change}
    if change.get("use_sliding_window"):
        text["max_window_layers"] = 0
    (folder / "config.json").write_text(json.dumps({**config, "text_config": text}))
    with pytest.raises(ModelError, match=words):
        load_model(str(folder))


def test_how_calls_answer_is_not_the_checkpoints_choice(folder: Path, photo: Image.Image) -> None:
    config = json.loads((folder / "config.json").read_text())
    asked = {"return_dict": False, "output_attentions": True, "output_hidden_states": True}
    config["text_config"].update(asked)
    (folder / "config.json").write_text(json.dumps({**config, **asked}))
    handle = load_model(str(folder))
    trace = generate(handle, handle.prepare([photo], "x"), GenerationSettings(max_new_tokens=2))
    assert len(trace.tokens) == 2


@pytest.mark.parametrize("name", ["adapter_model.bin", "../x.safetensors", "other.safetensors"])
def test_a_config_that_names_weights_of_its_own(folder: Path, name: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": name}))
    with pytest.raises(ModelError, match=r"names .* as its weights"):
        load_model(str(folder))


def test_an_index_that_leads_elsewhere(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "out.safetensors")
    index = {"weight_map": {"lm_head.weight": "../out.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"index\.json of .* is damaged"):
        load_model(str(folder))


def test_a_token_that_the_model_does_not_know(folder: Path, photo: Image.Image) -> None:
    """Added only to the tokenizer: on a GPU such an id would end the process."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<word_{n}>" for n in range(64)])
    tokenizer.save_pretrained(folder)
    handle = load_model(str(folder))
    assert handle.prepare([photo], "Where is it?").layout.length > 0
    with pytest.raises(ValueError, match=r"token '<word_63>', number .* the model knows"):
        handle.prepare([photo], "Where is <word_63>?")


def test_a_note_goes_with_every_trace(folder: Path, photo: Image.Image, tmp_path: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    handle = load_model(str(folder))
    assert handle.info.note.endswith("so the family's own is used.")
    trace = generate(handle, handle.prepare([photo], "x"), GenerationSettings(max_new_tokens=1))
    trace.save(tmp_path / "run.safetensors")
    assert GenerationTrace.open(tmp_path / "run.safetensors").model == handle.info
    assert ModelInfo("m", "r", "f", "float32", "cpu", 4, 2, 64).note == ""  # older files lack it


def test_the_number_type_is_one_to_compute_in() -> None:
    packed = SimpleNamespace(dtype=torch.float8_e4m3fn)
    assert choose_dtype("auto", packed, "cuda:0") == torch.bfloat16
    assert choose_dtype("auto", SimpleNamespace(dtype=torch.float16), "cuda:0") == torch.float16
