"""Plain transformers models in float64 with hooks of their own: the reference for the experiments'
numbers. No code of the project is used here.

A recording attention function computes softmax(Q K^T * scale) over the visible keys and keeps
queries, keys and weights; hooks keep the modules' inputs and outputs, and change them if a test
asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.masking_utils import sdpa_mask

NAME = "plain_reference"


@dataclass
class Seen:
    """The values of one pass: layer -> tensor, for a single sequence."""

    residual: dict[int, Tensor] = field(default_factory=dict)  # (N, D), input of the block
    attn: dict[int, Tensor] = field(default_factory=dict)
    x: dict[int, Tensor] = field(default_factory=dict)  # the MLP's input
    z: dict[int, Tensor] = field(default_factory=dict)
    gate: dict[int, Tensor] = field(default_factory=dict)
    up: dict[int, Tensor] = field(default_factory=dict)
    mlp: dict[int, Tensor] = field(default_factory=dict)
    out: dict[int, Tensor] = field(default_factory=dict)
    q: dict[int, Tensor] = field(default_factory=dict)  # (H, N, Dh), rotated
    k: dict[int, Tensor] = field(default_factory=dict)  # (H, N, Dh), rotated, repeated
    v: dict[int, Tensor] = field(default_factory=dict)
    weights: dict[int, Tensor] = field(default_factory=dict)  # (H, N, N)
    logits: Tensor | None = None


@dataclass
class Changes:
    """Changes applied during a pass; each takes (layer, values) and returns new values."""

    residual: Callable[[int, Tensor], Tensor] | None = None
    before_norm: Callable[[int, Tensor], Tensor] | None = None
    x: Callable[[int, Tensor], Tensor] | None = None
    mlp: Callable[[int, Tensor], Tensor] | None = None
    weights: Callable[[int, Tensor], Tensor] | None = None  # after the softmax, (H, N, N)
    scores: Callable[[int, Tensor], Tensor] | None = None  # before it


class Plain:
    """A model in float64."""

    def __init__(self, folder: Path, family: str) -> None:
        kind = Qwen2_5_VLForConditionalGeneration if family == "vl" else AutoModelForCausalLM
        self.family = family
        self.model: Any = kind.from_pretrained(folder, dtype=torch.float64).eval()
        self.model.requires_grad_(False)
        name = f"{NAME}_{family}"
        AttentionInterface.register(name, self._attend)
        AttentionMaskInterface.register(name, sdpa_mask)
        self.model.set_attn_implementation({"text_config": name} if family == "vl" else name)
        self._seen, self._changes = Seen(), Changes()

    @property
    def layers(self) -> Sequence[Any]:
        inner = self.model
        if self.family == "vl":
            return inner.model.language_model.layers
        if self.family == "gpt2":
            return inner.transformer.h
        return inner.gpt_neox.layers if self.family == "gpt_neox" else inner.model.layers

    @property
    def final_norm(self) -> Any:
        if self.family == "vl":
            return self.model.model.language_model.norm
        if self.family == "gpt2":
            return self.model.transformer.ln_f
        inner = self.model
        return inner.gpt_neox.final_layer_norm if self.family == "gpt_neox" else inner.model.norm

    def attention(self, layer: int) -> Any:
        name = {"gpt2": "attn", "gpt_neox": "attention"}.get(self.family, "self_attn")
        return getattr(self.layers[layer], name)

    def down(self, layer: int) -> Any:
        mlp = self.layers[layer].mlp
        name = {"gpt2": "c_proj", "gpt_neox": "dense_4h_to_h"}.get(self.family, "down_proj")
        return getattr(mlp, name)

    def mlp_norm(self, layer: int) -> Any:
        block = self.layers[layer]
        return block.ln_2 if self.family == "gpt2" else block.post_attention_layernorm

    def down_weight(self, layer: int) -> Tensor:
        """(D, F)."""
        weight = self.down(layer).weight
        return weight.T if self.family == "gpt2" else weight

    def run(self, tensors: dict[str, Tensor], changes: Changes | None = None) -> Seen:
        """One pass of a sequence."""
        self._seen, self._changes = seen, change = Seen(), changes or Changes()
        hooks = []

        def watch(module: Any, into: dict[int, Tensor], layer: int, side: str, alter: Any) -> None:
            def before(module: Any, args: Any, kwargs: Any) -> Any:
                given = args[0] if args else kwargs["hidden_states"]
                new = alter(layer, given[0])[None] if alter else given
                into[layer] = new[0]
                if args:
                    return (new, *args[1:]), kwargs
                return args, {**kwargs, "hidden_states": new}

            def after(module: Any, args: Any, output: Any) -> Any:
                given = output[0] if isinstance(output, tuple) else output
                new = alter(layer, given[0])[None] if alter else given
                into[layer] = new[0]
                return (new, *output[1:]) if isinstance(output, tuple) else new

            if side == "in":
                hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
            else:
                hooks.append(module.register_forward_hook(after))

        for layer, block in enumerate(self.layers):
            watch(block, seen.residual, layer, "in", change.residual)
            watch(self.attention(layer), seen.attn, layer, "out", None)
            if change.before_norm:
                watch(self.mlp_norm(layer), {}, layer, "in", change.before_norm)
            watch(block.mlp, seen.x, layer, "in", change.x)
            watch(self.down(layer), seen.z, layer, "in", None)
            watch(block.mlp, seen.mlp, layer, "out", change.mlp)
            watch(block, seen.out, layer, "out", None)
            if hasattr(block.mlp, "gate_proj"):
                watch(block.mlp.gate_proj, seen.gate, layer, "out", None)
                watch(block.mlp.up_proj, seen.up, layer, "out", None)
        try:
            with torch.no_grad():
                seen.logits = self.model(**tensors, use_cache=False).logits[0]
        finally:
            for hook in hooks:
                hook.remove()
        return seen

    def _attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> tuple[Tensor, None]:
        layer, length = module.layer_idx, query.shape[2]
        share = query.shape[1] // key.shape[1]
        key, value = (t[0].repeat_interleave(share, dim=0) for t in (key, value))
        scale = options.get("scaling") or query.shape[-1] ** -0.5
        scores = (query[0] @ key.transpose(1, 2)) * scale
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
        if self._changes.scores:
            scores = self._changes.scores(layer, scores)
        weights = torch.softmax(scores, dim=-1)
        if self._changes.weights:
            weights = self._changes.weights(layer, weights)
        seen = self._seen
        seen.q[layer], seen.k[layer], seen.v[layer] = query[0], key, value
        seen.weights[layer] = weights
        return (weights @ value).transpose(0, 1)[None], None


def spread(vectors: Sequence[Tensor]) -> float:
    """sqrt( mean_i |u_i - mean(u)|^2 / D ), literally."""
    units = torch.stack([v / v.norm() for v in vectors])
    apart = units - units.mean(0)
    return float((apart.square().sum(-1).mean() / units.shape[-1]).sqrt())


def mean_norm(vectors: Sequence[Tensor]) -> float:
    return float(torch.stack([v.norm() for v in vectors]).mean())


def received(weights: Tensor, key: int, first: int) -> Tensor:
    """(H,): mean of A[h, q, key] over the queries q >= first after the key, from (H, N, N)."""
    low = max(first, key + 1)
    return weights[:, low:, key].mean(-1)


def auc(above: Sequence[float], below: Sequence[float]) -> float:
    """Computed over every pair."""
    wins = sum((a > b) + 0.5 * (a == b) for a in above for b in below)
    return wins / (len(above) * len(below))
