"""Writes a folder in the published layout with the real sizes, and random weights.

    python -m tests.checkpoints.real_size OUT [--size 3b|tiny] [--device cuda]

The 3B takes 7.5 GB. It has the tokenizer of the bundled model, because the real one is not in this
repository; the embedding has the published number of rows.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.checkpoints.published import DEMO, TOKEN_KEYS, write_published

TEXT = {
    "3b": {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128000,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [16, 24, 24],
        },
    },
    "tiny": {
        "vocab_size": 2048,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    },
}
VISION = {
    "3b": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
    "tiny": {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 4,
        "fullatt_block_indexes": [1],
    },
}
SIZES = tuple(TEXT)


def config_of(size: str, tokenizer: Path = DEMO) -> Qwen2_5_VLConfig:
    """The published sizes, with the token numbers of a tokenizer's own model."""
    own = json.loads((tokenizer / "config.json").read_text(encoding="utf-8"))
    ends = {name: own["text_config"][name] for name in ("eos_token_id", "pad_token_id")}
    if TEXT[size]["vocab_size"] < own["text_config"]["vocab_size"]:  # type: ignore[operator]
        raise ValueError(f"The vocabulary of {size} is smaller than that of its tokenizer.")
    return Qwen2_5_VLConfig(
        text_config={
            **TEXT[size],
            **ends,
            "rms_norm_eps": 1e-6,
            "bos_token_id": ends["pad_token_id"],
            "tie_word_embeddings": True,
        },
        vision_config={
            **VISION[size],
            "out_hidden_size": TEXT[size]["hidden_size"],
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
        },
        tie_word_embeddings=True,
        **{key: own[key] for key in TOKEN_KEYS},
    )


def write_real_size(folder: Path, size: str, device: str, seed: int = 0) -> Path:
    """Random weights in bfloat16, made on `device`, as two shards with an index."""
    config = config_of(size)
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
        torch.manual_seed(seed)
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device(device):
                model = Qwen2_5_VLForConditionalGeneration(config)
        finally:
            torch.set_default_dtype(before)
    weights: dict[str, Any] = {name: weight.cpu() for name, weight in model.state_dict().items()}
    write_published(folder, weights, config.to_dict(), DEMO)
    return folder


def main() -> None:
    options = argparse.ArgumentParser(description="Write the published layout in its real size.")
    options.add_argument("out", type=Path)
    options.add_argument("--size", choices=SIZES, default="3b")
    options.add_argument("--device", default="cuda")
    given = options.parse_args()
    write_real_size(given.out, given.size, given.device)


if __name__ == "__main__":
    main()
