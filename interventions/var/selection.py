"""Which (head, query row) pairs look at the image: the method's head selection.

The test needs only how much attention a row puts on a few groups of keys, so those masses are
computed once (`group_mass`) and every form of the method - dense, row by row, from log-sum-exps -
shares `image_centric`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sinkscope.config import VARSettings
from sinkscope.models import kernels

FEW_WEIGHTS = 1 << 22  # up to this many attention weights are multiplied with three masks at once
EPSILON = 1e-6  # added to each vision token's attention by the published code before it divides


@dataclass(frozen=True)
class Limits:
    """The settings that the arithmetic needs, as numbers, or as tensors (B, 1, 1) on the device.

    As tensors they may differ between batch rows and change between runs of a recorded graph.

    Attributes:
        freed: share of a sink's attention that is taken, 1 - keep.
        max_sink_share, least_target_share: head selection; the second is 1 - the first.
        min_image_mass: least attention on the image.
        official: dialect; True or False for all rows, or a bool tensor if they differ.
    """

    freed: float | Tensor
    max_sink_share: float | Tensor
    least_target_share: float | Tensor
    min_image_mass: float | Tensor
    official: bool | Tensor

    @staticmethod
    def of(settings: VARSettings) -> Limits:
        """The numbers of one setting."""
        return Limits(
            1 - settings.keep,
            settings.max_sink_share,
            1 - settings.max_sink_share,
            settings.min_image_mass,
            settings.dialect == "official",
        )

    def row(self, row: int) -> Limits:
        """Those of one batch row; tensors become (1, 1, 1)."""
        return Limits(
            *(
                value[row : row + 1] if isinstance(value, Tensor) else value
                for value in vars(self).values()
            )
        )


@dataclass(frozen=True)
class KeyGroups:
    """The groups of keys that the method distinguishes, as factors of attention rows.

    Made once per layer and used at every decode step.

    Attributes:
        masks: (B, 3, K) ones and zeros: the targets (vision tokens that are not sinks; they receive
            the freed attention), the sinks among the vision tokens, and all other sinks.
        sinks: (B, 1, 1, K) ones and zeros: all sinks.
        floor: (B, 1, 1), `EPSILON` times the number of vision tokens.
        has_visual_sink: (B, 1, 1) bool.
        has_sink: (B, 1, 1) bool.
        heads: (B, H, 1) bool, the heads that may change; None: all.
    """

    masks: Tensor
    sinks: Tensor
    floor: Tensor
    has_visual_sink: Tensor
    has_sink: Tensor
    heads: Tensor | None = None

    @staticmethod
    def of(
        sinks: Tensor, vision: Tensor, dtype: torch.dtype, heads: Tensor | None = None
    ) -> KeyGroups:
        """From (B, K) bool masks, in the dtype that the rows will have."""
        visual = sinks & vision
        return KeyGroups(
            torch.stack((vision ^ visual, visual, sinks ^ visual), dim=1).to(dtype),
            sinks[:, None, None].to(dtype),
            vision.sum(-1).to(dtype)[:, None, None] * EPSILON,
            visual.any(-1)[:, None, None],
            sinks.any(-1)[:, None, None],
            heads,
        )

    @property
    def targets(self) -> Tensor:
        """(B, 1, 1, K)."""
        return self.masks[:, 0, None, None]

    def first(self, keys: int, copied: bool = False) -> KeyGroups:
        """The groups among the first `keys` keys: views, or copies for a run with gradients.

        All layers share one storage, and tensors that autograd keeps must not be overwritten.
        """
        if copied:
            return self._each(torch.clone).first(keys)
        if keys == self.sinks.shape[-1]:
            return self
        return replace(self, masks=self.masks[..., :keys], sinks=self.sinks[..., :keys])

    def row(self, row: int) -> KeyGroups:
        """Those of one batch row."""
        return self._each(lambda value: value[row : row + 1])

    def _each(self, change: Callable[[Tensor], Tensor]) -> KeyGroups:
        changed = {name: change(value) for name, value in vars(self).items() if value is not None}
        return replace(self, **changed)


@dataclass(frozen=True)
class GroupMass:
    """Attention mass of each (head, query row) on groups of keys; each (B, H, Q), fractions of 1.

    Attributes:
        targets: vision tokens that are not sinks.
        visual_sinks: sinks among the vision tokens.
        text_sinks: all other sinks.
    """

    targets: Tensor
    visual_sinks: Tensor
    text_sinks: Tensor

    @property
    def vision(self) -> Tensor:
        """Mass on all vision tokens."""
        return self.targets + self.visual_sinks

    @property
    def sinks(self) -> Tensor:
        """Mass on all sinks, in the image and in the text."""
        return self.visual_sinks + self.text_sinks


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The working dtype: float64 stays float64, anything narrower becomes float32."""
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


