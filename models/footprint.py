"""What loading a model will take, read from its config and from the headers of its weight files.

No weight is read, so the answer is there in milliseconds, before anything is started.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sinkscope.config import ModelSettings
from sinkscope.models.loading import choose_device, choose_dtype, read_configuration
from sinkscope.models.source import ModelError, check_files, on_disk

FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # these become the number type that is asked for
OTHERS = {"I64": 8, "I32": 4, "I16": 2}  # what a quantised file holds stays as it is; else a byte


class NotOnDiskError(ModelError):
    """A hub model that is not on this machine, so that nothing is known of it."""


@dataclass(frozen=True)
class Footprint:
    """What the weights of a model will be.

    Attributes:
        parameters: elements of all tensors in the files, shared ones once.
        nbytes: of all of them on the device, in the number type that they get there.
        dtype: that number type.
        device: where they go, if they fit there.
    """

    parameters: int
    nbytes: int
    dtype: str
    device: torch.device


def footprint(settings: ModelSettings) -> Footprint:
    """What `load_model` will take with these settings.

    Raises:
        NotOnDiskError: it has to be fetched from the hub first.
        ModelError: as `load_model` would, where that can be known without reading weights.
    """
    source = on_disk(settings)
    if source is None:
        raise NotOnDiskError(f"The model {settings.model} is not on this machine.")
    config, _ = read_configuration(settings, source)
    check_files(settings, source)
    place, dtype = where_and_how(settings, config)
    parameters = nbytes = 0
    for file in sorted(source.glob("*.safetensors")):
        for kind, count in _tensors(file, settings.model):
            parameters += count
            nbytes += count * (dtype.itemsize if kind in FLOATS else OTHERS.get(kind, 1))
    return Footprint(parameters, nbytes, str(dtype).removeprefix("torch."), place)


def where_and_how(settings: ModelSettings, config: Any = None) -> tuple[torch.device, torch.dtype]:
    """Device and number type of the weights; without a config as for one that names no type.

    Raises:
        ModelError: this machine has no such device.
    """
    place = choose_device(settings.device)
    if config is None and settings.dtype == "auto" and place != "cpu":
        return torch.device(place), torch.bfloat16
    return torch.device(place), choose_dtype(settings.dtype, config, place)


def _tensors(file: Path, model: str) -> list[tuple[str, int]]:
    """Stored type and number of elements of each tensor in a file, from its header."""
    try:
        with safe_open(file, "pt") as weights:
            slices = (weights.get_slice(name) for name in weights.keys())  # noqa: SIM118
            return [(str(s.get_dtype()), math.prod(s.get_shape())) for s in slices]
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"The weight file {file.name} of {model} is damaged or half downloaded; "
            "download it again."
        ) from error
