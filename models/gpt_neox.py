"""GPT-NeoX (Pythia): LayerNorms, rotary embedding of a part of each head, one projection that gives
q, k and v head by head, an MLP without a gate, and blocks that may be parallel."""

from __future__ import annotations

from typing import Any

from torch import nn

from sinkscope.models.sites import Fused, HookPoint
from sinkscope.models.stack import MLP, Find, Norm, Projection, TextStack


def gpt_neox(text: Any, head: nn.Module, config: Any) -> TextStack:
    """The stack of a GPT-NeoX.

    Args:
        text: the decoder, with `layers` and `final_layer_norm`.
        head: maps its hidden states to logits.
        config: of the model.
    """
    layers = tuple(text.layers)
    heads = config.num_attention_heads
    return TextStack(
        language_model=text,
        layers=layers,
        output_head=head,
        hidden_size=config.hidden_size,
        heads=heads,
        kv_heads=heads,
        points=_points(heads),
        windows=(None,) * len(layers),
        mlp_of=_mlp,
        output_of=lambda layer: Projection(layer.attention.dense),
        final_norm=Norm("layer", text.final_layer_norm, text.final_layer_norm.eps),
        parallel=bool(config.use_parallel_residual),
        head_size=config.hidden_size // heads,
    )


def _mlp(layer: Any) -> MLP:
    norm = layer.post_attention_layernorm
    return MLP(
        down=Projection(layer.mlp.dense_4h_to_h),
        act=layer.mlp.act,
        norm=Norm("layer", norm, norm.eps),
        fc=Projection(layer.mlp.dense_h_to_4h),
    )


def _points(heads: int) -> dict[str, Find]:
    """Where each site is in a decoder layer (`models.sites`)."""

    def part(number: int) -> Find:
        return lambda layer: HookPoint(
            layer.attention.query_key_value, "output", heads, Fused(number, 3, True)
        )

    return {
        "block_in": lambda layer: HookPoint(layer, "input"),
        "q": part(0),
        "k": part(1),
        "v": part(2),
        "attn_out": lambda layer: HookPoint(layer.attention, "output"),
        "mlp_norm_in": lambda layer: HookPoint(layer.post_attention_layernorm, "input"),
        "mlp_in": lambda layer: HookPoint(layer.mlp, "input"),
        "z": lambda layer: HookPoint(layer.mlp.dense_4h_to_h, "input"),
        "mlp_out": lambda layer: HookPoint(layer.mlp, "output"),
        "block_out": lambda layer: HookPoint(layer, "output"),
    }
