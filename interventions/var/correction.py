"""The redistribution as a correction of a fused kernel's output, without the attention matrix.

The method rescales three groups of keys, so with attention a, values v, sinks S, vision tokens V,
targets T = V without sinks, and freed = (1 - keep) * sum of a over S:

    out' = out - (1 - keep) * sum over S of a_j v_j
               + freed * (sum over T of a_j v_j) / (sum over T of a_j)

Two forms give the same numbers:

- rows: the exact softmax rows, a block of query rows at a time. Best for few rows, and works on any
  device.
- lse: the last quotient is the output of a fused kernel over only the targets, the mass of a group
  follows from two log-sum-exps, and the sinks are a few columns. Nothing grows with rows x keys.

The second form attends to the targets alone instead of subtracting the sinks from the whole image:
where sinks have most of the image's attention, that difference would lose its digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from sinkscope.config import VARSettings
from sinkscope.interventions.var.attention_pass import AttentionPass, MarkedKeys
from sinkscope.interventions.var.redistribute import budget, redistribute_rows
from sinkscope.interventions.var.selection import (
    GroupMass,
    KeyGroups,
    Limits,
    check_masks,
    image_centric,
    working_dtype,
)
from sinkscope.models import kernels
from sinkscope.models.kernels import attention_rows, masked, pack, rows_times_values

Form = Literal["auto", "rows", "lse"]

FEW_WEIGHTS = 1 << 16  # up to this many (head, row, key) exact rows are the faster form, measured
MANY_SINKS = 64  # above, the sinks are no longer a handful of columns
BLOCK_WEIGHTS = 1 << 20  # attention weights that the rows form holds at once


@dataclass(frozen=True)
class Correction:
    """A layer's output after the method, and what the method did.

    Attributes:
        output: (B, H, Q, D), dtype of the output given.
        selected: (B, H, Q) bool, rows that were changed.
        moved: (B, H, Q) float32 (or float64) attention mass taken from the sinks, 0 where not
            selected.
    """

    output: Tensor
    selected: Tensor
    moved: Tensor


def correct_output(
    attended: AttentionPass,
    marked: MarkedKeys,
    settings: VARSettings | Limits,
    first_query: int = 0,
    *,
    log_sum_exp: Tensor | None = None,
    form: Form = "auto",
) -> Correction:
    """Correct the output of an attention layer for the redistribution.

    Args:
        attended: the layer's attention; its output is not written to.
        marked: its keys. What is not on the host yet is copied, for which columns are gathered is
            decided there.
        settings: thresholds, `keep` and dialect; or the same as `Limits`.
        first_query: POSITION (not row) from which on queries change; at prefill, the one after the
            last image.
        log_sum_exp: (B, H, Q) of the scaled scores, if the kernel gave it; saves the `lse` form one
            pass.
        form: `auto` takes `rows` for few rows of few keys and `lse` above, where it can.

    Returns:
        `Correction`. Rows that do not change are those of `output`, bit for bit.

    Raises:
        ValueError: a mask has the wrong shape or dtype; or `form` is `lse` where only `rows` can do
        it.
    """
    query, output = attended.query, attended.output
    batch, heads, queries, _ = query.shape
    keys = attended.key.shape[2]
    check_masks(marked.sinks, marked.vision, batch, keys)
    limits = settings if isinstance(settings, Limits) else Limits.of(settings)
    accumulate = working_dtype(query.dtype)
    start = keys - queries  # position of the first query
    first = min(max(0, first_query - start), queries)  # first row that may change
    corrected = output
    selected = torch.zeros(batch, heads, queries, dtype=torch.bool, device=query.device)
    moved = torch.zeros(batch, heads, queries, dtype=accumulate, device=query.device)
    if first == queries:
        return Correction(corrected, selected, moved)
    if form not in ("auto", "rows", "lse"):
        raise ValueError(f"form is {form!r}; allowed: auto, rows, lse.")

    marked = replace(
        marked,
        groups=marked.groups or KeyGroups.of(marked.sinks, marked.vision, accumulate),
        on_host=marked.on_host or (marked.sinks.cpu(), marked.vision.cpu()),
    )
    corrected = output.clone()
    for b in range(batch):  # each has its own sinks, so its own columns
        rows = _Rows.of(attended.row(b), marked.row(b), first, start + first)
        if log_sum_exp is not None:
            rows = replace(rows, log_sum_exp=log_sum_exp[b : b + 1, :, first:])
        many = heads * (queries - first) * keys > FEW_WEIGHTS
        wants_lse = form == "lse" or (form == "auto" and many)
        obstacle = _obstacle(rows) if wants_lse else None
        if form == "lse" and obstacle is not None:
            raise ValueError(f"form is 'lse'; allowed here: rows, because {obstacle}.")
        done = (
            _by_lse(rows, limits.row(b))
            if wants_lse and obstacle is None
            else _by_rows(rows, limits.row(b))
        )
        corrected[b : b + 1, :, first:] = done.output
        selected[b : b + 1, :, first:] = done.selected
        moved[b : b + 1, :, first:] = done.moved
    return Correction(corrected, selected, moved)


def correct_rows_with_sinks(
    attended: AttentionPass,
    marked: MarkedKeys,
    vision_there: Tensor,
    settings: Mapping[int, VARSettings],
    limits: Limits,
    first_query: int,
) -> tuple[Tensor, dict[int, Tensor]]:
    """`correct_output` for the batch rows whose sinks call for it, which the host looks at.

    Args:
        attended: the layer's attention.
        marked: its keys, with groups.
        vision_there: (B, K) bool on the host.
        settings: batch row -> of those that may change.
        limits: of all batch rows.
        first_query: as in `correct_output`.

    Returns:
        The output, and of each row that was corrected the mass moved (1, H, Q).
    """
    sinks_there = marked.sinks.cpu()  # one copy a layer says which columns are needed
    marked = replace(marked, on_host=(sinks_there, vision_there))
    output = attended.output
    new, moved = output, {}
    for row, row_settings in settings.items():
        judged = (
            sinks_there[row]
            if row_settings.dialect == "paper"
            else sinks_there[row] & vision_there[row]
        )
        if not bool(judged.any()):
            continue
        done = correct_output(attended.row(row), marked.row(row), limits.row(row), first_query)
        moved[row] = done.moved
        if len(output) == 1:
            return done.output, moved
        new = new.clone() if new is output else new
        new[row] = done.output[0]
    return new, moved


@dataclass(frozen=True)
class _Rows:
    """The query rows of one batch row that may change, with all their keys.

    Shapes as in `correct_output` with B = 1; `position` is that of the first row, `sinks_there` and
    `vision_there` are (K,) masks on the host.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    sinks: Tensor
    vision: Tensor
    mask: Tensor | None
    log_sum_exp: Tensor | None
    position: int
    scaling: float
    groups: KeyGroups
    sinks_there: Tensor
    vision_there: Tensor

    @classmethod
    def of(cls, attended: AttentionPass, marked: MarkedKeys, first: int, position: int) -> _Rows:
        """The rows from `first` on, which is at a position."""
        assert marked.groups is not None and marked.on_host is not None
        keys, mask = attended.key.shape[2], attended.mask
        return cls(
            attended.query[:, :, first:],
            attended.key,
            attended.value,
            attended.output[:, :, first:],
            marked.sinks,
            marked.vision,
            None if mask is None else mask[:, :, first:, :keys],
            None,
            position,
            attended.scaling,
            marked.groups,
            marked.on_host[0][0],
            marked.on_host[1][0],
        )


