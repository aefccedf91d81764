"""How the next token is chosen: every setting that transformers has for it, and which of them act.

transformers' `generate` takes what its caller leaves unset from the checkpoint's
generation_config.json. So one rule holds for every setting (`KNOBS` lists them): with `decoding`
"ours" those that `GenerationSettings` names have its values and all others are off; with
"checkpoint" they have the checkpoint's values, as transformers would use them. The tokens that end
and pad an answer are the checkpoint's in both.

Nothing here runs a model or needs transformers; `capture.run` makes its configuration of this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from capture.trace import GenerationTrace
from config import OF_CHECKPOINT, GenerationSettings
from models.generation_file import GenerationFile, is_token, shortened

Kind = Literal["chooses", "samples", "ends", "other way", "unused", "mechanics", "token", "record"]

# What transformers takes where a checkpoint that samples does not say.
SAMPLING_DEFAULTS = {"temperature": 1.0, "top_k": 50}


@dataclass(frozen=True)
class Knob:
    """One attribute of transformers' `GenerationConfig`.

    Attributes:
        kind: what it changes. "chooses": which token is taken. "samples": the same, in sampling
            alone. "ends": how long an answer is. "other way": asks for a way of generating that
            cannot be captured. "unused": acts only with such a way, or never in a model of this
            kind. "mechanics": how a result is computed or returned, not which one. "token": ids of
            special tokens. "record": no setting.
        off: the value with which it changes nothing.
        usable: whether transformers can use a value (not None), given the size of the vocabulary.
        allowed: the usable values in words.
        acts: whether a usable value changes anything; None: where it is not `off`.
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


def _are_whole(value: Any, vocabulary: int) -> bool:
    return isinstance(value, list | tuple) and all(_is_whole(one) for one in value)


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


def _whole(kind: Kind, off: Any, low: int, why: str = "") -> Knob:
    allowed = f"a whole number from {low} up"
    return Knob(kind, off, lambda v, _: _is_whole(v) and v >= low, allowed, why=why)


def _count(kind: Kind, off: Any) -> Knob:
    """Off up to 0."""
    return Knob(kind, off, lambda v, _: _is_whole(v), "a whole number", lambda v: v > 0)


def _number(
    kind: Kind,
    off: Any,
    low: float = -1e300,
    high: float = 1e300,
    acts: Callable[[Any], bool] | None = None,
    why: str = "",
) -> Knob:
    allowed = "a number" + (f" from {low:g}" if low > -1e300 else "")
    allowed += f" to {high:g}" if high < 1e300 else " up" if low > -1e300 else ""
    return Knob(
        kind, off, lambda v, _: _is_number(v) and low <= v <= high, allowed, acts, float, why
    )


def _flag(kind: Kind) -> Knob:
    return Knob(kind, False, lambda value, _: isinstance(value, bool), "true or false")


def _other(why: str) -> Knob:
    return Knob("other way", acts=lambda value: value is not False, why=why)


def _lists(value: Any) -> Any:
    return [list(one) if isinstance(one, list | tuple) else one for one in value]


def _bias_lists(value: Any) -> Any:
    pairs = value.items() if isinstance(value, dict) else value
    return [[list(tokens), float(bias)] for tokens, bias in pairs]


ROWS = "its forward passes are not one a token, so no row of attention explains one token"
ASSISTED, BEAMS = f"assisted decoding: {ROWS}", f"beam search: {ROWS}"
UNUSED, MECHANICS, RECORD = Knob("unused"), Knob("mechanics"), Knob("record")
NO_OUTPUT, TOKEN = Knob("mechanics", False), Knob("token")
TOKEN_LIST = Knob("chooses", None, _are_whole, "a list of token ids", plain=list)

