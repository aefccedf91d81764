"""How the next token is chosen in a run: by its settings or by the checkpoint's.

transformers' `generate` takes what its caller leaves unset from the checkpoint's
generation_config.json. So one rule holds for every setting (`capture.generation_options` lists
them): with `decoding` "ours" those that `GenerationSettings` names have its values and all others
are off; with "checkpoint" they have the checkpoint's values, as transformers would use them. The
tokens that end and pad an answer are the checkpoint's in both.

Nothing here runs a model or needs transformers; `capture.run` makes its configuration from this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sinkscope.capture.generation_options import GENERATION_OPTIONS, SAMPLING_DEFAULTS
from sinkscope.capture.trace import GenerationTrace
from sinkscope.config import OF_CHECKPOINT, GenerationSettings
from sinkscope.models.generation_file import GenerationFile, shortened


@dataclass(frozen=True)
class CheckpointDecoding:
    """The effect of a checkpoint's own generation_config.json.

    Attributes:
        values: the settings that have an effect, as plain values, with transformers' defaults for
            sampling settings that are not set. Empty: greedy decoding and nothing else.
        refusals: why these cannot be followed, in sentences; empty if they can.
        notes: which parts of the file have no effect or were replaced, in sentences.
    """

    values: Mapping[str, Any]
    refusals: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """`values` as one line."""
        return in_words(self.values)

    def about(self) -> dict[str, Any]:
        """Everything for a trace, as plain values."""
        return {
            "checkpoint": dict(self.values),
            "words": self.words,
            **({"refused": list(self.refusals)} if self.refusals else {}),
            **({"notes": list(self.notes)} if self.notes else {}),
        }


def read_options(
    own: Mapping[str, Any], vocabulary: int, file: GenerationFile | None = None
) -> CheckpointDecoding:
    """The effect of the attributes of a checkpoint's `GenerationConfig`.

    Args:
        own: the attributes, of whatever type the file gave them.
        vocabulary: number of tokens.
        file: notes from reading the file.
    """
    file = file or GenerationFile()
    sampling = own.get("do_sample") is True
    values: dict[str, Any] = {}
    refusals = [file.damage] if file.damage else []
    for name, knob in GENERATION_OPTIONS.items():
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


def _contrasts(values: Mapping[str, Any]) -> bool:
    """Whether `penalty_alpha` has an effect."""
    top_k = values.get("top_k")
    return values.get("do_sample") is not True and (not isinstance(top_k, int) or top_k > 1)


def own_values(settings: GenerationSettings) -> dict[str, Any]:
    """The settings in effect with decoding "ours", as plain values."""
    values: dict[str, Any] = {}
    if settings.temperature > 0:
        values = {
            "do_sample": True,
            "temperature": float(settings.temperature),
            "top_k": settings.top_k,
            "top_p": float(settings.top_p),
        }
    values["repetition_penalty"] = float(settings.repetition_penalty)
    kept = {
        n: v for n, v in values.items() if n == "temperature" or GENERATION_OPTIONS[n].active(v)
    }
    return {**kept, "max_new_tokens": settings.max_new_tokens}


def in_words(values: Mapping[str, Any]) -> str:
    """Settings in effect, as one line that quotes no text from a file.

    Example: `sampling (temperature 0.7, top k 50), repetition penalty 1.1`.
    """
    drawn = [_word(n, v) for n, v in values.items() if GENERATION_OPTIONS[n].kind == "samples"]
    words = f"sampling ({', '.join(drawn)})" if values.get("do_sample") else "greedy decoding"
    rest = (n for n in values if n != "do_sample" and GENERATION_OPTIONS[n].kind != "samples")
    return ", ".join([words, *(_word(name, values[name]) for name in rest)])


def _word(name: str, value: Any) -> str:
    label = name.removesuffix("_config").replace("_", " ")
    if isinstance(value, bool):
        return label
    if isinstance(value, int | float):
        return f"{label} {value:g}" if isinstance(value, float) else f"{label} {value}"
    if name == "exponential_decay_length_penalty":
        return label
    return f"{label} ({len(value)})" if isinstance(value, list) else label


def shown_settings(trace: GenerationTrace) -> dict[str, Any]:
    """A run's settings for people: those that had an effect on the answer, and the
    checkpoint's own in one line if it decided."""
    settings = {name: v for name, v in trace.settings.items() if name not in ("engine", "compile")}
    if settings.pop("decoding", "ours") != "checkpoint":
        return settings
    kept = {name: value for name, value in settings.items() if name not in OF_CHECKPOINT}
    return {**kept, "decoding": f"as the checkpoint says: {_chosen(_about(trace))}"}


def decoding_words(trace: GenerationTrace) -> str:
    """How a run's tokens were chosen, and what was not used for it; empty if not known."""
    about = _about(trace)
    if not about:
        return ""
    if trace.settings.get("decoding") == "checkpoint":
        return f"as the checkpoint says: {_chosen(about)}."
    unused = unused_words(about)
    not_used = f" Not used: the checkpoint's own generation_config.json, {unused}" if unused else ""
    return f"{_chosen(about)}.{not_used}"


def engine_words(trace: GenerationTrace) -> str:
    """Why another engine than requested generated the answer; empty if it did not."""
    about = trace.extra.get("engine")
    why = about.get("why") if isinstance(about, Mapping) else None
    if not isinstance(about, Mapping) or not isinstance(why, str) or not why:
        return ""
    engine = "the same steps without a graph" if about.get("used") == "step" else "the loop"
    return f"made by {engine}, because {' '.join(why.split())[:300]}"


def unused_words(about: Mapping[str, Any]) -> str:
    """The effect that the checkpoint's own settings would have, if a run does not follow them;
    empty if that is greedy decoding and nothing else.

    Args:
        about: `GenerationTrace.extra["decoding"]`.
    """
    values, refused = _options(about.get("checkpoint")), about.get("refused")
    if not values and not refused:
        return ""
    why = ["It cannot be followed:", *map(str, refused)] if isinstance(refused, list) else []
    return " ".join([f"{in_words(values)}.", *why])


def is_sampled(trace: GenerationTrace) -> bool:
    """Whether the answer was drawn at random, so that another seed may give another one."""
    about = _about(trace)
    if not about:  # older traces do not say
        return bool(trace.settings.get("temperature", 0) > 0)
    return _options(about.get("used")).get("do_sample") is True


def _chosen(about: Mapping[str, Any]) -> str:
    used = _options(about.get("used"))
    used.pop("max_new_tokens", None)  # shown separately
    return in_words(used)


def _about(trace: GenerationTrace) -> Mapping[str, Any]:
    """What a trace says about its decoding; empty if it says nothing. The file is not trusted."""
    about = trace.extra.get("decoding")
    return about if isinstance(about, Mapping) else {}


def _options(values: Any) -> dict[str, Any]:
    known = values.items() if isinstance(values, Mapping) else ()
    return {name: value for name, value in known if name in GENERATION_OPTIONS}
