"""The shared attention mathematics: exact softmax rows, their output, and fused
attention that also gives each row's log-sum-exp.

Rows and their output are computed with grouped queries, without copying K and V for each head:
query heads that share a key head are laid out as more rows of one matrix. (B, H, R, D) is read as
(B, Hkv, H / Hkv * R, D), so one matrix product per key head is enough.

With the log-sum-exp of a row, the softmax weight of any single key is exp(score - lse), and the
mass of any group of keys is exp(lse of the group - lse). The kernels for it are PyTorch's own,
reached below `scaled_dot_product_attention`, which drops the log-sum-exp. On devices without them
(`has_log_sum_exp`), exact rows are used instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CPU_KERNEL = "_scaled_dot_product_flash_attention_for_cpu"
_CUDA_KERNEL = "_scaled_dot_product_efficient_attention"
_CPU_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_CUDA_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def is_on_host(device: torch.device) -> bool:
    """Whether the host can read a tensor of this device without waiting for earlier launches: only
    on a CPU. On other devices a prefill must not read, and every operation costs a launch."""
    return device.type == "cpu"


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


def has_log_sum_exp(query: Tensor, masked: bool) -> bool:
    """Whether `attend_with_lse` has a kernel for this device, dtype and width (and for a mask)."""
    aten = torch.ops.aten
    if query.device.type == "cpu":
        return query.dtype in _CPU_DTYPES and hasattr(aten, _CPU_KERNEL)
    if query.device.type == "cuda":
        # The kernel needs a mask padded to its own alignment; rows are simpler than such a copy.
        aligned = query.shape[-1] % 8 == 0
        return (
            not masked and aligned and query.dtype in _CUDA_DTYPES and hasattr(aten, _CUDA_KERNEL)
        )
    return False


def attend_with_lse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention output and log-sum-exp of each row.

    Args:
        query: (B, H, R, D).
        key: (B, Hkv, K, D), H a multiple of Hkv.
        value: (B, Hkv, K, D).
        scale: factor on the scores.
        causal: query i sees keys 0 .. i; needs R == K.
        mask: bool (True: may be seen) or additive float (B, 1 or H, R, K); not together with
            `causal`.

    Returns:
        (B, H, R, D) in the dtype of `query`, and (B, H, R) natural log-sum-exp of the scaled
        scores, in float32 (float64 for float64).
    """
    batch, heads, count, width = query.shape
    kv_heads = key.shape[1]
    if not causal and mask is None:
        out, lse = _kernel(pack(query, kv_heads), key, value, scale, False, None)
        return out.reshape(batch, heads, count, width), lse.reshape(batch, heads, count)
    return _kernel(query, _repeat(key, heads), _repeat(value, heads), scale, causal, mask)


def _kernel(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One call with as many key heads as query heads."""
    if query.device.type == "cpu":
        bias = None
        if mask is not None:  # the kernel takes additive masks of the query's own dtype only
            bias = mask.to(query.dtype)
            if mask.dtype == torch.bool:
                bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, float("-inf"))
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=bias, scale=scale
        )
        return out, lse
    out, lse, _, _ = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, None, True, 0.0, causal, scale=scale
    )
    return out, lse[
        :, :, : query.shape[2]
    ]  # the kernel pads the log-sum-exp to a multiple of 32 rows


def _repeat(tensor: Tensor, heads: int) -> Tensor:
    """(B, Hkv, K, D) -> (B, H, K, D)."""
    batch, kv_heads, keys, width = tensor.shape
    if kv_heads == heads:
        return tensor
    shape = (batch, kv_heads, heads // kv_heads, keys, width)
    return tensor[:, :, None].expand(shape).reshape(batch, heads, keys, width)
