"""LoRA and other peft adapters, merged into their base model in memory.

Nothing is written to disk, and no peft module remains: the result is the base model with other
weights, so everything else works as with a merged checkpoint. Adapters are read only from
safetensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sinkscope.models.quantised import quantisation
from sinkscope.models.source import ModelError
from sinkscope.models.weights import ADAPTER
from sinkscope.untrusted import read_json
from sinkscope.utils import sha256

WEIGHTS = "adapter_model.safetensors"


def check_adapter(folder: Path) -> dict[str, Any]:
    """The adapter's configuration, read before a model is loaded.

    Raises:
        ModelError: the folder is not an adapter, its weights are missing or not safetensors, or
            peft is not installed.
    """
    about = folder / ADAPTER
    if not about.is_file():
        raise ModelError(
            f"adapter is {folder.name!r}, which has no {ADAPTER}; allowed: a folder that peft's "
            "save_pretrained wrote."
        )
    try:
        given = read_json(about, "The file")
    except ValueError as error:
        raise ModelError(
            f"The {ADAPTER} of the adapter {folder.name} cannot be read: {error}"
        ) from error
    if not isinstance(given, dict) or not isinstance(given.get("peft_type"), str):
        raise ModelError(f"The {ADAPTER} of the adapter {folder.name} names no peft_type.")
    if not (folder / WEIGHTS).is_file():
        other = (
            " It has adapter_model.bin, a pickle, which is never read."
            * (folder / "adapter_model.bin").is_file()
        )
        raise ModelError(f"The adapter {folder.name} has no {WEIGHTS}.{other}")
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ModelError(
            "An adapter needs the package peft: pip install 'sinkscope[adapters]'."
        ) from error
    return given


def merged(model: Any, folder: Path) -> Any:
    """The model with the adapter in its weights.

    Args:
        model: the base, as loaded; its weights are changed.
        folder: of the adapter.

    Raises:
        ModelError: the base is quantised, or the adapter is another model's, damaged, or of a kind
            that cannot be merged.
    """
    check_adapter(folder)
    from peft import PeftModel, get_peft_model_state_dict

    if quantisation(model.config) is not None:
        raise ModelError("An adapter cannot be merged into a quantised model; load another base.")
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            stored = set(file.keys())
        wrapped = PeftModel.from_pretrained(model, str(folder), is_trainable=False)
    except (
        ValueError,
        RuntimeError,
        KeyError,
        TypeError,
        OSError,
        AttributeError,
        SafetensorError,
    ) as error:
        raise ModelError(
            f"The adapter {folder.name} does not fit the model: "
            f"{' '.join(str(error).replace(str(folder), folder.name).split())[:400]}"
        ) from error
    taken = set(get_peft_model_state_dict(wrapped))
    if lost := sorted(stored - taken) + sorted(taken - stored):
        raise ModelError(
            f"The adapter {folder.name} does not fit the model: {len(lost)} tensors have no place "
            f"in it or are missing, such as {lost[0]}."
        )
    try:
        merged_model = wrapped.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError, AttributeError) as error:
        raise ModelError(
            f"The adapter {folder.name} cannot be merged: {' '.join(str(error).split())[:400]}"
        ) from error
    return merged_model.eval()


def adapter_fingerprint(folder: Path) -> str:
    """16 hexadecimal digits of its configuration and weights."""
    parts = [(folder / name).read_bytes() for name in (ADAPTER, WEIGHTS)]
    return sha256(b"".join(sha256(part).encode() for part in parts))[:16]