# Every attribute of GenerationConfig; a test compares them with the installed transformers.
KNOBS: Mapping[str, Knob] = {
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
    "bad_words_ids": Knob(
        "chooses", None, _are_sequences, "a list of lists of token ids", plain=_lists
    ),
    "suppress_tokens": TOKEN_LIST,
    "begin_suppress_tokens": TOKEN_LIST,
    "sequence_bias": Knob(
        "chooses", None, _are_biases, "a list of [token ids, bias]", plain=_bias_lists
    ),
    "exponential_decay_length_penalty": Knob(
        "chooses", None, _is_decay, "[start, factor]", plain=lambda v: [v[0], float(v[1])]
    ),
    "forced_eos_token_id": Knob(
        "chooses",
        None,
        lambda v, size: is_token(v, size) or _are_tokens(v, size),
        "a token id, or a list of them",
        plain=lambda v: v if isinstance(v, int) else list(v),
    ),
    "remove_invalid_values": _flag("chooses"),
    "renormalize_logits": _flag("chooses"),
    "watermarking_config": Knob(
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
    "stop_strings": Knob(
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
    "cache_implementation": Knob(
        "other way",
        acts=lambda name: name == "quantized",
        why="a quantised cache: it changes the keys that rows are computed from",
    ),
    "forced_bos_token_id": UNUSED,  # acts where the prompt is a single token
    "decoder_start_token_id": UNUSED,
    "early_stopping": Knob("unused", False),
    "length_penalty": Knob("unused", 1.0),
    "diversity_penalty": Knob("unused", 0.0),
    "num_beam_groups": Knob("unused", 1),
    "low_memory": UNUSED,
    "num_assistant_tokens": UNUSED,
    "num_assistant_tokens_schedule": UNUSED,
    "assistant_confidence_threshold": UNUSED,
    "assistant_lookbehind": UNUSED,
    "assistant_ensemble_weight": UNUSED,
    "target_lookbehind": UNUSED,
    "max_matching_ngram_size": UNUSED,
    "speculation_type": UNUSED,
    "use_cache": Knob("mechanics", True),
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


@dataclass(frozen=True)
class CheckpointDecoding:
    """What a checkpoint's own generation_config.json would do.

    Attributes:
        values: the settings that act, in plain values, with what transformers takes for those of
            sampling that are not set. Empty is greedy decoding and nothing else.
        refusals: why these cannot be followed, in sentences; empty where they can.
        notes: what of the file has no effect or was replaced, in sentences.
    """

    values: Mapping[str, Any]
    refusals: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """`values` as one line."""
        return in_words(self.values)


def read_knobs(
    own: Mapping[str, Any], vocabulary: int, file: GenerationFile | None = None
) -> CheckpointDecoding:
    """What the attributes of a checkpoint's `GenerationConfig` would do.

    Args:
        own: the attributes, of whatever type the file gave them.
        vocabulary: number of tokens.
        file: what reading the file left to say.
    """
    file = file or GenerationFile()
    sampling = own.get("do_sample") is True
    values: dict[str, Any] = {}
    refusals = [file.damage] if file.damage else []
    for name, knob in KNOBS.items():
        value = own.get(name)
        if value is None:
            value = SAMPLING_DEFAULTS.get(name)
        if value is None or knob.kind in ("unused", "mechanics", "token", "record"):
            continue
        if knob.kind == "samples" and not sampling:
            continue
        if not knob.usable(value, vocabulary):
            refusals.append(f"{name} is {shortened(value)}; allowed: {knob.allowed}.")
        elif name == "temperature" or knob.active(value):
            if knob.kind != "other way":
                values[name] = knob.plain(value)
            elif name != "penalty_alpha" or _contrasts(own):
                refusals.append(f"{name} is {shortened(value)}, which is {knob.why}.")
    if "exponential_decay_length_penalty" in values and own.get("eos_token_id") is None:
        refusals.append("exponential_decay_length_penalty is set, but no eos_token_id.")
    return CheckpointDecoding(values, tuple(refusals), file.notes)


def _contrasts(own: Mapping[str, Any]) -> bool:
    """Whether `penalty_alpha` has an effect."""
    top_k = own.get("top_k")
    return own.get("do_sample") is not True and (not isinstance(top_k, int) or top_k > 1)


def own_values(settings: GenerationSettings) -> dict[str, Any]:
    """What acts with decoding "ours", in plain values."""
    values: dict[str, Any] = {}
    if settings.temperature > 0:
        values = {
            "do_sample": True,
            "temperature": float(settings.temperature),
            "top_k": settings.top_k,
            "top_p": float(settings.top_p),
        }
    values["repetition_penalty"] = float(settings.repetition_penalty)
    kept = {n: v for n, v in values.items() if n == "temperature" or KNOBS[n].active(v)}
    return {**kept, "max_new_tokens": settings.max_new_tokens}


def in_words(values: Mapping[str, Any]) -> str:
    """Settings that act, as one line without any text of a file's own.

    Such as `sampling (temperature 0.7, top k 50), repetition penalty 1.1`.
    """
    drawn = [_word(n, v) for n, v in values.items() if KNOBS[n].kind == "samples"]
    said = f"sampling ({', '.join(drawn)})" if values.get("do_sample") else "greedy decoding"
    rest = (n for n in values if n != "do_sample" and KNOBS[n].kind != "samples")
    return ", ".join([said, *(_word(name, values[name]) for name in rest)])


def _word(name: str, value: Any) -> str:
    label = name.removesuffix("_config").replace("_", " ")
    if value is True or isinstance(value, dict):
        return label
    if name == "exponential_decay_length_penalty":
        return f"{label} {value[1]:g} from token {value[0]}"
    if isinstance(value, list):
        return f"{label} ({len(value)})"
    return f"{label} {value:g}" if isinstance(value, float) else f"{label} {value}"


def shown_settings(trace: GenerationTrace) -> dict[str, Any]:
    """A run's settings for people: those that had an effect, and what the checkpoint's own were
    where it decided."""
    said = dict(trace.settings)
    if said.pop("decoding", "ours") != "checkpoint":
        return said
    used = (trace.extra.get("decoding") or {}).get("used") or {}
    known = {n: v for n, v in used.items() if n in KNOBS and n != "max_new_tokens"}
    kept = {name: value for name, value in said.items() if name not in OF_CHECKPOINT}
    return {**kept, "decoding": f"as the checkpoint says: {in_words(known)}"}


def unused_decoding(trace: GenerationTrace) -> str:
    """What the checkpoint's own settings would have done and the run did not; empty where that is
    nothing, or not known."""
    about = trace.extra.get("decoding") or {}
    values = {n: v for n, v in (about.get("checkpoint") or {}).items() if n in KNOBS}
    if trace.settings.get("decoding") == "checkpoint" or not (values or about.get("refused")):
        return ""
    return "; ".join([in_words(values), *about.get("refused", ())])
