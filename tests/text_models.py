"""Tiny random text models of each architecture, with a tokenizer, as folders that `load_model`
opens.

    configs()                       architecture -> its config
    save_text_model(folder, name)   the folder
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from sinkscope.models.attention import NAME
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle

WITHOUT_GATE = ("gpt2", "gpt_neox")
TEXT = "a red star, and a blue circle; a red star again"
_CORPUS = ("A red star is left of a blue circle.", "a red star, and a blue circle again", "Yes no.")
_CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def metaspace_tokenizer(
    vocabulary: int = 40, extra: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """Like Llama's: blanks are part of tokens (Metaspace), bytes for unknown characters, a BOS."""
    special = ["<unk>", "<s>", "</s>", *extra]
    unigrams = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary + len(special) + 256,
        special_tokens=special + unigrams,
        show_progress=False,
    )
    tokenizer.train_from_iterator([*_CORPUS * 10], trainer)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return _fast(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", extra=extra)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Like GPT-2's: byte-level, nothing added before a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([*_CORPUS * 10], trainer)
    end = "<|endoftext|>"
    return _fast(tokenizer, bos_token=end, eos_token=end, unk_token=end)


def _fast(
    tokenizer: Tokenizer, extra: tuple[str, ...] = (), **special: str
) -> PreTrainedTokenizerFast:
    more: dict[str, Any] = {"additional_special_tokens": list(extra)} if extra else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=_CHAT,
        clean_up_tokenization_spaces=False,
        **special,
        **more,
    )


def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """Metaspace for Llama and Mistral, byte-level for the others."""
    return metaspace_tokenizer() if name in ("llama", "mistral") else byte_tokenizer()


def configs(vocabulary: int = 512) -> dict[str, Any]:
    """Three layers, hidden 32, 4 heads; grouped keys if the architecture supports them."""
    size: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    grouped = {**size, "num_key_value_heads": 2}
    window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    return {
        "qwen2": Qwen2Config(**grouped),
        "qwen2_window": Qwen2Config(**grouped, **window),
        "qwen3": Qwen3Config(**grouped, head_dim=16),
        "llama": LlamaConfig(**grouped),
        "mistral": MistralConfig(**grouped, sliding_window=None),
        "mistral_window": MistralConfig(**grouped, sliding_window=6),
        "gpt2": GPT2Config(
            vocab_size=vocabulary,
            n_embd=32,
            n_inner=48,
            n_layer=3,
            n_head=4,
            n_positions=256,
            bos_token_id=None,
            eos_token_id=None,
        ),
        "gpt_neox": GPTNeoXConfig(**size, use_parallel_residual=True),
        "gpt_neox_serial": GPTNeoXConfig(**size, use_parallel_residual=False),
    }


def save_text_model(folder: Path, name: str, seed: int = 0) -> Path:
    """Write a random model and its tokenizer, like a checkpoint."""
    config = configs()[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval().to(torch.float32)
        for where, parameter in model.named_parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.25)
                if any(part in where for part in ("q_proj", "c_attn", "query_key_value")):
                    parameter.data.mul_(2)  # sharper rows, so that a wrong one is noticed
            else:  # norms and biases that are not 1 and 0
                parameter.data.normal_(1.0 if where.endswith("weight") else 0.0, 0.2)
                parameter.data.mul_(2 if "q_norm" in where else 1)
    model.generation_config = GenerationConfig(do_sample=False)
    model.save_pretrained(folder)
    tokenizer_of(config.model_type).save_pretrained(folder)
    return folder


def generated(handle: ModelHandle, inputs: PromptInputs, new: int = 3, **more: Any) -> Any:
    """Generates a few tokens, with a cache that keeps every key."""
    return handle.model.generate(
        **inputs.tensors,
        past_key_values=DynamicCache(),
        max_new_tokens=new,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **more,
    )


@contextmanager
def attention_of(handle: ModelHandle, name: str) -> Iterator[None]:
    handle.model.set_attn_implementation(name)
    try:
        yield
    finally:
        handle.model.set_attn_implementation(NAME)
