"""A plain forward pass of a sample, and finding's measurement of the same sample, for `benchmarks
sinks` (time) and `benchmarks.memory`.

A measurement includes everything from the sample to its statistics. The random-weight models have
no processor, so a family that returns one fixed prompt replaces it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from sinkscope.benchmarks.variants import Mark, with_attention
from sinkscope.capture.run import on_device
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle
from sinkscope.sinks.finding.measure import measure
from sinkscope.sinks.samples import Sample
from sinkscope.sinks.settings import FindSettings

SinkVariant = Callable[[ModelHandle, PromptInputs, int, Mark], Any]


def forward(handle: ModelHandle, inputs: PromptInputs, batch: int, mark: Mark) -> None:
    """One plain forward pass with SDPA, over `batch` copies of the sample; nothing is measured."""
    tensors = {
        name: tensor.repeat(batch, *(1 for _ in tensor.shape[1:]))
        for name, tensor in inputs.tensors.items()
    }
    with with_attention(handle, "sdpa"), torch.no_grad():
        given = on_device(tensors, handle.device)
        handle.model(**given, use_cache=False, logits_to_keep=1)
    _twice(mark)


def single_forwards(handle: ModelHandle, inputs: PromptInputs, batch: int, mark: Mark) -> None:
    """The same passes one after the other, as without batches."""
    for _ in range(batch):
        forward(handle, inputs, 1, lambda: None)
    _twice(mark)


def received(handle: ModelHandle, inputs: PromptInputs, batch: int, mark: Mark) -> Any:
    """What `sinks find` does with a batch, by default: exact attention received."""
    return _measured(handle, inputs, batch, mark, FindSettings(batch_size=batch))


def after_image(handle: ModelHandle, inputs: PromptInputs, batch: int, mark: Mark) -> Any:
    """The same, choosing tokens only by the query rows after the image."""
    return _measured(
        handle, inputs, batch, mark, FindSettings(batch_size=batch, tokens_by="after_image")
    )


def norm(handle: ModelHandle, inputs: PromptInputs, batch: int, mark: Mark) -> Any:
    """The same, choosing tokens by the residual stream's norm, without attention."""
    return _measured(handle, inputs, batch, mark, FindSettings(batch_size=batch, tokens_by="norm"))


def _measured(
    handle: ModelHandle, inputs: PromptInputs, batch: int, mark: Mark, settings: FindSettings
) -> Any:
    family: Any = SimpleNamespace(
        name=handle.info.family, sees_images=True, pixel_bounds=True, prepare=lambda *_: inputs
    )
    given = dataclasses.replace(handle, family=family)
    images = (Image.new("RGB", (28, 28)),)
    samples = [Sample(f"sample {index}", images) for index in range(batch)]
    stats = measure(given, samples, settings)
    _twice(mark)
    return stats


def _twice(mark: Mark) -> None:
    """For a timing with marks: a pass has one mark, its end."""
    mark()
    mark()


VARIANTS: Mapping[str, SinkVariant] = {
    "forward": forward,
    "single_forwards": single_forwards,
    "received": received,
    "after_image": after_image,
    "norm": norm,
}
