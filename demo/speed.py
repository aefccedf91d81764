"""Makes the training of one model faster, on any device, without changing what it computes.

The library's forward methods are written for inference on large GPUs; at this size a training step
spends half of its time in three of them. This replaces them on the modules of ONE model instance,
inside a ``with`` block. The classes are not changed, and leaving the block restores the instance.
A test checks that results are equal up to rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ATTENTION_NAME = "demo_training"


def training_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 if this device computes it, float32 if it only emulates it.

    On a CPU with only AVX2 a product in bfloat16 took 57 times as long as in float32. torch has no
    public function for this, so two small products are timed. The limit of 3 is far from both
    cases, so a resumed run makes the same decision.
    """
    if device.type != "cpu":
        return torch.bfloat16
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        values = torch.ones(256, 256, dtype=dtype)
        values @ values  # the first product initialises the library
        times = []
        for _ in range(3):
            start = time.perf_counter()
            values @ values
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    emulated = seconds[torch.bfloat16] > 3 * seconds[torch.float32]
    return torch.float32 if emulated else torch.bfloat16


@contextmanager
def faster_training(model: Any) -> Iterator[None]:
    """Replaces patch embedding, RMS norms and both attentions of ``model`` inside the block.

    The text layers then take an additive mask and also return their attention weights.

    Args:
        model: A ``Qwen2_5_VLForConditionalGeneration``.
    """
    from transformers import AttentionInterface
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as library

    AttentionInterface.register(ATTENTION_NAME, masked_attention)
    text = model.config.text_config
    before = text._attn_implementation
    changed = []
    try:
        text._attn_implementation = ATTENTION_NAME
        for module in model.modules():
            if isinstance(module, library.Qwen2_5_VisionPatchEmbed):
                # Replaced while the model trains, and put back.
                module.forward = _patch_embedding(module)  # type: ignore[method-assign]
            elif isinstance(module, library.Qwen2_5_VLVisionAttention):
                forward = _vision_attention(module, library.apply_rotary_pos_emb_vision)
                module.forward = forward  # type: ignore[method-assign]  # put back
            elif type(module).__name__.endswith("RMSNorm"):
                module.forward = _rms_norm(module)
            else:
                continue
            changed.append(module)
        yield
    finally:
        text._attn_implementation = before
        for module in changed:
            del module.forward


def masked_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    row_change: Callable[[int, Tensor], Tensor] | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Softmax attention with grouped heads, as plain matrix products in the dtype of its inputs.

    On a CPU, at these lengths, the backward pass of the fused kernel with a mask takes several
    times as long.

    Args:
        module: The attention module (its ``layer_idx`` is for ``row_change``).
        query: ``(B, H, L, d)``.
        key: ``(B, G, L, d)``; G divides H.
        value: ``(B, G, L, d)``.
        attention_mask: ``(B, 1, L, L)``, added to the scores.
        scaling: Factor on the scores.
        row_change: (layer, weights) -> weights: an intervention on the attention rows.

    Returns:
        The mixed values ``(B, L, H, d)`` and the weights ``(B, H, L, L)``.
    """
    size, heads, length, width = query.shape
    groups = key.shape[1]
    stacked = (query * scaling).reshape(
        size * groups, -1, width
    )  # heads of a group share their keys
    scores = torch.bmm(stacked, key.reshape(size * groups, length, width).transpose(1, 2))
    weights = (scores.view(size, heads, length, length) + attention_mask).softmax(-1)
    weights = weights.to(value.dtype)
    if row_change is not None:
        weights = row_change(module.layer_idx, weights)
    mixed = torch.bmm(
        weights.view(size * groups, -1, length), value.reshape(size * groups, length, width)
    )
    return mixed.view(size, heads, length, width).transpose(1, 2), weights


def _patch_embedding(module: Any) -> Any:
    def forward(pixels: Tensor) -> Tensor:
        # The kernel is as large as the patch, so the 3-d convolution is a matrix product.
        weight = module.proj.weight.view(module.embed_dim, -1)
        return F.linear(pixels.view(pixels.shape[0], -1).to(weight.dtype), weight).float()

    return forward


def _rms_norm(module: Any) -> Any:
    def forward(hidden: Tensor) -> Tensor:
        width = (hidden.shape[-1],)
        return F.rms_norm(hidden, width, module.weight.to(hidden.dtype), module.variance_epsilon)

    return forward


def _vision_attention(module: Any, rotate: Any) -> Any:
    def forward(
        hidden: Tensor, cu_seqlens: Tensor, position_embeddings: Any = None, **_: Any
    ) -> Tensor:
        count = hidden.shape[0]
        parts = module.qkv(hidden).reshape(count, 3, module.num_heads, -1)
        query, key, value = parts.permute(1, 0, 2, 3).unbind(0)
        query, key = rotate(query, key, *position_embeddings)
        query, key, value = (t.transpose(0, 1) for t in (query, key, value))  # heads, N, d
        lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).tolist()
        starts = cu_seqlens[:-1].tolist()
        out = hidden.new_empty(count, module.num_heads * value.shape[-1], dtype=value.dtype)
        for length in sorted(set(lengths)):  # windows of one length go through one batched call
            index = torch.cat(
                [
                    torch.arange(s, s + length, device=hidden.device)
                    for s, n in zip(starts, lengths, strict=True)
                    if n == length
                ]
            )

            def windows(t: Tensor, index: Tensor = index, length: int = length) -> Tensor:
                picked = t[:, index].reshape(module.num_heads, -1, length, t.shape[-1])
                return picked.transpose(0, 1)  # windows, heads, length, d

            mixed = F.scaled_dot_product_attention(windows(query), windows(key), windows(value))
            out = out.index_copy(0, index, mixed.transpose(1, 2).reshape(index.numel(), -1))
        projected: Tensor = module.proj(out)
        return projected

    return forward
