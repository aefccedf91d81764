"""Reading a checkpoint's weights into a transformers model, and checking that all were in the
files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from sinkscope.config import ModelSettings
from sinkscope.models.family import Family
from sinkscope.models.quantised import quantisation
from sinkscope.models.source import ModelError, first_line
from sinkscope.models.weights import WeightFiles


def load_weights(
    settings: ModelSettings,
    source: Path,
    config: Any,
    family: Family,
    files: WeightFiles,
    device: str,
    dtype: torch.dtype,
) -> tuple[PreTrainedModel, str]:
    """The model, in eval mode and without gradients, and a sentence on tensors of the files that
    are not part of it.

    Args:
        settings: name of the model, for sentences.
        source: its folder.
        config: of the checkpoint.
        family: its adapter.
        files: from `models.weights.weight_files`.
        device: where the weights go.
        dtype: of the weights.

    Raises:
        ModelError: they do not fit into memory or the config, or are damaged or not complete.
    """
    try:
        model, notes = family.loader.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            device_map=_device_map(files, device),
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # reported below, with both shapes
            output_loading_info=True,
            # Otherwise transformers would read the file, and a wrong value in it would stop the
            # load.
            generation_config=GenerationConfig(),
        )
    except (torch.OutOfMemoryError, MemoryError) as error:
        torch.cuda.empty_cache()
        raise ModelError(
            f"{settings.model} does not fit into the memory of {device}; choose a smaller "
            "model, bfloat16, or another device."
        ) from error
    except Exception as error:
        # Building and reading a model from an unusual config may raise many types.
        form = quantisation(config)
        why = "damaged, or not of its config.json?" if form is None else f"quantised with {form}"
        raise ModelError(
            f"The weights of {settings.model} cannot be loaded ({why}): "
            f"{type(error).__name__}: {first_line(error).replace(str(source), settings.model)}"
        ) from error
    if mismatched := sorted(notes["mismatched_keys"], key=str):
        name, found, expected = mismatched[0]
        raise ModelError(
            f"{settings.model} does not fit its config.json: {name} is {_shape(found)} in the "
            f"weight files, and {_shape(expected)} by the config."
        )
    if lacking := sorted(notes["missing_keys"]):
        raise ModelError(
            f"The weights of {settings.model} are not complete: {family.missing_words(lacking)}."
        )
    if quantisation(config) is not None and getattr(model, "hf_quantizer", None) is None:
        for weight in model.parameters():  # dequantised, in the form's own type
            weight.data = weight.data.to(dtype)
    _check_numbers(settings, model)
    return model.eval().requires_grad_(False), _unused(sorted(notes["unexpected_keys"]))


def _check_numbers(settings: ModelSettings, model: PreTrainedModel) -> None:
    """Refuse weights that are not numbers, as a training that diverged leaves them."""
    # The sum of a tensor is finite if all of it is; sums stay on their device and are read at once.
    sums: dict[torch.device, dict[str, torch.Tensor]] = {}
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and weight.itemsize > 1 and not weight.is_meta:
            sums.setdefault(weight.device, {})[name] = weight.detach().sum(dtype=torch.float32)
    bad: list[str] = []
    for held in sums.values():
        fine = torch.stack(list(held.values())).isfinite().tolist()
        bad += [name for name, whole in zip(held, fine, strict=True) if not whole]
    if bad:
        raise ModelError(
            f"{settings.model} has weights that are not numbers (NaN or infinite), in {len(bad)} "
            f"tensors, {bad[0]} among them; its training diverged, or a file is damaged."
        )


def _unused(names: list[str]) -> str:
    if not names:
        return ""
    return (
        f"{len(names)} tensors of the weight files are not part of the model and were not used, "
        f"{names[0]} among them."
    )


def _shape(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def _device_map(files: WeightFiles, device: str) -> dict[str, str] | str:
    """Everything on one device; split over all GPUs (and the CPU) only if it does not fit on
    one."""
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        if files.nbytes * 1.1 > free:
            return "auto"
    return {"": device}
