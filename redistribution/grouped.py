"""Attention rows and their output with grouped queries, without copying K and V for each head.

Query heads that share a key head are laid out as more rows of one matrix: (B, H, R, D) is read as
(B, Hkv, H / Hkv * R, D), and one matrix product a key head does the work.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pack(query: Tensor, kv_heads: int) -> Tensor:
    """(B, H, R, D) -> (B, Hkv, H / Hkv * R, D): the query heads of one key head become rows."""
    batch, _, _, width = query.shape
    return query.reshape(batch, kv_heads, -1, width)


def attention_rows(
    query: Tensor, key: Tensor, scale: float, mask: Tensor | None, first_position: int
) -> Tensor:
    """Exact softmax rows.

    Args:
        query: (B, H, R, D), at positions first_position .. first_position + R - 1.
        key: (B, Hkv, K, D).
        scale: factor on the scores.
        mask: None for causal, or bool (True: may be seen) / additive float (B, 1 or H, R, K).
        first_position: position of the first query; with `mask` None, keys after a query are left
            out.

    Returns:
        float32 (float64 for a float64 model) (B, H, R, K).
    """
    batch, heads, count, _ = query.shape
    keys = key.shape[2]
    scores = torch.matmul(pack(query, key.shape[1]), key.transpose(2, 3))
    scores = scores.view(batch, heads, count, keys)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * scale
    if mask is None:
        if keys > first_position + 1:  # some query has keys after it
            position = torch.arange(first_position, first_position + count, device=scores.device)
            later = torch.arange(keys, device=scores.device) > position[:, None]  # (R, K)
            scores = scores.masked_fill(later, float("-inf"))
    else:
        scores = masked(scores, mask)
    return torch.softmax(scores, dim=-1)


def masked(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores (B, H, R, K) under a bool (True: may be seen) or additive float mask."""
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, float("-inf"))
    return scores + mask.to(scores.dtype)


def rows_times_values(rows: Tensor, value: Tensor) -> Tensor:
    """Output of attention rows, in the dtype of `value`.

    Args:
        rows: (B, H, R, K) weights.
        value: (B, Hkv, K, D).

    Returns:
        (B, H, R, D).
    """
    batch, heads, count, keys = rows.shape
    kv_heads, width = value.shape[1], value.shape[3]
    grouped = rows.to(value.dtype).reshape(batch, kv_heads, -1, keys)
    return torch.matmul(grouped, value).view(batch, heads, count, width)
