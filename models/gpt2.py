"""GPT-2: learned positions; its `Conv1D` keeps weights as (in, out)."""

from __future__ import annotations

from typing import Any

from torch import nn

from sinkscope.models.gpt_like import PartNames, gpt_like
from sinkscope.models.stack import TextStack

NAMES = PartNames(
    layers="h",
    final_norm="ln_f",
    attention="attn",
    mlp_norm="ln_2",
    qkv="c_attn",
    output="c_proj",
    fc="c_fc",
    down="c_proj",
    by_head=False,
    transposed=True,
)


def gpt2(text: Any, head: nn.Module, config: Any) -> TextStack:
    """The stack of a GPT-2, of its decoder, output head and config."""
    return gpt_like(text, head, config, NAMES, longest=config.max_position_embeddings)
