"""The part of a prompt that VAR does not change, passed through the model once and shared.

VAR changes only rows after the last image, so keys and values up to there are the same with and
without it, and for every setting. They are the larger part of a prompt. A `Prefix` holds them; each
run continues from a fork of its cache.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    """Keys and values of prompt positions [0, length), with their sink scores.

    Attributes:
        inputs: the prompt it belongs to.
        model: the model that made it; no other can continue from it.
        length: number of positions: up to the end of the last image.
        cache: never given out; see `fork`.
        positions: what the family needs to continue after the prefix.
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

    @property
    def whole(self) -> None:
        """Another prompt may continue from it as well; see `BatchPrefix`."""
        return None

    @property
    def columns(self) -> None:
        """A single prefix has no padding; see `BatchPrefix`."""
        return None

    def fork(self, handle: ModelHandle, rows: int) -> DynamicCache:
        """A cache of `rows` batch rows that continues from it (`fork_cache`), and the model made
        ready to do so.

        Call it with the handle's lock held.
        """
        handle.family.resume(handle.model, self.positions)
        return fork_cache(self.cache, rows)

    def fits(self, handle: ModelHandle, inputs: PromptInputs, dims: tuple[int, ...]) -> bool:
        """Whether a run with these inputs and sink dimensions can continue from it."""
        return self.model == handle.info and self.inputs is inputs and self.dims == dims


@dataclass(frozen=True)
class BatchPrefix:
    """Prefixes of several prompts as one batch, from which each row continues by itself.

    Keys carry their rotary positions, so they may stand anywhere: prefixes are padded on the left,
    and all end at one position. What follows is padded on its left too, so that all prompts end at
    one position as well. The attention mask hides the padding.

    Attributes:
        rows: one prefix a batch row; a prompt may be in several.
        ids, mask: int64 (B, whole): token ids and what is not padding. Padding has the id of its
            row's first token, so it adds no new token to any count.
    """

    rows: tuple[Prefix, ...]
    ids: torch.Tensor
    mask: torch.Tensor

    @staticmethod
    def of(rows: Sequence[Prefix]) -> BatchPrefix:
        """Align the prefixes."""
        length = max(row.length for row in rows)
        whole = length + max(len(row.inputs.token_ids) - row.length for row in rows)
        ids = torch.tensor([[row.inputs.token_ids[0]] * whole for row in rows])
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            columns = _columns(row, length, whole)
            ids[index, columns] = torch.tensor(row.inputs.token_ids)
            mask[index, columns] = 1
        return BatchPrefix(tuple(rows), ids, mask)

    @property
    def length(self) -> int:
        """The position at which all prefixes end."""
        return max(row.length for row in self.rows)

    @property
    def whole(self) -> int:
        """The position at which all prompts end."""
        return self.ids.shape[1]

    @property
    def columns(self) -> tuple[torch.Tensor, ...]:
        """For each row int64 (N,): the column of each position of its prompt."""
        return tuple(_columns(row, self.length, self.whole) for row in self.rows)

    @property
    def dims(self) -> tuple[int, ...]:
        """Sink dimensions that were scored, the same in all rows."""
        return self.rows[0].dims

    @property
    def scores(self) -> Mapping[int, torch.Tensor]:
        """layer -> float32 (B, length), 0 at padding; empty without dims."""
        return {
            layer: torch.stack([_padded(row.scores[layer], self.length, 0) for row in self.rows])
            for layer in self.rows[0].scores
        }

    def fork(self, handle: ModelHandle) -> DynamicCache:
        """The cache of all rows, and the model made ready to continue from it; as `Prefix.fork`."""
        handle.family.resume(handle.model, torch.cat([row.positions for row in self.rows]))
        if all(row.cache is self.rows[0].cache for row in self.rows):
            return fork_cache(self.rows[0].cache, len(self.rows))
        cache = fork_cache(self.rows[0].cache)
        for index, layer in enumerate(cache.layers):
            for name in ("keys", "values"):
                parts = [getattr(row.cache.layers[index], name) for row in self.rows]
                setattr(layer, name, torch.cat([_padded(part, self.length, 2) for part in parts]))
        return cache


def fork_cache(cache: DynamicCache, rows: int = 1) -> DynamicCache:
    """A cache that continues from one of a single sequence, for `rows` batch rows; no copy.

    A `DynamicCache` grows by making new tensors, so the fork may begin with the same key and value
    tensors as the original, and with the same ones in every row: the first pass after it makes the
    one copy that is needed. Nothing may write into them.
    """
    fork = copy.copy(cache)
    fork.layers = [copy.copy(layer) for layer in cache.layers]
    layers: list[Any] = fork.layers if rows > 1 else []
    for layer in layers:
        if layer.is_initialized:
            layer.keys = layer.keys.expand(rows, -1, -1, -1)
            layer.values = layer.values.expand(rows, -1, -1, -1)
    return fork


def _columns(row: Prefix, length: int, whole: int) -> torch.Tensor:
    before = torch.arange(length - row.length, length)
    behind = len(row.inputs.token_ids) - row.length
    return torch.cat([before, torch.arange(whole - behind, whole)])


def _padded(values: torch.Tensor, length: int, axis: int) -> torch.Tensor:
    """Pad with zeros at the front of an axis, up to a length."""
    missing = list(values.shape)
    missing[axis] = length - values.shape[axis]
    if not missing[axis]:
        return values
    return torch.cat([values.new_zeros(missing), values], dim=axis)


def forward_prefix(handle: ModelHandle, inputs: PromptInputs, dims: tuple[int, ...]) -> Prefix:
    """Pass the prompt up to its last vision token through the model. The lock must be held.

    Args:
        handle: a loaded model.
        inputs: a prompt with at least one image.
        dims: sink dimensions to score as well; may be empty.

    Raises:
        ValueError: the prompt has no image.
    """
    return forward_prefixes(handle, inputs, [dims])[dims]


def forward_prefixes(
    handle: ModelHandle, inputs: PromptInputs, sets: Sequence[tuple[int, ...]]
) -> dict[tuple[int, ...], Prefix]:
    """The same for several sets of sink dimensions: one pass, whose keys and values they share.

    Raises:
        ValueError: the prompt has no image.
    """
    if not inputs.layout.grids:
        raise ValueError("The prompt has no image; there is nothing to redistribute attention to.")
    stop = inputs.layout.after_images
    marks = {dims: SinkScores(dims) for dims in sets if dims}
    with attached(handle, inputs, probes=list(marks.values())) as session:
        cache, positions = handle.family.forward_prefix(
            handle.model, on_device(inputs.tensors, handle.device), stop
        )
    return {
        dims: Prefix(
            inputs,
            handle.info,
            stop,
            cache,
            positions,
            dims,
            session[marks[dims]].scores() if dims else {},
        )
        for dims in sets
    }
