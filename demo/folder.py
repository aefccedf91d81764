"""The parts of the bundled folder that are not weights: tokenizer, chat template, configuration,
image processor.

Token names, the chat template and the file layout are those of the published Qwen2.5-VL
checkpoints, so the bundled folder is loaded by the same code. Only the sizes differ.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from sinkscope.demo.questions import TRAINING_KINDS, questions
from sinkscope.demo.scenes import COLOURS, PLACES, SHAPES, scene

SPECIAL_TOKENS: tuple[str, ...] = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PATCH, MERGE, TEMPORAL = 14, 2, 2
CELL = PATCH * MERGE
"""Side of one vision token in pixels of the resized image."""
MIN_TOKENS, MAX_TOKENS = 25, 100
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
_TOKENIZER_SCENES = 1500


def build_tokenizer() -> Any:
    """Trains the byte-level BPE on the template sentences: each of their words becomes one token.

    Any other text can be tokenized as well (into bytes, in the worst case).

    Returns:
        A ``Qwen2Tokenizer``, always the same.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX, Qwen2Tokenizer

    corpus = ["system\nYou are a helpful assistant.", "user\n", "assistant\n"] * 50
    for index in range(_TOKENIZER_SCENES):
        picture = scene([7, index], 84, 84, min_objects=0, background="texture")
        for question in questions(picture, TRAINING_KINDS):
            corpus += [question.prompt, question.answer]
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.NFC()
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=520,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        show_progress=False,
    )
    trained.train_from_iterator(corpus, trainer)
    model = json.loads(trained.to_str())["model"]
    merges: Any = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    return Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
    )


def build_config(tokenizer: Any) -> Any:
    """The architecture: a Qwen2.5-VL of 6 decoder layers, hidden size 256, and a 4-block vision
    tower.

    Rotary positions: with a head size of 32, the published theta and sections would leave almost no
    usable frequencies for the width, so theta is 50 and time, height and width are interleaved
    (sections of one).
    """
    from transformers import Qwen2_5_VLConfig

    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    hidden, heads = 256, 8
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": (len(tokenizer) + 63) // 64 * 64,
            "hidden_size": hidden,
            "intermediate_size": 640,
            "num_hidden_layers": 6,
            "num_attention_heads": heads,
            "num_key_value_heads": 4,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 50.0,
                "mrope_section": [1] * (hidden // heads // 2),
            },
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 4,
            "hidden_size": 128,
            "intermediate_size": 320,
            "num_heads": 4,
            "in_channels": 3,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": TEMPORAL,
            "window_size": 112,
            "out_hidden_size": hidden,
            "fullatt_block_indexes": [1, 3],
            "tokens_per_second": 2,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def preprocessor_settings() -> dict[str, Any]:
    """The contents of ``preprocessor_config.json``: images become 25 to 100 vision tokens."""
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(IMAGE_MEAN),
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_std": list(IMAGE_STD),
        "merge_size": MERGE,
        "patch_size": PATCH,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": MIN_TOKENS * CELL**2, "longest_edge": MAX_TOKENS * CELL**2},
        "temporal_patch_size": TEMPORAL,
    }


def write_folder(folder: Path, model: Any, tokenizer: Any) -> None:
    """Writes model (bf16), tokenizer, template and processor settings as one loadable folder.

    The weights are written last and then renamed, so a half-written folder never looks complete.
    """
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = model.config.to_dict()
    config["architectures"] = ["Qwen2_5_VLForConditionalGeneration"]
    config["dtype"] = "bfloat16"
    for part in ("text_config", "vision_config"):
        config[part]["dtype"] = "bfloat16"
    write_json(folder / "config.json", config)
    text = model.config.text_config
    write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": text.bos_token_id,
            "do_sample": False,
            "eos_token_id": [text.eos_token_id, text.bos_token_id],
            "pad_token_id": text.pad_token_id,
        },
    )
    write_json(folder / "preprocessor_config.json", preprocessor_settings())
    tokenizer.save_pretrained(folder)
    # From state_dict instead of save_pretrained, so the names do not depend on the library's
    # version.
    tensors = {
        name: value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    partial = folder / "model.safetensors.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(folder / "model.safetensors")


def write_json(path: Path, content: Any) -> None:
    """Writes JSON with sorted keys to a temporary name, and renames it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)


def patches(image: np.ndarray) -> np.ndarray:
    """The image processor's output for an image whose sides are multiples of 28, with numpy only.

    Args:
        image: ``(H, W, 3)`` uint8.

    Returns:
        ``(H/14 * W/14, 3*2*14*14)`` float32, in the merge-window order of the processor; equal to
        it to 1e-6.
    """
    mean, spread = np.array(IMAGE_MEAN, np.float32), np.array(IMAGE_STD, np.float32)
    scaled = (image.astype(np.float32) * np.float32(1 / 255) - mean) / spread
    rows, cols = image.shape[0] // CELL, image.shape[1] // CELL
    cells = scaled.reshape(rows, MERGE, PATCH, cols, MERGE, PATCH, 3)
    cells = cells.transpose(0, 3, 1, 4, 6, 2, 5)  # rows, cols, merge_y, merge_x, channel, y, x
    frames = np.broadcast_to(cells[:, :, :, :, :, None], (*cells.shape[:5], TEMPORAL, PATCH, PATCH))
    return np.ascontiguousarray(frames).reshape(rows * cols * MERGE**2, -1)


def words() -> tuple[str, ...]:
    """The words that must be single tokens, so that the auxiliary losses find them (with a leading
    space)."""
    places = {word for place in PLACES for word in place.split()}
    return tuple(f" {w}" for w in (*SHAPES, *COLOURS, *sorted(places)))
