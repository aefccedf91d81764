"""What a Qwen2.5-VL checkpoint's config must say, what its tensors are called, and how to detect
that they do not match the config.

Checkpoints up to transformers 4.51 call the text model `model.` and the vision tower `visual.`,
later ones `model.language_model.` and `model.visual.`; transformers reads both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sinkscope.models.quantised import quantisation
from sinkscope.models.weights import ADAPTED, FLOATS, StoredTensor

# A tensor that every checkpoint has, under all names that transformers reads.
EMBEDDINGS = (
    "model.language_model.embed_tokens.weight",
    "language_model.embed_tokens.weight",
    "model.embed_tokens.weight",
)
HEAD = "lm_head.weight"
LAYER = re.compile(r"^(?:model\.)?(?:language_model\.)?layers\.(\d+)\.")
BLOCK = re.compile(r"^(?:model\.)?visual\.blocks\.(\d+)\.")
WRAPPERS = {
    "base_model.model.": "PEFT's wrapper: merge the adapter (merge_and_unload) and save the model",
    "module.": "the wrapper of a parallel training: save the model inside it (model.module)",
    "_orig_mod.": "the wrapper of torch.compile: save the model inside it (model._orig_mod)",
    "_fsdp_wrapped_module.": "FSDP's wrapper: save a full state dict",
}


def config_problem(config: Any) -> str | None:
    """What in a config would fail only when the model runs, as the rest of a sentence about it."""
    text = config.text_config
    kinds = sorted(set(text.layer_types or ()) - {"full_attention", "sliding_attention"})
    if kinds:
        return f"has layers of the type {kinds[0]!r}; allowed: full_attention, sliding_attention."
    slides = "sliding_attention" in (text.layer_types or ())
    if slides and not (isinstance(text.sliding_window, int) and text.sliding_window > 0):
        return (
            f"has layers with a sliding window, but sliding_window is {text.sliding_window!r} "
            f"(use_sliding_window: {text.use_sliding_window}); allowed: a whole number from 1."
        )
    half = text.hidden_size // text.num_attention_heads // 2
    sections = (text.rope_parameters or {}).get("mrope_section", [16, 24, 24])
    whole = isinstance(sections, list) and all(isinstance(size, int) for size in sections)
    if not whole or sum(sections) != half:
        return (
            f"has the mrope_section {sections!r} in rope_scaling; its numbers must add up to half "
            f"of the head size, {half}."
        )
    return None


def weights_problem(config: Any, tensors: Mapping[str, StoredTensor]) -> str | None:
    """Why these tensors are not a model of this config, in a sentence that begins with a verb for
    the model; None if they may be.

    Args:
        config: of the checkpoint.
        tensors: the headers of its weight files.
    """
    if adapted := next((name for name in sorted(tensors) if ADAPTED.search(name)), None):
        return (
            f"has the weights of an adapter that is not merged ({adapted}): merge the adapter "
            "(merge_and_unload, or the trainer's export) and save the model."
        )
    if prefix := _foreign_prefix(tensors):
        what = next((reason for part, reason in WRAPPERS.items() if part in prefix), None)
        what = what or "a wrapper: save the model inside it; if that is an adapter's, merge the "
        what += "" if what in WRAPPERS.values() else "adapter first"
        return f"has the prefix {prefix!r} before the names of its tensors, which is {what}."
    if empty := next((name for name in sorted(tensors) if 0 in tensors[name].shape), None):
        return (
            f"has tensors without elements ({empty}), as DeepSpeed ZeRO-3 leaves them where it "
            "does not gather the weights for saving: gather them first, with zero_to_fp32.py."
        )
    if quantisation(config) is not None:
        return None  # packed tensors have other shapes and types
    return _other_types(tensors) or _other_sizes(config, tensors)


def missing_words(missing: Sequence[str]) -> str:
    """Why tensors are missing, and what to do."""
    count = f"{len(missing)} tensors are missing"
    if list(missing) == [HEAD]:
        return (
            f"{count}, {HEAD}; a model that shares its embeddings with its head (the 3B does) has "
            "tie_word_embeddings set to true in config.json; in any other model it was not saved"
        )
    if all("visual." in name for name in missing) and any("blocks.0." in n for n in missing):
        return (
            f"{count}, all of the vision tower; this is only the text part; take the vision "
            "tower's weights from the base model"
        )
    return f"{count}, {missing[0]} among them; download it again"


def _foreign_prefix(tensors: Mapping[str, StoredTensor]) -> str:
    """A prefix of tensor names that belongs to no layout of the family."""
    if any(name in tensors for name in EMBEDDINGS):
        return ""
    for name in sorted(tensors):
        for known in EMBEDDINGS:
            if name.endswith("." + known):
                return name.removesuffix(known)
    return ""


def _other_types(tensors: Mapping[str, StoredTensor]) -> str | None:
    for name, tensor in sorted(tensors.items()):
        if tensor.dtype not in FLOATS and len(tensor.shape) > 1:
            return (
                f"has its weights as {tensor.dtype} ({name}), but config.json has no "
                "quantization_config that says how to read them; use the checkpoint's own."
            )
    return None


def _other_sizes(config: Any, tensors: Mapping[str, StoredTensor]) -> str | None:
    text = config.text_config
    expected = StoredTensor((text.vocab_size, text.hidden_size), "")
    for name in (*EMBEDDINGS, HEAD):
        tensor = tensors.get(name)
        if tensor is None or tensor.shape == expected.shape:
            continue
        words = f"does not fit its config.json: {name} is {tensor} in the weight files, and "
        if len(tensor.shape) == 2 and tensor.shape[1] == text.hidden_size:
            return (
                f"{words}{expected} by the config. The embeddings were resized after the config "
                f"was saved: set vocab_size to {tensor.shape[0]} in config.json."
            )
        return f"{words}{expected} by the config, which is from another model."
    for what, pattern, count, setting in (
        ("decoder layers", LAYER, text.num_hidden_layers, "num_hidden_layers"),
        ("vision blocks", BLOCK, config.vision_config.depth, "vision_config.depth"),
    ):
        numbers = {int(m.group(1)) for name in tensors if (m := pattern.match(name))}
        if numbers and max(numbers) + 1 > count:
            return (
                f"does not fit its config.json: the weight files hold {max(numbers) + 1} {what}, "
                f"the config says {count} ({setting})."
            )
    return None
