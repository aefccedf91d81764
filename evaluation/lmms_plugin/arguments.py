"""lmms-eval's `--model_args`, and a task's generation settings, as our settings.

pretrained        demo, a hub id, or a folder
revision, dtype   of the model
min_pixels, max_pixels
                  of a resized image; default: those of lmms-eval's own qwen2_5_vl
var               true: VAR; random: its control; default: the plain model
profile           a sink profile's file, for VAR
dims, tau, keep, max_sink_share, min_image_mass, dialect, layers
                  VAR's settings; lists are separated by /
decoding          checkpoint (default, as in lmms-eval), or ours
seed              of sampling, if a task or the checkpoint samples
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sinkscope.config import GenerationSettings, ModelSettings
from sinkscope.evaluation.method_specs import SETTINGS, MethodSpec, parse_methods
from sinkscope.evaluation.tasks.base import LMMS_PIXELS

OWN = ("pretrained", "revision", "dtype", "device", "min_pixels", "max_pixels", "decoding", "seed")
LMMS_EVALS = ("batch_size", "max_batch_size")  # which it adds itself
DEFAULT_TOKENS = 128  # lmms-eval's, if a task gives no limit


@dataclass(frozen=True)
class PluginSettings:
    """The parsed `--model_args`.

    Attributes:
        model: which one to load.
        method: the plain model, VAR, or its control.
        min_pixels, max_pixels: of every image.
        decoding, seed: of every answer.
    """

    model: ModelSettings
    method: MethodSpec
    min_pixels: int
    max_pixels: int
    decoding: str = "checkpoint"
    seed: int = 0


def read_arguments(given: Mapping[str, Any]) -> PluginSettings:
    """Settings from `--model_args`.

    Raises:
        ValueError: an unknown argument, a value that is not allowed, no `pretrained`, VAR's
            settings without `var`, or a batch size other than 1.
    """
    settings = [name for name in SETTINGS if name not in ("control", "seed")]
    allowed = (*OWN, "var", *settings)
    for name in given:
        if name not in (*allowed, *LMMS_EVALS):
            raise ValueError(f"model_args has {name!r}; allowed: {', '.join(allowed)}.")
    if not given.get("pretrained"):
        raise ValueError("model_args lacks pretrained; allowed: demo, a hub id, or a folder.")
    if str(given.get("batch_size", 1)) != "1":
        raise ValueError(
            f"batch_size is {given['batch_size']!r}; allowed: 1. Answers are given one by one, so "
            "that they do not depend on each other."
        )
    decoding = given.get("decoding", "checkpoint")
    if decoding not in ("checkpoint", "ours"):
        raise ValueError(f"decoding is {decoding!r}; allowed: checkpoint, ours.")
    kept = {name: given[name] for name in ("revision", "dtype", "device") if given.get(name)}
    return PluginSettings(
        ModelSettings(str(given["pretrained"]), **kept),
        _method(given, settings),
        int(given.get("min_pixels", LMMS_PIXELS["min_pixels"])),
        int(given.get("max_pixels", LMMS_PIXELS["max_pixels"])),
        decoding,
        int(given.get("seed", 0)),
    )


def _method(given: Mapping[str, Any], settings: list[str]) -> MethodSpec:
    var = given.get("var", False)
    kinds = {"false": "default", "true": "var", "random": "var-random"}
    kind = kinds.get(str(var).lower())
    if kind is None:
        raise ValueError(f"var is {var!r}; allowed: true, false, random.")
    var_settings = [f"{name}={_listed(name, given[name])}" for name in settings if name in given]
    if var_settings and kind == "default":
        raise ValueError(
            f"{var_settings[0].partition('=')[0]} is given, but var is not; add var=true."
        )
    return parse_methods([f"{kind}:{','.join(var_settings)}" if var_settings else kind])[0]


def _listed(name: str, value: Any) -> str:
    """lmms-eval splits its arguments at commas, so lists use slashes."""
    return str(value).replace("/", ",") if name in ("dims", "layers") else str(value)


def generation(settings: PluginSettings, wanted: Mapping[str, Any]) -> GenerationSettings:
    """How an answer is generated, by a task's `generation_kwargs`.

    A temperature above 0 samples by the task's own values. Stop strings are not applied, as in
    lmms-eval's qwen2_5_vl.

    Raises:
        ValueError: several beams, or a value out of range.
    """
    beams = wanted.get("num_beams") or 1
    if beams != 1:
        raise ValueError(f"num_beams is {beams}; allowed: 1.")
    tokens = int(wanted.get("max_new_tokens") or DEFAULT_TOKENS)
    temperature = float(wanted.get("temperature") or 0.0)
    if temperature > 0:
        return GenerationSettings(
            max_new_tokens=tokens,
            temperature=temperature,
            top_p=float(wanted.get("top_p") or 1.0),
            top_k=int(wanted.get("top_k") or 0),
            seed=settings.seed,
        )
    return GenerationSettings(
        max_new_tokens=tokens,
        seed=settings.seed,
        decoding=settings.decoding,  # type: ignore[arg-type]  # checked by the class
    )


def turns(messages: list[dict[str, Any]], where: str) -> tuple[list[Any], str, str | None]:
    """(images, text, system prompt) of a task's messages.

    Images must come before the text, in one user message, as SinkScope shows them.

    Raises:
        ValueError: another order, several turns, a video or sound, no image or no text.
    """
    system: list[str] = []
    images: list[Any] = []
    texts: list[str] = []
    user = [one for one in messages if one["role"] != "system"]
    if len(user) != 1 or user[0]["role"] != "user":
        raise ValueError(f"{where} has {len(user)} turns; allowed: one question of the user.")
    for one in messages:
        for part in _parts(one["content"]):
            if part["type"] == "text":
                (system if one["role"] == "system" else texts).append(str(part["text"]))
            elif part["type"] == "image" and one["role"] == "user":
                if any(text.strip() for text in texts):
                    raise ValueError(f"{where} has an image behind text; allowed: images first.")
                images.append(part["url"])
            else:
                raise ValueError(
                    f"{where} has a part of type {part['type']}; allowed: image, text."
                )
    if not images:
        raise ValueError(f"{where} has no image; SinkScope needs one.")
    return images, "".join(texts), "".join(system) or None


def _parts(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
