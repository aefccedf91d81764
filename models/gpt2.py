"""GPT-2: LayerNorms, learned positions, one projection for q, k and v together, an MLP without a
gate. Its `Conv1D` keeps weights as (in, out)."""

from __future__ import annotations

from typing import Any

from torch import nn

from sinkscope.models.sites import Fused, HookPoint
from sinkscope.models.stack import MLP, Find, Norm, Projection, TextStack


def gpt2(text: Any, head: nn.Module, config: Any) -> TextStack:
    """The stack of a GPT-2.

    Args:
        text: the decoder, with `h` and `ln_f`.
        head: maps its hidden states to logits.
        config: of the model.
    """
    layers = tuple(text.h)
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
        output_of=lambda layer: Projection(layer.attn.c_proj, transposed=True),
        final_norm=Norm("layer", text.ln_f, text.ln_f.eps),
        head_size=config.hidden_size // heads,
        longest=config.max_position_embeddings,
    )


def _mlp(layer: Any) -> MLP:
    return MLP(
        down=Projection(layer.mlp.c_proj, transposed=True),
        act=layer.mlp.act,
        norm=Norm("layer", layer.ln_2, layer.ln_2.eps),
        fc=Projection(layer.mlp.c_fc, transposed=True),
    )


def _points(heads: int) -> dict[str, Find]:
    """Where each site is in a decoder layer (`models.sites`)."""

    def part(number: int) -> Find:
        return lambda layer: HookPoint(layer.attn.c_attn, "output", heads, Fused(number, 3, False))

    return {
        "block_in": lambda layer: HookPoint(layer, "input"),
        "q": part(0),
        "k": part(1),
        "v": part(2),
        "attn_out": lambda layer: HookPoint(layer.attn, "output"),
        "mlp_norm_in": lambda layer: HookPoint(layer.ln_2, "input"),
        "mlp_in": lambda layer: HookPoint(layer.mlp, "input"),
        "z": lambda layer: HookPoint(layer.mlp.c_proj, "input"),
        "mlp_out": lambda layer: HookPoint(layer.mlp, "output"),
        "block_out": lambda layer: HookPoint(layer, "output"),
    }