def group_mass(weights: Tensor, groups: KeyGroups) -> GroupMass:
    """Attention mass per group of keys.

    Sums of products instead of a matrix product, which may be set to round its inputs (TF32); then
    rows would not keep their sum.

    Args:
        weights: (B, H, Q, K) attention probabilities, already in the working dtype.
        groups: the groups, in the same dtype.

    Returns:
        `GroupMass` of (B, H, Q) tensors in the dtype of `weights`.
    """
    # Each group is summed on its own: a difference of two nearly equal masses would lose its
    # digits.
    masks = groups.masks[:, None, None]  # (B, 1, 1, 3, K)
    few = weights.numel() <= FEW_WEIGHTS and not kernels.is_on_host(weights.device)
    if few or weights.shape[2] == 1:  # one product for all, as each launch counts
        masses = (weights[:, :, :, None] * masks).sum(-1)
        return GroupMass(*masses.unbind(-1))
    return GroupMass(*((weights * masks[..., group, :]).sum(-1) for group in range(3)))


def image_centric(mass: GroupMass, groups: KeyGroups, limits: Limits) -> Tensor:
    """Which (head, query row) pairs the method acts on (arXiv 2503.03321 and its published code).

    `official`: sum(S_v) / sum over V of (a + 1e-6) <= max_sink_share, if a layer has a visual sink.
    `paper`: sum(V without S_v) / sum(V) >= 1 - max_sink_share, if a layer has any sink.
    Both: sum(V) >= min_image_mass, in a head that may change.

    Args:
        mass: masses of the groups, each (B, H, Q).
        groups: the groups of keys that the masses are of.
        limits: thresholds and dialect.

    Returns:
        (B, H, Q) bool.
    """
    vision = mass.vision
    if limits.official is True:
        centric = _official(mass, vision, groups, limits)
    elif limits.official is False:
        centric = _paper(mass, vision, groups, limits)
    else:
        official = _official(mass, vision, groups, limits)
        centric = torch.where(limits.official, official, _paper(mass, vision, groups, limits))
    centric = centric & (vision >= limits.min_image_mass)
    return centric if groups.heads is None else centric & groups.heads


def _official(mass: GroupMass, vision: Tensor, groups: KeyGroups, limits: Limits) -> Tensor:
    share = mass.visual_sinks / (vision + groups.floor)
    return (share <= limits.max_sink_share) & groups.has_visual_sink


def _paper(mass: GroupMass, vision: Tensor, groups: KeyGroups, limits: Limits) -> Tensor:
    # A row that does not see the image at all is 0/0 here: NaN compares false, not selected.
    return (mass.targets / vision >= limits.least_target_share) & groups.has_sink


def select_rows(weights: Tensor, sinks: Tensor, vision: Tensor, settings: VARSettings) -> Tensor:
    """Select the (head, query row) pairs whose attention is image-centric.

    Every query row is judged, also those before the image's end, which `redistribute` then leaves
    unchanged (`first_query`). Batch rows are independent: each has its own sinks and its own vision
    tokens, which need not be contiguous (several images are one union).

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
    work = weights.to(working_dtype(weights.dtype))
    groups = KeyGroups.of(sinks, vision, work.dtype)
    return image_centric(group_mass(work, groups), groups, Limits.of(settings))
