"""The memory that a model will need, read from its config and the headers of its weight files.

No weight is read, so it takes milliseconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from sinkscope.config import ModelSettings
from sinkscope.models.loading import checked_files, choose_device, choose_dtype, read_configuration
from sinkscope.models.quantised import check_quantisation
from sinkscope.models.source import ModelError, on_disk
from sinkscope.models.weights import FLOATS

OTHERS = {"I64": 8, "I32": 4, "I16": 2}  # quantised tensors keep their type; otherwise one byte


class NotOnDiskError(ModelError):
    """A hub model that is not on this machine, so that nothing is known about it."""


@dataclass(frozen=True)
class Footprint:
    """Size, type and device of a model's weights.

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
    """What `load_model` will need with these settings.

    Raises:
        NotOnDiskError: it has to be fetched from the hub first.
        ModelError: as `load_model`, as far as that is known without reading weights.
    """
    source = on_disk(settings)
    if source is None:
        raise NotOnDiskError(f"The model {settings.model} is not on this machine.")
    config, family = read_configuration(settings, source)
    files = checked_files(settings, source, config, family)
    device, dtype = device_and_dtype(settings, config)
    device_name = str(device)
    check_quantisation(settings.model, config, device_name, files.tensors)
    parameters = nbytes = 0
    for tensor in files.tensors.values():
        count = math.prod(tensor.shape)
        parameters += count
        # 8-bit floats need a GPU; elsewhere transformers turns them back into plain weights.
        plain = tensor.dtype in FLOATS or (
            tensor.dtype.startswith("F8") and not device_name.startswith("cuda")
        )
        nbytes += count * (dtype.itemsize if plain else OTHERS.get(tensor.dtype, 1))
    return Footprint(parameters, nbytes, str(dtype).removeprefix("torch."), device)


def device_and_dtype(
    settings: ModelSettings, config: Any = None
) -> tuple[torch.device, torch.dtype]:
    """Device and number type of the weights; without a config as for one that names no type.

    Raises:
        ModelError: this machine has no such device.
    """
    device_name = choose_device(settings.device)
    if config is None and settings.dtype == "auto" and device_name != "cpu":
        return torch.device(device_name), torch.bfloat16
    return torch.device(device_name), choose_dtype(settings.dtype, config, device_name)
