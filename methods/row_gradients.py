"""A token's attention row and the gradient of its log-probability with respect to that row.

log p of answer token t depends on the logits at one position, p. Its row in layer l changes the
update of the residual stream at p, which no earlier position sees. So the gradient with respect to
the row is that of ONE query: keys and values of the positions before it are read once and stay
constants, and the pass that is differentiated has a single position. This is exact, not an
approximation, and no tensor is larger than heads x positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from sinkscope.capture.probes.base import Probe
from sinkscope.capture.probes.rows import Rows
from sinkscope.jobs.job import Progress
from sinkscope.methods.base import Target
from sinkscope.methods.passes import Passes
from sinkscope.models.kernels import pack
from sinkscope.models.sites import SiteSelection

Of = Literal["log_p", "logit"]


@dataclass(frozen=True)
class RowGradient:
    """One token's values at the vision columns: each (L, H, V), float32 or wider.

    Attributes:
        weights: the row's attention.
        gradient: d log p / d attention (or d logit).
        scores: inputs of the softmax: q k^T * scale.
    """

    weights: Tensor
    gradient: Tensor
    scores: Tensor


def row_gradients(
    passes: Passes, target: Target, of: Of, progress: Progress | None = None
) -> Iterator[RowGradient]:
    """One for each token of the target, in order, one row at a time from a shared cache."""
    total = len(target.tokens)
    passes.tell(progress, 0, total, "Reading prompt and answer", "tokens")
    cache, resume = passes.keys_values()
    for done, token in enumerate(target.tokens):
        passes.tell(progress, done, total, "Gradients of attention rows", "tokens")
        yield _of_token(passes, cache, resume, token, of)


def objective(logits: Tensor, token: int, of: Of) -> Tensor:
    """The differentiated value, from logits (vocabulary,)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits[token] if of == "logit" else torch.log_softmax(logits, dim=-1)[token]


def _of_token(
    passes: Passes, cache: DynamicCache, resume: Tensor, token: int, of: Of
) -> RowGradient:
    handle, position = passes.handle, passes.position(token)
    rows, scores = (
        Rows(positions=(position,)),
        _Scores((SiteSelection("queries_keys", None, (position,)),)),
    )
    before = DynamicCache()
    for layer, kept in enumerate(cache.layers):
        # Keys and values are there: the cache was filled by a pass.
        before.update(kept.keys[:, :, :position], kept.values[:, :, :position], layer)  # type: ignore[index, union-attr]
    ids = torch.tensor([[passes.ids[position]]], device=handle.device)
    with passes.attached([rows, scores], gradients=True) as session:
        handle.family.resume(handle.model, resume)
        logits = handle.model(input_ids=ids, past_key_values=before, use_cache=True).logits[0, -1]
        seen = [session[rows][layer, position] for layer in range(handle.info.layers)]
        blocks = [block.values for block in session[rows].blocks]
        gradients = torch.autograd.grad(objective(logits, passes.answer[token], of), blocks)
    vision = passes.vision()

    def at_vision(parts: Sequence[Tensor]) -> Tensor:
        return torch.stack([one.detach().cpu()[..., vision.cpu()] for one in parts])

    return RowGradient(
        at_vision([one[0] for one in seen]),
        at_vision([one[0, :, 0] for one in gradients]),
        at_vision([session[scores][layer][0] for layer in range(handle.info.layers)]),
    )


@dataclass(frozen=True)
class _Scores(Probe):
    """Keeps q k^T * scale of one query: layer -> (H, K)."""

    reads: tuple[SiteSelection, ...]

    def see(self, site: str, layer: int, values: Any, positions: Sequence[int]) -> Tensor:
        query, key, scale = (part.detach() if isinstance(part, Tensor) else part for part in values)
        scores = torch.matmul(pack(query, key.shape[1]), key.transpose(2, 3))
        wide = torch.promote_types(scores.dtype, torch.float32)
        return scores.to(wide).reshape(query.shape[1], -1) * scale