def _by_rows(rows: _Rows, limits: Limits) -> Correction:
    """Exact softmax rows, in blocks of bounded memory."""
    _, heads, count, _ = rows.query.shape
    keys = rows.key.shape[2]
    accumulate = working_dtype(rows.query.dtype)
    key, value = rows.key.to(accumulate), rows.value.to(accumulate)
    block = max(1, BLOCK_WEIGHTS // (heads * keys))
    groups = rows.groups
    parts = []
    for low in range(0, count, block):
        high = min(low + block, count)
        visible = None if rows.mask is None else rows.mask[:, :, low:high]
        query = rows.query[:, :, low:high].to(accumulate)
        before = attention_rows(query, key, rows.scaling, visible, rows.position + low)
        after = redistribute_rows(before, groups, limits)
        delta = rows_times_values(after.weights - before, value)  # (1, H, block, D)
        parts.append(_apply(rows.output[:, :, low:high], delta, after.selected, after.moved))
    return Correction(
        torch.cat([part.output for part in parts], 2),
        torch.cat([part.selected for part in parts], 2),
        torch.cat([part.moved for part in parts], 2),
    )


def _obstacle(rows: _Rows) -> str | None:
    """Why the `lse` form cannot be used on these rows; None where it can."""
    if not kernels.has_log_sum_exp(rows.query, rows.mask is not None):
        return f"no kernel on {rows.query.device.type} gives the log-sum-exp for {rows.query.dtype}"
    if int(rows.sinks_there.sum()) > MANY_SINKS:
        return f"there are more than {MANY_SINKS} sinks"
    image = rows.vision_there.nonzero()[:, 0]
    if image.numel() and int(image[-1]) >= rows.position:
        return "a vision token comes after the first query row"
    if rows.mask is not None:
        seen = rows.mask[..., image.to(rows.mask.device)]
        if not bool(seen.all() if seen.dtype == torch.bool else (seen == 0).all()):
            return "the mask hides vision tokens from some rows"
    return None


def _by_lse(rows: _Rows, limits: Limits) -> Correction:
    """Group masses from log-sum-exps, the targets' mean value from a fused call over only these."""
    _, heads, count, _ = rows.query.shape
    kv_heads = rows.key.shape[1]
    accumulate = working_dtype(rows.query.dtype)
    device = rows.query.device
    targets = (rows.vision_there & ~rows.sinks_there).nonzero()[:, 0].to(device)
    sinks = rows.sinks_there.nonzero()[:, 0].to(device)
    if targets.numel() == 0 or sinks.numel() == 0:
        nothing = torch.zeros(1, heads, count, dtype=accumulate, device=device)
        return Correction(rows.output, nothing.to(torch.bool), nothing)

    mean_value, lse_targets = kernels.attend_with_lse(
        rows.query, rows.key[:, :, targets], rows.value[:, :, targets], rows.scaling
    )
    lse = _all_keys(rows, targets, lse_targets) if rows.log_sum_exp is None else rows.log_sum_exp
    lse = lse.to(accumulate)

    # The sinks' columns, in the working dtype: a score rounded to bfloat16 would be off by percents
    # once exponentiated.
    scores = torch.matmul(
        pack(rows.query, kv_heads).to(accumulate),
        rows.key[:, :, sinks].to(accumulate).transpose(2, 3),
    ).view(1, heads, count, -1)
    scores = scores * rows.scaling
    if rows.mask is None:
        position = torch.arange(rows.position, rows.position + count, device=sinks.device)
        scores = scores.masked_fill(sinks > position[:, None], float("-inf"))
    else:
        scores = masked(scores, rows.mask[..., sinks])
    on_sinks = torch.exp(scores - lse[..., None])  # (1, H, R, S)

    on_targets = torch.exp(lse_targets.to(accumulate) - lse)
    visual = rows.vision[0, sinks].to(on_sinks.dtype)  # (S,)
    on_visual, on_text = (on_sinks * visual).sum(-1), (on_sinks * (1 - visual)).sum(-1)
    groups = rows.groups
    mass = GroupMass(on_targets, on_visual, on_text)
    done = budget(mass, image_centric(mass, groups, limits), limits)
    taken = rows_times_values(on_sinks, rows.value[:, :, sinks].to(accumulate)) * limits.freed
    delta = done.moved[..., None] * mean_value.to(accumulate) - taken
    return _apply(rows.output, delta, done.selected, done.moved)


def _all_keys(rows: _Rows, targets: Tensor, lse_targets: Tensor) -> Tensor:
    """Log-sum-exp over all keys a row sees: (1, H, R), from that over the targets and the rest.

    Without a mask the rest is two calls: what comes before the first row is seen by every row, so
    grouped queries need no copy of K there; only the short tail is causal.
    """
    rest = ~(rows.vision_there & ~rows.sinks_there)  # on the host
    device = targets.device
    accumulate = working_dtype(rows.query.dtype)
    total = lse_targets.to(accumulate)
    if rows.mask is not None:
        others = rest.nonzero()[:, 0].to(device)
        parts: list[tuple[Tensor, Tensor | None, bool]] = [(others, rows.mask[..., others], False)]
    else:
        tail = torch.arange(rows.position, rows.key.shape[2], device=device)
        before = rest[: rows.position].nonzero()[:, 0].to(device)
        parts = [(before, None, False), (tail, None, True)]
    for columns, mask, causal in parts:
        if columns.numel():
            key, value = rows.key[:, :, columns], rows.value[:, :, columns]
            _, lse = kernels.attend_with_lse(
                rows.query, key, value, rows.scaling, causal=causal, mask=mask
            )
            total = torch.logaddexp(total, lse.to(accumulate))
    return total


def _apply(output: Tensor, delta: Tensor, selected: Tensor, moved: Tensor) -> Correction:
    """Add `delta` (working dtype) on the selected rows; the others stay, bit for bit."""
    changed = (output.to(delta.dtype) + delta).to(output.dtype)
    return Correction(torch.where(selected[..., None], changed, output), selected, moved)
