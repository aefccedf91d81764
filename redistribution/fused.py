"""Fused attention that also returns each row's log-sum-exp, where a device has such a kernel.

With the log-sum-exp of a row, the softmax weight of any single key is exp(score - lse), and the
mass of any group of keys is exp(lse of the group - lse): that is all the method needs to know of a
row.

The kernels are PyTorch's own, reached below `scaled_dot_product_attention`, which drops the
log-sum-exp. Where there is none (`supported` says so), `correction` works from exact rows instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sinkscope.redistribution.grouped import pack

_CPU_KERNEL = "_scaled_dot_product_flash_attention_for_cpu"
_CUDA_KERNEL = "_scaled_dot_product_efficient_attention"
_CPU_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_CUDA_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def supported(query: Tensor, masked: bool) -> bool:
    """Whether `attend` has a kernel for this device, dtype and width; `masked`: and a mask."""
    aten = torch.ops.aten
    if query.device.type == "cpu":
        return query.dtype in _CPU_DTYPES and hasattr(aten, _CPU_KERNEL)
    if query.device.type == "cuda":
        # The kernel wants a mask padded to its own alignment; rows are simpler than such a copy.
        aligned = query.shape[-1] % 8 == 0
        return (
            not masked and aligned and query.dtype in _CUDA_DTYPES and hasattr(aten, _CUDA_KERNEL)
        )
    return False


def attend(
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
