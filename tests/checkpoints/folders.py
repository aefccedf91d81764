"""Small edits of a checkpoint folder, for the cases."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints.published import write_json

INDEX = "model.safetensors.index.json"


def read_json(file: Path) -> dict[str, Any]:
    content = json.loads(file.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def edit_json(file: Path, **changes: Any) -> None:
    """Set keys of a JSON file; a key whose value is `...` is removed."""
    content = {**read_json(file), **changes}
    write_json(file, {key: value for key, value in content.items() if value is not ...})


def take_out(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    held: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        held.update(load_file(file))
    return held


def single_file(folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
    """Put all weights into one `model.safetensors` instead of the shards."""
    held = dict(weights_of(folder) if weights is None else weights)
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    save_file(
        {name: weight.contiguous() for name, weight in held.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def renamed(folder: Path, name: Callable[[str], str]) -> None:
    """Rename every tensor."""
    single_file(folder, {name(old): weight for old, weight in weights_of(folder).items()})


def new_name(name: str) -> str:
    """The name of a tensor in memory since transformers 4.52."""
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1) if name[:6] == "model." else name


def nested_config(folder: Path) -> dict[str, Any]:
    """The flat config as transformers 4.52 to 4.57 saves it again: both flat and nested."""
    flat = read_json(folder / "config.json")
    own = ("vision_config", "architectures", "model_type", "transformers_version")
    text = {key: value for key, value in flat.items() if key not in own}
    outer = {key: value for key, value in flat.items() if key != "tie_word_embeddings"}
    return {
        **outer,
        "text_config": {**text, "model_type": "qwen2_5_vl_text"},
        "vision_config": {**flat["vision_config"], "model_type": "qwen2_5_vl"},
        "transformers_version": "4.57.6",
    }


def today(folder: Path, model: Path) -> None:
    """The layout of transformers 5: nested config, one processor file, the template in a file."""
    for name in ("config.json", "tokenizer_config.json"):
        shutil.copy(model / name, folder / name)
    take_out(folder, "vocab.json", "merges.txt", "chat_template.json")
    template = folder / "chat_template.jinja"
    template.write_text((model / template.name).read_text(encoding="utf-8"), encoding="utf-8")
    images = read_json(folder / "preprocessor_config.json")
    bounds = {"shortest_edge": images.pop("min_pixels"), "longest_edge": images.pop("max_pixels")}
    images.pop("processor_class")
    images["image_processor_type"] = "Qwen2VLImageProcessor"
    take_out(folder, "preprocessor_config.json")
    write_json(
        folder / "processor_config.json",
        {"image_processor": {**images, "size": bounds}, "processor_class": "Qwen2_5_VLProcessor"},
    )


def unmerged(folder: Path) -> None:
    """A state dict that was saved with its LoRA layers."""
    held: dict[str, torch.Tensor] = {}
    for name, weight in weights_of(folder).items():
        if name.endswith("q_proj.weight"):
            layer = name.removesuffix(".weight")
            held[f"{layer}.base_layer.weight"] = weight
            held[f"{layer}.lora_A.default.weight"] = torch.zeros(8, weight.shape[1])
            held[f"{layer}.lora_B.default.weight"] = torch.zeros(weight.shape[0], 8)
        else:
            held[name] = weight
    single_file(folder, held)


def adapter(folder: Path) -> None:
    """The files that PEFT writes beside a model or instead of one."""
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    weights = {f"{layer}.lora_A.weight": torch.zeros(8, 64)}
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    write_json(
        folder / "adapter_config.json",
        {
            "peft_type": "LORA",
            "base_model_name_or_path": "Qwen/Qwen2.5-VL-3B-Instruct",
            "r": 8,
            "target_modules": ["q_proj"],
        },
    )


def eight_bit_floats(folder: Path, block: int = 128) -> None:
    """Linear layers of the text model as fine-grained FP8: one scale for each block."""
    held: dict[str, torch.Tensor] = {}
    for name, weight in weights_of(folder).items():
        if not (name.startswith("model.layers.") and name.endswith("proj.weight")):
            held[name] = weight
            continue
        rows, columns = (math.ceil(size / block) for size in weight.shape)
        scales = torch.zeros(rows, columns)
        packed = torch.zeros(weight.shape, dtype=torch.float8_e4m3fn)
        for row in range(rows):
            for column in range(columns):
                cell = (
                    slice(row * block, (row + 1) * block),
                    slice(column * block, (column + 1) * block),
                )
                scales[row, column] = weight[cell].float().abs().max() / 448
                packed[cell] = (weight[cell].float() / scales[row, column]).to(packed.dtype)
        held[name], held[f"{name}_scale_inv"] = packed, scales
    single_file(folder, held)


def resized_embeddings(folder: Path, rows: int) -> None:
    """Rows added to the embeddings and the head, and not to the config."""
    held = weights_of(folder)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in held:
            held[name] = torch.cat([held[name], held[name][:rows]])
    single_file(folder, held)


def add_tokens(folder: Path, *contents: str, special: bool = True, **flags: bool) -> None:
    """Tokens added as `tokenizer.add_tokens` and `add_special_tokens` do, saved by transformers."""
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    made = [AddedToken(text, special=special, normalized=False, **flags) for text in contents]
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": made})
    else:
        tokenizer.add_tokens(made)
    tokenizer.save_pretrained(folder)
