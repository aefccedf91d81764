"""The cost of the vision tower's attention, which grows with the square of an image's patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sinkscope.models.views import ImageGrid


def vision_attention(config: Any, grids: Sequence[ImageGrid]) -> tuple[int, int]:
    """Blocks of the vision tower, and the multiplications of their attention over these images.

    In some blocks a patch sees all patches of its image, in the others those of its window. A
    config that says nothing of a vision tower gives none.

    Args:
        config: of the whole model (transformers).
        grids: the images.
    """
    vision = getattr(config, "vision_config", None)
    blocks = int(getattr(vision, "depth", 0) or 0)
    width = int(getattr(vision, "hidden_size", 0) or 0)
    full = getattr(vision, "fullatt_block_indexes", None)
    window = int(getattr(vision, "window_size", 0) or 0) // int(getattr(vision, "patch_size", 1))
    whole = blocks if full is None else min(len(full), blocks)
    seen = 0
    for view in (view for grid in grids for view in grid.views):
        patches = view.rows * view.columns * view.merge**2
        windowed = (blocks - whole) * patches * min(window**2, patches)
        seen += view.frames * (whole * patches**2 + windowed)
    return blocks, 2 * width * seen
