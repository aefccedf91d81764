"""The part of a prompt that VAR leaves alone, passed through the model once and shared.

VAR changes only rows after the last image, so keys and values up to there are the same with and
without it, and for every setting. They are the larger part of a prompt. A `Prefix` holds them; each
run continues from a fork of its cache.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from sinkscope.capture.probes.sink_scores import SinkScores
from sinkscope.capture.run import on_device
from sinkscope.capture.session import attached
from sinkscope.models.family import PromptInputs
from sinkscope.models.info import ModelInfo
from sinkscope.models.loading import ModelHandle


@dataclass(frozen=True)
class Prefix:
    """Keys and values of prompt positions [0, length), with the sink scores seen on the way.

    Attributes:
        inputs: the prompt it belongs to.
        model: which model made it; no other can continue from it.
        length: number of positions: up to the end of the last image.
        cache: never given out; see `fork`.
        positions: what the family needs to continue behind it.
        dims: sink dimensions that were scored.
        scores: layer -> float32 (length,), sink score of each position; None without dims.
    """

    inputs: PromptInputs
    model: ModelInfo
    length: int
    cache: DynamicCache
    positions: torch.Tensor
    dims: tuple[int, ...]
    scores: Mapping[int, torch.Tensor]

    def fork(self, handle: ModelHandle, rows: int) -> DynamicCache:
        """A copy of the cache for `rows` batch rows, and the model made ready to continue from it.

        Call it with the handle's lock held.
        """
        handle.family.resume(handle.model, self.positions)
        cache = copy.deepcopy(self.cache)
        if rows > 1:
            cache.batch_repeat_interleave(rows)
        return cache

    def fits(self, handle: ModelHandle, inputs: PromptInputs, dims: tuple[int, ...]) -> bool:
        """Whether a run with these inputs and sink dimensions can continue from it."""
        return self.model == handle.info and self.inputs is inputs and self.dims == dims


def forward_prefix(handle: ModelHandle, inputs: PromptInputs, dims: tuple[int, ...]) -> Prefix:
    """Pass the prompt up to its last vision token through the model. The lock must be held.

    Args:
        handle: a loaded model.
        inputs: a prompt with at least one image.
        dims: sink dimensions to score on the way; may be empty.

    Raises:
        ValueError: the prompt has no image.
    """
    if not inputs.layout.grids:
        raise ValueError("The prompt has no image; there is nothing to redistribute attention to.")
    stop = inputs.layout.after_images
    marks = SinkScores(dims) if dims else None
    with attached(handle, inputs, probes=[marks] if marks else []) as session:
        cache, positions = handle.family.forward_prefix(
            handle.model, on_device(inputs.tensors, handle.device), stop
        )
    scores = {} if marks is None else session[marks].scores()
    return Prefix(inputs, handle.info, stop, cache, positions, dims, scores)
