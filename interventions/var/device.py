"""The correction of a prefill for a GPU: few launches, and nothing read by the host.

Which rows qualify, and whether a layer has any sink, is decided on the device. So all rows after
the image are computed exactly, and a row that does not change gets a change of 0. The rows for
probes are a by-product.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from sinkscope.interventions.var.attention_pass import AttentionPass
from sinkscope.interventions.var.redistribute import budget
from sinkscope.interventions.var.selection import (
    FEW_WEIGHTS,
    KeyGroups,
    Limits,
    group_mass,
    image_centric,
    working_dtype,
)
from sinkscope.models.kernels import rows_times_values

BLOCK_WEIGHTS = FEW_WEIGHTS  # attention weights that are held at once, in a few copies
MOST_WEIGHTS = 1 << 25  # above, the log-sum-exp form is faster despite waiting for the host


@dataclass(frozen=True)
class CorrectedRows:
    """The result of a correction for the last rows.

    Attributes:
        layer: whose.
        start: position of the first row.
        before: (B, H, R, K) softmax rows.
        change: what is added to them.
        moved: (B, H, all corrected rows) mass taken from the sinks.
    """

    layer: int
    start: int
    before: Tensor
    change: Tensor
    moved: Tensor

    def rows(self, positions: range) -> Tensor | None:
        """The changed rows of these queries; None where they are not all among them."""
        low, high = positions.start - self.start, positions.stop - self.start
        if low < 0 or high > self.before.shape[2]:
            return None
        return self.before[:, :, low:high] + self.change[:, :, low:high]


class RowBias:
    """What is added to the scores of the rows that may change: a causal mask or the model's own,
    made once for all layers of a pass."""

    def __init__(self) -> None:
        self._what: tuple[object, ...] = ()
        self._mask: weakref.ref[Tensor] | None = None
        self._bias: Tensor | None = None

    def of(
        self, mask: Tensor | None, heads: tuple[int, int], rows: range, keys: int, like: Tensor
    ) -> Tensor:
        """(1 or B x Hkv, H / Hkv x R, K), as `kernels.pack` lays rows out.

        Args:
            mask: None (causal), or bool (True: may be seen) / additive float (1 or B, 1 or H,
                queries up to rows.stop, at least K).
            heads: H and Hkv.
            rows: positions.
            keys: K.
            like: has the working dtype and the device.
        """
        what = heads, rows, keys, like.dtype, like.device, None if mask is None else mask.shape
        same = mask is None if self._mask is None else self._mask() is mask
        if self._bias is None or self._what != what or not same:
            self._what = what
            self._mask = None if mask is None else weakref.ref(mask)
            self._bias = (
                _causal(rows, keys, like) if mask is None else _additive(mask, rows, keys, like)
            )
            self._bias = _packed(self._bias, *heads)
        return self._bias


def _causal(rows: range, keys: int, like: Tensor) -> Tensor:
    """(1, 1, R, K)."""
    position = torch.arange(rows.start, rows.stop, device=like.device)
    later = torch.arange(keys, device=like.device) > position[:, None]
    nothing = torch.zeros(1, 1, len(rows), keys, dtype=like.dtype, device=like.device)
    return nothing.masked_fill_(later, torch.finfo(like.dtype).min)


def _additive(mask: Tensor, rows: range, keys: int, like: Tensor) -> Tensor:
    part = mask[:, :, -len(rows) :, :keys]
    if part.dtype != torch.bool:
        return part.to(like.dtype)
    # Not minus infinity: the row of a padded query, which sees nothing, would be NaN.
    nothing = torch.zeros(part.shape, dtype=like.dtype, device=like.device)
    return nothing.masked_fill_(~part, torch.finfo(like.dtype).min)


def _packed(bias: Tensor, heads: int, kv_heads: int) -> Tensor:
    batch, mask_heads, _, keys = bias.shape
    if batch == mask_heads == 1:
        return bias[0].expand(heads // kv_heads, -1, -1).reshape(1, -1, keys)
    return bias.expand(batch, heads, -1, -1).reshape(batch * kv_heads, -1, keys)


def correct_in_place(
    layer: int,
    attended: AttentionPass,
    groups: KeyGroups,
    limits: Limits,
    bias: RowBias,
    first_query: int,
) -> CorrectedRows:
    """Correct the output of the queries from `first_query` on, all batch rows at once.

    Args:
        layer: whose.
        attended: its attention; the output is written to.
        groups: of the K keys, in the working dtype.
        limits: of the batch rows.
        bias: shared by the layers of a pass.
        first_query: position of the first query that may change; one of Q.
    """
    query, mask = attended.query, attended.mask
    batch, heads, queries, width = query.shape
    kv_heads, keys = attended.key.shape[1], attended.key.shape[2]
    start = keys - queries
    first = max(0, first_query - start)
    dtype = working_dtype(query.dtype)
    # In the working dtype: a score rounded to bfloat16 would be off by percents once exponentiated.
    keys_there = attended.key.to(dtype).reshape(-1, keys, width).transpose(1, 2)
    values = attended.value.to(dtype)
    step = max(1, BLOCK_WEIGHTS // (batch * heads * keys))
    masses = []
    for low in range(first, queries, step):
        high = min(low + step, queries)
        rows = range(start + low, start + high)
        part = query[:, :, low:high].to(dtype, memory_format=torch.contiguous_format)
        part = part.reshape(batch * kv_heads, -1, width)
        seen = None if mask is None else mask[:, :, :high]
        hides = bias.of(mask if high == queries else seen, (heads, kv_heads), rows, keys, part)
        if len(hides) not in (1, batch * kv_heads):  # a mask that the batch shares, by head
            hides = hides.repeat(batch, 1, 1)
        before = torch.softmax(
            torch.baddbmm(hides, part, keys_there, alpha=attended.scaling), dim=-1
        )
        before = before.view(batch, heads, high - low, keys)
        mass = group_mass(before, groups)
        done = budget(mass, image_centric(mass, groups, limits), limits)
        change = groups.targets * done.gain[..., None]
        change.addcmul_(groups.sinks, done.loss[..., None], value=-1).mul_(before)
        attended.output[:, :, low:high].add_(rows_times_values(change, values))
        masses.append(done.moved)
    moved = masses[0] if len(masses) == 1 else torch.cat(masses, 2)
    return CorrectedRows(layer, start + low, before, change, moved)
