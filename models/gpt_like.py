"""Decoders built like GPT-2: LayerNorms, one projection for q, k and v together, as many key/value
heads as heads, an MLP without a gate (GPT-2, GPT-NeoX)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from sinkscope.models.sites import Fused, HookPoint
from sinkscope.models.stack import MLP, Find, Norm, Projection, TextStack


@dataclass(frozen=True)
class PartNames:
    """What the modules of such a decoder are called.

    Attributes:
        layers, final_norm: in the decoder.
        attention, mlp_norm: in a layer, where the MLP is always `mlp`.
        qkv, output: in the attention.
        fc, down: in the MLP.
        by_head: whether q, k and v stand beside each other head by head, or as three blocks.
        transposed: whether weights are kept as (in, out).
    """

    layers: str
    final_norm: str
    attention: str
    mlp_norm: str
    qkv: str
    output: str
    fc: str
    down: str
    by_head: bool
    transposed: bool = False


def gpt_like(
    text: Any,
    head: nn.Module,
    config: Any,
    names: PartNames,
    parallel: bool = False,
    longest: int | None = None,
) -> TextStack:
    """The stack of such a decoder.

    Args:
        text: the decoder.
        head: maps its hidden states to logits.
        config: of the model.
        names: of its modules.
        parallel, longest: as in `TextStack`.
    """
    layers = tuple(getattr(text, names.layers))
    heads = config.num_attention_heads

    def attention(layer: Any) -> Any:
        return getattr(layer, names.attention)

    def mlp_of(layer: Any) -> MLP:
        return MLP(
            down=Projection(getattr(layer.mlp, names.down), names.transposed),
            act=layer.mlp.act,
            norm=_norm(getattr(layer, names.mlp_norm)),
            fc=Projection(getattr(layer.mlp, names.fc), names.transposed),
        )

    def part(number: int) -> Find:
        fused = Fused(number, 3, names.by_head)
        return lambda layer: HookPoint(getattr(attention(layer), names.qkv), "output", heads, fused)

    return TextStack(
        language_model=text,
        layers=layers,
        output_head=head,
        hidden_size=config.hidden_size,
        heads=heads,
        kv_heads=heads,
        points={
            "block_in": lambda layer: HookPoint(layer, "input"),
            "q": part(0),
            "k": part(1),
            "v": part(2),
            "attn_out": lambda layer: HookPoint(attention(layer), "output"),
            "mlp_norm_in": lambda layer: HookPoint(getattr(layer, names.mlp_norm), "input"),
            "mlp_in": lambda layer: HookPoint(layer.mlp, "input"),
            "z": lambda layer: HookPoint(getattr(layer.mlp, names.down), "input"),
            "mlp_out": lambda layer: HookPoint(layer.mlp, "output"),
            "block_out": lambda layer: HookPoint(layer, "output"),
        },
        windows=(None,) * len(layers),
        mlp_of=mlp_of,
        output_of=lambda layer: Projection(
            getattr(attention(layer), names.output), names.transposed
        ),
        final_norm=_norm(getattr(text, names.final_norm)),
        parallel=parallel,
        head_size=config.hidden_size // heads,
        longest=longest,
    )


def _norm(module: Any) -> Norm:
    return Norm("layer", module, module.eps)
