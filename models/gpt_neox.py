"""GPT-NeoX (Pythia): rotary embedding of a part of each head, q, k and v head by head in one
projection, and blocks that may be parallel."""

from __future__ import annotations

from typing import Any

from torch import nn

from sinkscope.models.gpt_like import PartNames, gpt_like
from sinkscope.models.stack import TextStack

NAMES = PartNames(
    layers="layers",
    final_norm="final_layer_norm",
    attention="attention",
    mlp_norm="post_attention_layernorm",
    qkv="query_key_value",
    output="dense",
    fc="dense_h_to_4h",
    down="dense_4h_to_h",
    by_head=True,
)


def gpt_neox(text: Any, head: nn.Module, config: Any) -> TextStack:
    """The stack of a GPT-NeoX, of its decoder, output head and config."""
    return gpt_like(text, head, config, NAMES, parallel=bool(config.use_parallel_residual))
