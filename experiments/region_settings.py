"""How a region of the image is tested (`experiments.region`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sinkscope.setting import check, explained, setting

How = Literal["cut", "grey"]


@explained
@dataclass(frozen=True)
class RegionSettings:
    """How a region of the image is tested."""

    how: How = setting(
        "cut",
        "How the box is removed: cut (no attention of later text to it) or grey (its pixels).",
    )
    random_boxes: int = setting(
        64,
        "Other boxes of the same size to compare with; at most as many as there are positions.",
        low=1,
        high=10_000,
    )
    seed: int = setting(0, "Seed of the draw of the other boxes.", low=0, high=2**63 - 1)
    batch_tokens: int | None = setting(
        None,
        "Positions of all boxes of a forward pass together.",
        low=1,
        high=10**9,
        left_out="by the device",
        user_facing=False,
    )

    def __post_init__(self) -> None:
        check(self)
