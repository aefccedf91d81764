"""Dense reimplementations of the methods in float64: eager attention that keeps every [H, N, N]
matrix, and autograd through all of it. No code of the project's methods is used here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.masking_utils import sdpa_mask

NAME = "dense_methods_reference"


@dataclass
class Seen:
    """Values of one pass, layer by layer; heads are repeated for grouped queries."""

    weights: list[Tensor] = field(default_factory=list)  # (H, N, N), in the graph
    scores: list[Tensor] = field(default_factory=list)  # (H, N, N), before the softmax and mask
    values: list[Tensor] = field(default_factory=list)  # (H, N, Dh)
    out: list[Tensor] = field(default_factory=list)  # (N, D), behind the layer
    logits: Tensor = field(default_factory=lambda: torch.zeros(0))  # (N, vocabulary)


class Dense:
    """The tiny Qwen2.5-VL in float64."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float64
        ).eval()
        self.model.requires_grad_(False)
        AttentionInterface.register(NAME, self._attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        self.model.set_attn_implementation({"text_config": NAME})
        self.text = self.model.model.language_model
        self._seen = Seen()
        self._cut: list[int] = []
        self._behind = 0

    def output_weight(self, layer: int) -> Tensor:
        """(D, H * Dh)."""
        weight: Tensor = self.text.layers[layer].self_attn.o_proj.weight
        return weight

    def read(self, tensors: dict[str, Tensor], cut: Sequence[int] = (), behind: int = 0) -> Seen:
        """One pass, with its graph from the first layer's weights on.

        Args:
            tensors: of prompt and answer.
            cut: keys hidden from the queries from `behind` on, in every layer.
        """
        self._seen, self._cut, self._behind = Seen(), list(cut), behind
        seen = self._seen
        with self._watching(seen), torch.enable_grad():
            seen.logits = self.model(**tensors, use_cache=False).logits[0]
        return seen

    def normed(self, hidden: Tensor) -> Tensor:
        normed: Tensor = self.text.norm(hidden)
        return normed

    def unembedded(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.model.lm_head(self.normed(hidden))
        return logits

    @contextmanager
    def _watching(self, seen: Seen) -> Iterator[None]:
        def keep(module: Any, args: Any, output: Any) -> None:
            seen.out.append((output[0] if isinstance(output, tuple) else output)[0])

        hooks = [layer.register_forward_hook(keep) for layer in self.text.layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> tuple[Tensor, None]:
        share, length = query.shape[1] // key.shape[1], query.shape[2]
        key, value = (part[0].repeat_interleave(share, dim=0) for part in (key, value))
        scores = query[0] @ key.transpose(1, 2) * query.shape[-1] ** -0.5
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        later[self._behind :, self._cut] = True
        weights = scores.masked_fill(later, float("-inf")).softmax(-1)
        if not weights.requires_grad:
            weights.requires_grad_()
        self._seen.weights.append(weights)
        self._seen.scores.append(scores.detach())
        self._seen.values.append(value.detach())
        return (weights @ value).transpose(0, 1)[None], None


def log_p(seen: Seen, position: int, token: int) -> Tensor:
    return seen.logits[position].log_softmax(-1)[token]


def gradients(seen: Seen, position: int, token: int, logit: bool = False) -> list[Tensor]:
    """d log p / d A of every layer, complete: (H, N, N)."""
    what = seen.logits[position, token] if logit else log_p(seen, position, token)
    return list(torch.autograd.grad(what, seen.weights, retain_graph=True))
