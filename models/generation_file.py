"""A checkpoint's `generation_config.json`, read so that nothing in it stops a model from loading.

transformers reads the file while it loads the weights; a value of a wrong type makes that fail with
an unrelated error. Here the values are read unchecked. Whether one can be used is decided where it
would be used (`capture.decoding`); only the tokens that end and pad an answer,
which every run needs, are checked at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinkscope.untrusted import Bounds, read_json

if TYPE_CHECKING:  # imported where it is used: saved runs are shown without transformers
    from transformers import GenerationConfig

NAME = "generation_config.json"
TOKENS = ("eos_token_id", "pad_token_id", "bos_token_id")
MOST_BYTES = 10_000_000  # lists of suppressed tokens and banned words are far smaller


@dataclass(frozen=True)
class GenerationFile:
    """The notes from reading the file.

    Attributes:
        damage: why its values cannot be read, as a sentence; else empty.
        notes: what of it is not used or was replaced, in sentences.
    """

    damage: str = ""
    notes: tuple[str, ...] = ()


def read_generation_file(folder: Path, config: Any) -> tuple[GenerationConfig, GenerationFile]:
    """The values of the file, of whatever type, and notes about it.

    Without the file the values come from config.json, as transformers takes them.

    Args:
        folder: of the checkpoint.
        config: the model's config, whose token ids are used if the file's are not valid.
    """
    config_read, damage, unknown = (
        _from_file(folder) if (folder / NAME).exists() else _without(folder)
    )
    if damage:
        for name in TOKENS:
            setattr(config_read, name, getattr(config.get_text_config(), name, None))
    notes = _mend_tokens(config_read, config)
    if unknown:
        notes.insert(0, _unknown(unknown))
    return config_read, GenerationFile(damage, tuple(notes))


def is_token(value: Any, vocabulary: int) -> bool:
    """Whether a value is the id of a token."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocabulary


def shortened(value: Any, most: int = 60) -> str:
    """A file's value for a message: shortened, and with printable characters only."""
    text = ascii(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _from_file(folder: Path) -> tuple[GenerationConfig, str, list[str]]:
    from transformers import GenerationConfig

    config_read = GenerationConfig()
    known = {name for name in vars(config_read) if not name.startswith("_")}
    values, damage = _read(folder / NAME)
    for name in known & values.keys():
        value = values[name]
        setattr(config_read, name, _watermark(value) if name == "watermarking_config" else value)
    return (
        config_read,
        damage,
        sorted(n for n in values if n not in known and not n.startswith("_")),
    )


def _without(folder: Path) -> tuple[GenerationConfig, str, list[str]]:
    from transformers import GenerationConfig

    values, damage = _read(folder / "config.json")
    if not damage:
        try:
            return GenerationConfig.from_model_config(values), "", []
        except (ValueError, TypeError, AttributeError):
            damage = (
                f"There is no {NAME}, and config.json has settings of generation that transformers "
                "cannot use."
            )
    return GenerationConfig(), damage, []


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """The JSON object in a file; empty, with the reason, where there is none."""
    try:
        if path.stat().st_size > MOST_BYTES:
            return {}, f"{path.name} is larger than {MOST_BYTES // 1_000_000} MB."
        values = read_json(path, "The file", Bounds(bytes=MOST_BYTES, infinite=True))
    except (OSError, ValueError):
        return {}, f"{path.name} cannot be read as JSON."
    return (values, "") if isinstance(values, dict) else ({}, f"{path.name} holds no JSON object.")


def _watermark(value: Any) -> Any:
    """Converted as transformers would; values that do not fit stay unchanged."""
    if not isinstance(value, dict):
        return value
    from transformers.generation.configuration_utils import WatermarkingConfig

    try:
        return WatermarkingConfig.from_dict(value)
    except TypeError:
        return value


def _mend_tokens(generation: GenerationConfig, config: Any) -> list[str]:
    """Replace invalid token ids by those of config.json; returns a sentence for each."""
    text = config.get_text_config()
    notes = []
    for name in TOKENS:
        value = getattr(generation, name, None)
        if value is None or _usable(name, value, text.vocab_size):
            continue
        other = getattr(text, name, None)
        if not _usable(name, other, text.vocab_size):
            other = None
        setattr(generation, name, other)
        instead = "no other is known" if other is None else f"{other} of config.json is used"
        notes.append(f"{name} is {shortened(value)}, which is not a token of the model; {instead}.")
    return notes


def _usable(name: str, value: Any, vocabulary: int) -> bool:
    if name == "eos_token_id" and isinstance(value, list | tuple):
        return bool(value) and all(is_token(one, vocabulary) for one in value)
    return is_token(value, vocabulary)


def _unknown(names: list[str]) -> str:
    shown = ", ".join(shortened(name) for name in names[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{NAME} has keys that transformers does not know, without effect: {shown}{more}."
