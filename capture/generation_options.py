"""Every setting of transformers for choosing the next token, and what it changes.

A setting is a "knob": one attribute of transformers' `GenerationConfig`. `capture.decoding` says
which of them act in a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sinkscope.models.generation_file import is_token

Kind = Literal["chooses", "samples", "ends", "other way", "unused", "mechanics", "token", "record"]

# What transformers uses if a checkpoint that samples does not set it.
SAMPLING_DEFAULTS = {"temperature": 1.0, "top_k": 50}


@dataclass(frozen=True)
class GenerationOption:
    """One attribute of transformers' `GenerationConfig`.

    Attributes:
        kind: what it changes. "chooses": which token is taken. "samples": the same, only in
            sampling. "ends": how long an answer is. "other way": asks for a way of generating that
            cannot be captured. "unused": acts only with such a way, or never in a model of this
            kind. "mechanics": how a result is computed or returned, not which one. "token": ids of
            special tokens. "record": not a setting.
        off: the value with which it changes nothing.
        usable: whether transformers can use a value (not None), given the size of the vocabulary.
        allowed: the usable values in words.
        acts: whether a usable value changes anything; None: if it differs from `off`.
        plain: a usable value as JSON has it, in the number type that transformers demands.
        why: of an "other way": what it is, and why it cannot be captured.
    """

    kind: Kind
    off: Any = None
    usable: Callable[[Any, int], bool] = lambda value, vocabulary: True
    allowed: str = ""
    acts: Callable[[Any], bool] | None = None
    plain: Callable[[Any], Any] = lambda value: value
    why: str = ""

    def active(self, value: Any) -> bool:
        """Whether this value, which is usable, changes anything."""
        if value is None or value in ([], (), {}):
            return False
        return bool(value != self.off if self.acts is None else self.acts(value))


def _is_number(value: Any) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and abs(value) <= 1e300 and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31


def _are_some(value: Any, vocabulary: int) -> bool:
    """Ids of some tokens, but not of all; ids without a token have no effect."""
    if not isinstance(value, list | tuple) or not all(_is_whole(one) for one in value):
        return False
    return len({one for one in value if is_token(one, vocabulary)}) < vocabulary


def _are_tokens(value: Any, vocabulary: int) -> bool:
    return isinstance(value, list | tuple) and all(is_token(one, vocabulary) for one in value)


def _are_sequences(value: Any, vocabulary: int) -> bool:
    return isinstance(value, list | tuple) and all(
        _are_tokens(one, vocabulary) and len(one) > 0 for one in value
    )


def _are_biases(value: Any, vocabulary: int) -> bool:
    pairs = list(value.items()) if isinstance(value, dict) else value
    return isinstance(pairs, list | tuple) and all(
        isinstance(pair, list | tuple)
        and len(pair) == 2
        and _are_sequences([pair[0]], vocabulary)
        and _is_number(pair[1])
        for pair in pairs
    )


def _is_decay(value: Any, vocabulary: int) -> bool:
    two = isinstance(value, list | tuple) and len(value) == 2
    return two and is_token(value[0], 2**31) and _is_number(value[1]) and 0 < value[1] <= 1000


def _are_texts(value: Any, vocabulary: int) -> bool:
    texts = [value] if isinstance(value, str) else value
    return isinstance(texts, list | tuple) and all(isinstance(t, str) and t for t in texts)


def _whole(kind: Kind, off: Any, low: int, why: str = "") -> GenerationOption:
    allowed = f"a whole number from {low} up"
    return GenerationOption(kind, off, lambda v, _: _is_whole(v) and v >= low, allowed, why=why)


def _count(kind: Kind, off: Any) -> GenerationOption:
    """An option that is off up to 0."""
    return GenerationOption(kind, off, lambda v, _: _is_whole(v), "a whole number", lambda v: v > 0)


def _number(
    kind: Kind,
    off: Any,
    low: float = -1e300,
    high: float = 1e300,
    acts: Callable[[Any], bool] | None = None,
    why: str = "",
) -> GenerationOption:
    allowed = "a number" + (f" from {low:g}" if low > -1e300 else "")
    allowed += f" to {high:g}" if high < 1e300 else " up" if low > -1e300 else ""
    return GenerationOption(
        kind, off, lambda v, _: _is_number(v) and low <= v <= high, allowed, acts, float, why
    )


def _flag(kind: Kind) -> GenerationOption:
    return GenerationOption(kind, False, lambda value, _: isinstance(value, bool), "true or false")


def _other(why: str) -> GenerationOption:
    return GenerationOption("other way", acts=lambda value: value is not False, why=why)


def _lists(value: Any) -> Any:
    return [list(one) if isinstance(one, list | tuple) else one for one in value]


def _bias_lists(value: Any) -> Any:
    pairs = value.items() if isinstance(value, dict) else value
    return [[list(tokens), float(bias)] for tokens, bias in pairs]


ROWS = "its tokens are not each explained by a single row of attention"
ASSISTED, BEAMS = f"assisted decoding: {ROWS}", f"beam search: {ROWS}"
UNUSED, MECHANICS, RECORD = (
    GenerationOption("unused"),
    GenerationOption("mechanics"),
    GenerationOption("record"),
)
NO_OUTPUT, TOKEN = GenerationOption("mechanics", False), GenerationOption("token")
TOKEN_LIST = GenerationOption(
    "chooses", None, _are_some, "a list of token ids, not all", plain=list
)

# Every attribute of GenerationConfig; a test compares them with the installed transformers.
GENERATION_OPTIONS: Mapping[str, GenerationOption] = {
    "do_sample": _flag("chooses"),
    "temperature": _number("samples", 1.0, 1e-30),
    "top_k": _whole("samples", 0, 0),
    "top_p": _number("samples", 1.0, 0, acts=lambda p: p < 1),
    "min_p": _number("samples", None, 0, 1, lambda p: p > 0),
    "top_h": _number("samples", None, 1e-9, 1),
    "typical_p": _number("samples", 1.0, 1e-9, acts=lambda p: p < 1),
    "epsilon_cutoff": _number("samples", 0.0, acts=lambda p: 0 < p < 1),
    "eta_cutoff": _number("samples", 0.0, acts=lambda p: 0 < p < 1),
    "repetition_penalty": _number("chooses", 1.0, 1e-6, 1e6),
    "encoder_repetition_penalty": _number("chooses", 1.0, 1e-6, 1e6),
    "no_repeat_ngram_size": _count("chooses", 0),
    "encoder_no_repeat_ngram_size": _count("chooses", 0),
    "bad_words_ids": GenerationOption(
        "chooses", None, _are_sequences, "a list of lists of token ids", plain=_lists
    ),
    "suppress_tokens": TOKEN_LIST,
    "begin_suppress_tokens": TOKEN_LIST,
    "sequence_bias": GenerationOption(
        "chooses", None, _are_biases, "a list of [token ids, bias]", plain=_bias_lists
    ),
    "exponential_decay_length_penalty": GenerationOption(
        "chooses", None, _is_decay, "[start, factor]", plain=lambda v: [v[0], float(v[1])]
    ),
    "forced_eos_token_id": GenerationOption(
        "chooses",
        None,
        lambda v, size: is_token(v, size) or _are_tokens(v, size),
        "a token id, or a list of them",
        plain=lambda v: v if isinstance(v, int) else list(v),
    ),
    "remove_invalid_values": _flag("chooses"),
    "renormalize_logits": _flag("chooses"),
    "watermarking_config": GenerationOption(
        "chooses",
        None,
        lambda v, _: hasattr(v, "construct_processor"),
        "the settings of transformers' WatermarkingConfig",
        plain=lambda v: dict(vars(v)),
    ),
    "min_new_tokens": _count("ends", None),
    "min_length": _count("ends", 0),
    "max_new_tokens": _whole("ends", None, 1),
    "max_length": _whole("ends", None, 1),
    "max_time": _number("ends", None, 0),
    "stop_strings": GenerationOption(
        "ends",
        None,
        _are_texts,
        "a text, or a list of texts",
        plain=lambda v: [v] if isinstance(v, str) else list(v),
    ),
    "num_beams": _whole("other way", 1, 1, BEAMS),
    "num_return_sequences": _whole("other way", 1, 1, "several answers, where a run has one"),
    "constraints": _other(BEAMS),
    "force_words_ids": _other(BEAMS),
    "prompt_lookup_num_tokens": _other(ASSISTED),
    "assistant_early_exit": _other(ASSISTED),
    "use_mtp": _other(ASSISTED),
    "is_assistant": _other(ASSISTED),
    "dola_layers": _other("DoLa decoding, which compares the outputs of several layers"),
    "penalty_alpha": _number(
        "other way", None, 0, acts=lambda alpha: alpha > 0, why=f"contrastive search: {ROWS}"
    ),
    "guidance_scale": _number(
        "other way",
        None,
        acts=lambda scale: scale != 1,
        why="guidance: a second forward pass for each token, without the prompt",
    ),
    "token_healing": _other("token healing: it changes the end of the prompt"),
    "cache_implementation": GenerationOption(
        "other way",
        acts=lambda name: name == "quantized",
        why="a quantised cache: it changes the keys that rows are computed from",
    ),
    "forced_bos_token_id": UNUSED,  # acts where the prompt is a single token
    "decoder_start_token_id": UNUSED,
    "early_stopping": GenerationOption("unused", False),
    "length_penalty": GenerationOption("unused", 1.0),
    "diversity_penalty": GenerationOption("unused", 0.0),
    "num_beam_groups": GenerationOption("unused", 1),
    "low_memory": UNUSED,
    "num_assistant_tokens": UNUSED,
    "num_assistant_tokens_schedule": UNUSED,
    "assistant_confidence_threshold": UNUSED,
    "assistant_lookbehind": UNUSED,
    "assistant_ensemble_weight": UNUSED,
    "target_lookbehind": UNUSED,
    "max_matching_ngram_size": UNUSED,
    "speculation_type": UNUSED,
    "use_cache": GenerationOption("mechanics", True),
    "cache_config": MECHANICS,
    "max_cache_len": MECHANICS,
    "prefill_chunk_size": MECHANICS,
    "compile_config": MECHANICS,
    "disable_compile": MECHANICS,
    "continuous_batching_config": MECHANICS,
    "output_attentions": NO_OUTPUT,
    "output_hidden_states": NO_OUTPUT,
    "output_scores": NO_OUTPUT,
    "output_logits": NO_OUTPUT,
    "return_dict_in_generate": NO_OUTPUT,
    "eos_token_id": TOKEN,
    "pad_token_id": TOKEN,
    "bos_token_id": TOKEN,
    "transformers_version": RECORD,
    "_from_model_config": RECORD,
    "_commit_hash": RECORD,
}
