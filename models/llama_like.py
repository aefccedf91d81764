"""Decoders built like Llama: RMS norms, separate q, k, v, a gated MLP (Llama, Mistral, Qwen2,
Qwen2.5, Qwen3, and the text model of Qwen2.5-VL)."""

from __future__ import annotations

from typing import Any

from torch import nn

from sinkscope.models.sites import HookPoint
from sinkscope.models.stack import MLP, Find, Norm, Projection, TextStack


def llama_like(text: Any, head: nn.Module, config: Any) -> TextStack:
    """The stack of such a decoder.

    Args:
        text: the decoder, with `layers` and `norm`.
        head: maps its hidden states to logits.
        config: of the decoder.
    """
    layers = tuple(text.layers)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    normed = hasattr(layers[0].self_attn, "q_norm")
    return TextStack(
        language_model=text,
        layers=layers,
        output_head=head,
        hidden_size=config.hidden_size,
        heads=heads,
        kv_heads=kv_heads,
        points=_points(heads, kv_heads, normed),
        windows=tuple(_window(layer.self_attn) for layer in layers),
        mlp_of=_mlp,
        output_of=lambda layer: Projection(layer.self_attn.o_proj),
        final_norm=rms_norm(text.norm),
        head_size=layers[0].self_attn.head_dim,
    )


def rms_norm(module: Any) -> Norm:
    """transformers' RMS norms keep their epsilon as `variance_epsilon`."""
    return Norm("rms", module, module.variance_epsilon)


def _window(attention: Any) -> int | None:
    """Mistral asks its config in each layer; where attention has its own, that one counts."""
    if hasattr(attention, "sliding_window"):
        window: int | None = attention.sliding_window
    elif attention.config.model_type == "mistral":
        window = attention.config.sliding_window
    else:
        window = None
    return window


def _mlp(layer: Any) -> MLP:
    return MLP(
        down=Projection(layer.mlp.down_proj),
        act=layer.mlp.act_fn,
        norm=rms_norm(layer.post_attention_layernorm),
        gate=Projection(layer.mlp.gate_proj),
        up=Projection(layer.mlp.up_proj),
    )


def _points(heads: int, kv_heads: int, normed: bool) -> dict[str, Find]:
    """Where each site is in a decoder layer (`models.sites`).

    With norms on queries and keys (Qwen3) the sites are after the norms: as in other models, only
    the rotary embedding follows. These norms are called with the heads apart.
    """
    if normed:
        q: Find = lambda layer: HookPoint(layer.self_attn.q_norm, "output")  # noqa: E731
        k: Find = lambda layer: HookPoint(layer.self_attn.k_norm, "output")  # noqa: E731
    else:
        q = lambda layer: HookPoint(layer.self_attn.q_proj, "output", heads)  # noqa: E731
        k = lambda layer: HookPoint(layer.self_attn.k_proj, "output", kv_heads)  # noqa: E731
    return {
        "block_in": lambda layer: HookPoint(layer, "input"),
        "q": q,
        "k": k,
        "v": lambda layer: HookPoint(layer.self_attn.v_proj, "output", kv_heads),
        "attn_out": lambda layer: HookPoint(layer.self_attn, "output"),
        "mlp_norm_in": lambda layer: HookPoint(layer.post_attention_layernorm, "input"),
        "mlp_in": lambda layer: HookPoint(layer.mlp, "input"),
        "gate": lambda layer: HookPoint(layer.mlp.gate_proj, "output"),
        "up": lambda layer: HookPoint(layer.mlp.up_proj, "output"),
        "z": lambda layer: HookPoint(layer.mlp.down_proj, "input"),
        "mlp_out": lambda layer: HookPoint(layer.mlp, "output"),
        "block_out": lambda layer: HookPoint(layer, "output"),
    }
