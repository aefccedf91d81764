"""Where a running model can be read and changed: sites, named by role.

A site is a role in a decoder layer (`block_in`, `z`, ...). The family says which module has it
(`models.stack.TextStack.point`); nothing above `models` knows a module path. One layer, in order:

    block_in     residual stream at the layer's input                       (B, N, D)
    q, k, v      projections, by head, BEFORE rotary embedding              (B, N, H or Hkv, Dh)
    attn_out     attention output, after the output projection              (B, N, D)
    mlp_norm_in  what the MLP's norm is given: block_in + attn_out, or      (B, N, D)
                 block_in where attention and MLP are parallel (GPT-NeoX)
    mlp_in       the MLP's input, after its norm                            (B, N, D)
    gate, up     projections of the MLP, before the activation              (B, N, F)
    z            input of the down projection: act(gate) * up, or act(fc)   (B, N, F)
    mlp_out      MLP output                                                 (B, N, D)
    block_out    residual stream at the layer's output                      (B, N, D)

A family whose MLP has no gate (GPT-2, GPT-NeoX) has no `gate` and `up`. Asking for a site that a
model does not have is an error that lists those it has.

A change at `block_in` or `block_out` changes the residual stream. A change at `mlp_norm_in` or
`mlp_in` affects only the MLP's input and leaves the residual stream unchanged; attention's
contribution to the stream is changed at `attn_out`.

q and k are taken before rotary embedding (and after the norms of queries and keys, where a family
has them: Qwen3) because a change made there reaches the key cache, so that
later tokens see it as well; their norms are the same before and after. The rotated queries and keys
that attention multiplies are the read-only site `queries_keys`.

Four more sites can be read and not edited. Attention rows are changed by
`interventions.base.ActiveIntervention.rows` instead.

    rows          softmax weights of the wanted queries, after all changes: float32 (B, H, R, K)
    queries_keys  `QueriesKeys`: rotated queries of a pass, rotated keys of all positions so far
    logits        raw logits of the last n positions of a pass (B, n, vocabulary)
    text_inputs   the keyword arguments that the text model is called with
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

ModuleSite = Literal[
    "block_in",
    "q",
    "k",
    "v",
    "attn_out",
    "mlp_norm_in",
    "mlp_in",
    "gate",
    "up",
    "z",
    "mlp_out",
    "block_out",
]
Site = Literal[ModuleSite, "rows", "queries_keys", "logits", "text_inputs"]
MODULE_SITES: tuple[str, ...] = get_args(ModuleSite)
SITES: tuple[str, ...] = get_args(Site)
WHOLE_MODEL = ("logits", "text_inputs")  # sites of the model, not of a layer
NO_END = 1 << 62  # a position that no run reaches: the end of an open range
NO_LAYER = -1  # the layer that `see` gets for these

Positions = range | tuple[int, ...] | None


@dataclass(frozen=True)
class SiteSelection:
    """A site in some layers at some token positions.

    Attributes:
        site: one of `SITES`.
        layers: indices of decoder layers; None: all. Not used by the sites of the whole model.
        positions: token positions, counted from the first prompt token (in a batch of prompts from
            the first of the longest, padding included) and on into the answer; None: all. A range
            of step 1, or a rising tuple.

    Raises:
        ValueError: an unknown site, or positions that are not rising whole numbers from 0.
    """

    site: Site
    layers: tuple[int, ...] | None = None
    positions: Positions = None

    def __post_init__(self) -> None:
        if self.site not in SITES:
            raise ValueError(f"site is {self.site!r}; allowed: {', '.join(SITES)}.")
        given = self.positions
        if given is None:
            return
        if isinstance(given, range):
            good = given.step == 1 and given.start >= 0
        else:
            good = all(a < b for a, b in zip((-1, *given), given, strict=False))
        if not good:
            raise ValueError(
                f"positions is {given!r}; allowed: a range of step 1, or rising whole numbers "
                "from 0."
            )

    def positions_in(self, start: int, length: int) -> range | tuple[int, ...]:
        """The requested positions among start .. start + length - 1; may be empty."""
        stop = start + length
        given = self.positions
        if given is None:
            return range(start, stop)
        if isinstance(given, range):
            return range(max(start, given.start), max(start, min(stop, given.stop)))
        return tuple(position for position in given if start <= position < stop)


class QueriesKeys(NamedTuple):
    """What attention multiplies in one layer and pass.

    Attributes:
        query: (B, H, R, Dh), rotated, of the wanted positions.
        key: (B, Hkv, K, Dh), rotated, of all positions so far.
        scale: factor on their products.
    """

    query: Tensor
    key: Tensor
    scale: float


@dataclass(frozen=True)
class Fused:
    """One of the outputs that a projection computes together.

    Attributes:
        part: which of them.
        parts: how many there are.
        by_head: the last axis is (heads, parts, Dh), as in GPT-NeoX; else (parts, heads, Dh), as in
            GPT-2.
    """

    part: int
    parts: int
    by_head: bool


@dataclass(frozen=True)
class HookPoint:
    """A module's input or output.

    Attributes:
        module: what is hooked.
        side: `input`: its first argument; `output`: what it returns, or the first part of it.
        heads: how many heads the last axis is to be split into; None: it is not split.
        fused: which part of it is meant, where the module computes several.
    """

    module: nn.Module
    side: Literal["input", "output"]
    heads: int | None = None
    fused: Fused | None = None

    def values(self, given: Tensor) -> Tensor:
        """The site's values in the module's tensor (B, N, ...): a view of it, by head."""
        if self.heads is None:
            return given
        if self.fused is None:
            return given.view(*given.shape[:-1], self.heads, -1)
        parts, part = self.fused.parts, self.fused.part
        if self.fused.by_head:
            return given.view(*given.shape[:-1], self.heads, parts, -1)[..., part, :]
        return given.view(*given.shape[:-1], parts, self.heads, -1)[..., part, :, :]

    def replaced(self, given: Tensor, values: Tensor) -> Tensor:
        """The module's tensor with these values at the site; a new tensor."""
        if self.heads is None:
            return values
        if self.fused is None:
            return values.flatten(-2)
        parts, by_head = self.fused.parts, self.fused.by_head
        shape = (self.heads, parts) if by_head else (parts, self.heads)
        axis = -2 if by_head else -3
        pieces = list(given.view(*given.shape[:-1], *shape, -1).unbind(axis))
        pieces[self.fused.part] = values
        return torch.stack(pieces, axis).flatten(-3)


def take(values: Tensor, positions: Sequence[int], start: int) -> Tensor:
    """The positions' part of values (B, N, ...) whose first position is `start`: a view if they are
    contiguous, `values` itself if they are all of it."""
    if isinstance(positions, range):
        if len(positions) == values.shape[1]:
            return values
        return values[:, positions.start - start : positions.stop - start]
    index = torch.tensor([p - start for p in positions], device=values.device)
    return values.index_select(1, index)


def put(values: Tensor, positions: Sequence[int], start: int, part: Tensor) -> Tensor:
    """`values` with `part` at the positions; a new tensor, so that gradients pass through."""
    if len(positions) == values.shape[1]:
        return part
    if isinstance(positions, range):
        low, high = positions.start - start, positions.stop - start
        return torch.cat([values[:, :low], part, values[:, high:]], dim=1)
    index = torch.tensor([p - start for p in positions], device=values.device)
    return values.index_copy(1, index, part)
