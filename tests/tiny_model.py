"""A seeded random Qwen2.5-VL of 0.4 million parameters: it runs like a real one, untrained.

It is a genuine `Qwen2_5_VLForConditionalGeneration` in float32 with a byte-level Qwen2 tokenizer,
an image processor and Qwen's chat template, so that everything that works on a folder with the real
model works on it. Its answers mean nothing; its attention is sharp enough that a wrong row, head or
layer shows as a large difference.
    build_model(seed)               the model in memory
    save_model(folder, seed)        the same as a folder that `load_model` opens
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX, Qwen2Tokenizer

SPECIAL_TOKENS = (
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
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_CORPUS = (
    "system\nYou are a helpful assistant.",
    "user\nDescribe the image.",
    "assistant\nThere is a red star at the top left and a blue circle at the bottom right.",
    "What colour is the star? Where is the green square? How many objects are there?",
    "yes, no, one, two, three, a, an, the, and, of, in, on, at, left, right, top, bottom.",
)


def build_tokenizer() -> Qwen2Tokenizer:
    """Byte-level BPE: every text tokenizes, some words are one token, anything else is bytes."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        show_progress=False,
    )
    bpe.train_from_iterator(_CORPUS * 20, trainer)
    learned = json.loads(bpe.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learned["merges"]]
    return Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=merges,
        unk_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
    )


def build_config(tokenizer: Qwen2Tokenizer, layers: int = 4) -> Qwen2_5_VLConfig:
    """Hidden 64, 4 heads over 2 key/value heads of size 16, 2 vision blocks, the second global."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": (len(tokenizer) + 63) // 64 * 64,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [2, 3, 3],
            },
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "tie_word_embeddings": False,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_heads": 4,
            "in_channels": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )


def build_model(
    seed: int = 0, layers: int = 4, tokenizer: Qwen2Tokenizer | None = None
) -> Qwen2_5_VLForConditionalGeneration:
    """The model in float32, eval mode. Same seed, same weights; does not change global
    generators."""
    tokenizer = tokenizer or build_tokenizer()
    config = build_config(tokenizer, layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config).eval().to(torch.float32)
        for parameter in model.parameters():
            if parameter.dim() > 1:  # norms and biases keep the library's values
                # 1 / sqrt(hidden size): signals keep their size from layer to layer.
                torch.nn.init.normal_(parameter, std=0.125)
        for layer in model.model.language_model.layers:
            # Sharper rows: nearly uniform ones would hide that a wrong row is used.
            layer.self_attn.q_proj.weight.data.mul_(1.5)
    end = config.text_config.eos_token_id
    model.generation_config = GenerationConfig(
        eos_token_id=end, pad_token_id=config.text_config.pad_token_id, do_sample=False
    )
    return model.requires_grad_(False)


def save_model(folder: Path, seed: int = 0, layers: int = 4) -> Path:
    """Write model, tokenizer, chat template and image processor to `folder`, like a checkpoint."""
    # The class that `transformers` exports is a placeholder that fails without torchvision.
    from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as without_torchvision

    tokenizer = build_tokenizer()
    build_model(seed, layers, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 256}
    without_torchvision.Qwen2VLImageProcessorPil(size=size).save_pretrained(folder)
    return folder
