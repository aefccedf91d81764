"""New attention probabilities: the dense, readable form of the redistribution.

On a selected row every sink keeps `keep` of its attention; what is freed goes to the vision tokens
that are no sinks, in proportion to what they have. So three groups of keys are rescaled by three
factors of the row, which is also what lets `correction` do the same to a fused kernel's output.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sinkscope.config import VARSettings
from sinkscope.interventions.var.selection import (
    GroupMass,
    KeyGroups,
    Limits,
    check_masks,
    check_weights,
    group_mass,
    image_centric,
    working_dtype,
)


@dataclass(frozen=True)
class Redistribution:
    """Attention rows after the method, and what it did to them.

    Attributes:
        weights: (B, H, Q, K), dtype of the input.
        selected: (B, H, Q) bool, rows that were changed.
        moved: (B, H, Q) attention mass taken from the sinks, 0 where not selected.
    """

    weights: Tensor
    selected: Tensor
    moved: Tensor


def redistribute(
    weights: Tensor,
    sinks: Tensor,
    vision: Tensor,
    settings: VARSettings,
    first_query: int | Tensor = 0,
    heads: Sequence[int] | None = None,
) -> Tensor:
    """Redistribute attention from sinks to the other vision tokens on the selected rows.

    A row stays as it is, to the last bit, when it is not selected (`select_rows`), lies before
    `first_query`, or has no attention on any vision token that is no sink (the published code
    divides 0 by 0 there). Rows keep their sum.

    Args:
        weights: (B, H, Q, K) attention probabilities. float16 and bfloat16 are computed in float32
            and rounded once.
        sinks: (B, K) bool, the layer's sinks, in the image and in the text.
        vision: (B, K) bool, the vision tokens.
        settings: `keep`, `max_sink_share`, `min_image_mass` and `dialect` are used.
        first_query: rows before it do not change; one number, or (B,) whole numbers, one a batch
            row. At prefill this is the position after the last image, at decode 0.
        heads: of this layer, those that may change; None: all. `settings.heads` names them for each
            layer, and which layer this is is not known here.

    Returns:
        (B, H, Q, K), dtype and device of `weights`. The input is not written to.

    Raises:
        ValueError: a tensor has the wrong shape or dtype, or `first_query` is negative.
    """
    check_weights(weights)
    batch, _, queries, keys = weights.shape
    check_masks(sinks, vision, batch, keys)
    start = check_first_query(first_query, batch, weights.device)
    after = torch.arange(queries, device=weights.device) >= start[:, None]  # (B, Q)
    allowed = None
    if heads is not None:
        allowed = torch.zeros(batch, weights.shape[1], 1, dtype=torch.bool, device=weights.device)
        allowed[:, list(heads)] = True
    groups = KeyGroups.of(sinks, vision, working_dtype(weights.dtype), allowed)
    return redistribute_rows(weights, groups, Limits.of(settings), after[:, None, :]).weights


def redistribute_rows(
    weights: Tensor, groups: KeyGroups, limits: Limits, may_change: Tensor | None = None
) -> Redistribution:
    """`redistribute` on groups that were made before, with what it did. The inner loop of a run.

    Args:
        weights: (B, H, Q, K) attention probabilities.
        groups: the groups of keys, in the working dtype of `weights`.
        limits: as in `redistribute`.
        may_change: bool, broadcast to (B, H, Q); rows where it is false stay. None: all may change.

    Returns:
        The new rows, which of them changed, and how much mass moved.
    """
    work = weights.to(working_dtype(weights.dtype))
    mass = group_mass(work, groups)
    selected = image_centric(mass, groups, limits)
    if may_change is not None:
        selected = selected & may_change
    done = budget(mass, selected, limits)
    gained = groups.targets * done.gain[..., None]
    change = torch.addcmul(gained, groups.sinks, done.loss[..., None], value=-1)
    # As a change of w by w x 0, a row that is not selected stays what it is to the last bit.
    new = torch.addcmul(work, work, change).to(weights.dtype)
    return Redistribution(new, done.selected, done.moved)


@dataclass(frozen=True)
class Budget:
    """What the sinks of each row give and the targets get; each (B, H, Q).

    Attributes:
        selected: bool, the rows that change.
        loss: share of each sink's attention that is taken, 0 in other rows.
        moved: the mass taken from all sinks, 0 in other rows.
        gain: relative gain of a target, 0 in other rows.
    """

    selected: Tensor
    loss: Tensor
    moved: Tensor
    gain: Tensor


def budget(mass: GroupMass, selected: Tensor, limits: Limits) -> Budget:
    """What the sinks of each row give and the targets get.

    A row whose targets have less than the smallest normal number cannot take anything (their gain
    would overflow) and drops out; that is also the row in which every vision token is a sink.

    Args:
        mass: masses of the groups, each (B, H, Q).
        selected: (B, H, Q) bool, the rows to change.
        limits: `freed` is used.
    """
    tiny = torch.finfo(mass.targets.dtype).tiny
    selected = selected & (mass.targets >= tiny)
    loss = selected * limits.freed
    if loss.dtype != mass.targets.dtype:  # a number makes float32 of a mask
        loss = selected.to(mass.targets.dtype) * limits.freed
    moved = mass.sinks * loss
    return Budget(selected, loss, moved, moved / mass.targets.clamp_min(tiny))


def check_first_query(first_query: int | Tensor, batch: int, device: torch.device) -> Tensor:
    """`first_query` as (B,) or (1,) whole numbers, or a ValueError that says what is allowed."""
    if isinstance(first_query, Tensor):
        if (
            first_query.ndim > 1
            or first_query.numel() not in (1, batch)
            or first_query.is_floating_point()
            or first_query.dtype == torch.bool
            or bool((first_query < 0).any())
        ):
            raise ValueError(
                f"first_query has shape {tuple(first_query.shape)} and dtype {first_query.dtype}; "
                f"allowed: a whole number from 0 up, or ({batch},) of them."
            )
        return first_query.reshape(-1).to(device)
    try:
        position = -1 if isinstance(first_query, bool) else operator.index(first_query)
    except TypeError:
        position = -1
    if position < 0:
        raise ValueError(
            f"first_query is {first_query!r}; "
            f"allowed: a whole number from 0 up, or ({batch},) of them."
        )
    return torch.tensor([position], device=device)
