"""Which (head, query row) pairs look at the image: the method's head selection.

The test needs only how much attention a row puts on a few groups of keys, so those masses are
computed once (`group_mass`) and every form of the method - dense, row by row, from log-sum-exps -
shares `image_centric`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from config import VARSettings

EPSILON = 1e-6  # added to each vision token's attention by the published code before it divides


@dataclass(frozen=True)
class GroupMass:
    """Attention mass of each (head, query row) on groups of keys; each (B, H, Q), fractions of 1.

    Attributes:
        vision: all vision tokens.
        visual_sinks: sinks among the vision tokens.
        targets: vision tokens that are no sinks; they receive what is freed.
        sinks: all sinks, in the image and in the text.
    """

    vision: Tensor
    visual_sinks: Tensor
    targets: Tensor
    sinks: Tensor


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the method computes in: float64 stays float64, anything narrower becomes float32."""
    return torch.promote_types(dtype, torch.float32)


def check_masks(sinks: Tensor, vision: Tensor, batch: int, keys: int) -> None:
    """Refuse masks that are not (batch, keys) bool."""
    for name, mask in (("sinks", sinks), ("vision", vision)):
        if mask.dtype != torch.bool:
            raise ValueError(f"{name} has dtype {mask.dtype}; allowed: torch.bool.")
        if tuple(mask.shape) != (batch, keys):
            raise ValueError(
                f"{name} has shape {tuple(mask.shape)}; allowed: (batch, keys) = {(batch, keys)}."
            )


def check_weights(weights: Tensor) -> None:
    """Refuse attention probabilities that are not a floating (batch, heads, queries, keys)."""
    if weights.ndim != 4 or not weights.is_floating_point():
        raise ValueError(
            f"weights has shape {tuple(weights.shape)} and dtype {weights.dtype}; "
            "allowed: a floating tensor (batch, heads, queries, keys)."
        )


def group_mass(weights: Tensor, sinks: Tensor, vision: Tensor) -> GroupMass:
    """Attention mass per group of keys.

    Args:
        weights: (B, H, Q, K) attention probabilities, already in the working dtype.
        sinks: (B, K) bool.
        vision: (B, K) bool.

    Returns:
        `GroupMass` of (B, H, Q) tensors in the dtype of `weights`.
    """

    def mass(keys: Tensor) -> Tensor:
        return (weights * keys[:, None, None, :].to(weights.dtype)).sum(-1)

    # `targets` is summed on its own: as a difference of two nearly equal masses it would lose its
    # digits.
    return GroupMass(mass(vision), mass(vision & sinks), mass(vision & ~sinks), mass(sinks))


def image_centric(mass: GroupMass, sinks: Tensor, vision: Tensor, settings: VARSettings) -> Tensor:
    """Which (head, query row) pairs the method acts on (arXiv 2503.03321 and its published code).

    `official`: sum(S_v) / sum over V of (a + 1e-6) <= max_sink_share, in layers that have a visual
    sink.
    `paper`: sum(V without S_v) / sum(V) >= 1 - max_sink_share, in layers that have any sink.
    Both: sum(V) >= min_image_mass.

    Args:
        mass: masses of the groups, each (B, H, Q).
        sinks: (B, K) bool.
        vision: (B, K) bool.
        settings: thresholds and dialect.

    Returns:
        (B, H, Q) bool.
    """
    if settings.dialect == "official":
        floor = EPSILON * vision.sum(-1).to(mass.vision.dtype)  # (B,)
        centric = (
            mass.visual_sinks / (mass.vision + floor[:, None, None]) <= settings.max_sink_share
        )
        acts = (sinks & vision).any(-1)
    else:
        # A row that does not see the image at all is 0/0 here; NaN compares false, so it is not
        # selected.
        centric = mass.targets / mass.vision >= 1 - settings.max_sink_share
        acts = sinks.any(-1)
    return centric & (mass.vision >= settings.min_image_mass) & acts[:, None, None]


def select_rows(weights: Tensor, sinks: Tensor, vision: Tensor, settings: VARSettings) -> Tensor:
    """Select the (head, query row) pairs whose attention is image-centric.

    Every query row is judged, also those before the image's end, which `redistribute` then leaves
    alone by its `first_query`. Batch rows are independent: each has its own sinks and its own
    vision tokens, which need not be contiguous (several images are one union).

    Args:
        weights: (B, H, Q, K) attention probabilities, any floating dtype; float16 and bfloat16 are
            judged in float32.
        sinks: (B, K) bool, the layer's sinks, in the image and in the text.
        vision: (B, K) bool, the vision tokens.
        settings: `max_sink_share`, `min_image_mass` and `dialect` are used.

    Returns:
        (B, H, Q) bool.

    Raises:
        ValueError: a tensor has the wrong shape or dtype.
    """
    check_weights(weights)
    check_masks(sinks, vision, weights.shape[0], weights.shape[3])
    mass = group_mass(weights.to(working_dtype(weights.dtype)), sinks, vision)
    return image_centric(mass, sinks, vision, settings)
