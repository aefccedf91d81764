"""New attention probabilities: the dense, readable form of the redistribution.

On a selected row every sink keeps `keep` of its attention; what is freed goes to the vision tokens
that are no sinks, in proportion to what they have. So three groups of keys are rescaled by three
factors of the row, which is also what lets `correction` do the same to a fused kernel's output.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from config import VARSettings
from redistribution.selection import (
    GroupMass,
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

    Returns:
        (B, H, Q, K), dtype and device of `weights`. The input is not written to.

    Raises:
        ValueError: a tensor has the wrong shape or dtype, or `first_query` is negative.
    """
    return redistribute_rows(weights, sinks, vision, settings, first_query).weights


def redistribute_rows(
    weights: Tensor,
    sinks: Tensor,
    vision: Tensor,
    settings: VARSettings,
    first_query: int | Tensor = 0,
) -> Redistribution:
    """`redistribute`, with the rows that changed and the mass that moved.

    Arguments and errors as there.
    """
    check_weights(weights)
    batch, _, queries, keys = weights.shape
    check_masks(sinks, vision, batch, keys)
    start = check_first_query(first_query, batch, weights.device)
    work = weights.to(working_dtype(weights.dtype))
    mass = group_mass(work, sinks, vision)
    after = torch.arange(queries, device=weights.device) >= start[:, None]  # (B, Q)
    selected = changed_rows(mass, image_centric(mass, sinks, vision, settings) & after[:, None, :])
    moved = freed_mass(mass, selected, settings)
    gain = moved / torch.where(selected, mass.targets, torch.ones_like(mass.targets))
    factor = torch.ones_like(work)
    # masked_fill and where are given a tensor of the working dtype: between two plain numbers,
    # where would return float32.
    factor = factor.masked_fill((selected[..., None]) & sinks[:, None, None, :], settings.keep)
    factor = torch.where((vision & ~sinks)[:, None, None, :], factor + gain[..., None], factor)
    # Rows that do not change are taken from the input: NaN rows of padding must stay what they
    # were, too.
    changed = torch.where(selected[..., None], (work * factor).to(weights.dtype), weights)
    return Redistribution(changed, selected, moved)


def changed_rows(mass: GroupMass, selected: Tensor) -> Tensor:
    """Rows that can take what is freed: (B, H, Q) bool.

    Below the smallest normal number the gain of a target would overflow; such a row's image
    attention is nothing.
    """
    return selected & (mass.targets >= torch.finfo(mass.targets.dtype).tiny)


def freed_mass(mass: GroupMass, selected: Tensor, settings: VARSettings) -> Tensor:
    """Attention mass taken from the sinks of each row: (B, H, Q), 0 where not selected."""
    return torch.where(selected, mass.sinks * (1 - settings.keep), torch.zeros_like(mass.sinks))


def check_first_query(first_query: int | Tensor, batch: int, device: torch.device) -> Tensor:
    """`first_query` as (B,) or (1,) whole numbers, or a ValueError that says what is allowed."""
    if isinstance(first_query, Tensor):
        if (
            first_query.ndim > 1
            or first_query.numel() not in (1, batch)
            or first_query.is_floating_point()
        ):
            raise ValueError(
                f"first_query has shape {tuple(first_query.shape)} and dtype {first_query.dtype}; "
                f"allowed: a whole number from 0 up, or ({batch},) of them."
            )
        return first_query.reshape(-1).to(device)
    if isinstance(first_query, bool) or not isinstance(first_query, int) or first_query < 0:
        raise ValueError(
            f"first_query is {first_query!r}; "
            f"allowed: a whole number from 0 up, or ({batch},) of them."
        )
    return torch.tensor([first_query], device=device)
