"""Regions of an image: SLIC superpixels of its patches (Achanta et al. 2012).

k-means of the patches by colour (CIELAB) and position, each centre only among nearby patches.
Vision tokens see patches, so a region is a set of patches.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from sinkscope.models.views import ImageGrid

COMPACT = 10.0  # weight of one step between centres, in units of colour difference
ROUNDS = 10


def regions(image: Image.Image, grid: ImageGrid, count: int) -> np.ndarray:
    """Which region each cell belongs to: int64 (rows * columns,), from 0 without gaps.

    Args:
        image: RGB.
        grid: of its maps.
        count: initial number of regions; some may end up empty.
    """
    rows, columns = grid.rows, grid.columns
    small = image.convert("RGB").resize((columns, rows), Image.Resampling.BOX)
    colour = lab(np.asarray(small, dtype=np.float64) / 255).reshape(-1, 3)
    y, x = np.divmod(np.arange(rows * columns), columns)
    step = max(1.0, np.sqrt(rows * columns / count))
    down = max(1, min(rows, round(rows / step)))
    across = max(1, min(columns, -(-count // down)))
    at_y = (np.arange(down) + 0.5) * rows / down - 0.5
    at_x = (np.arange(across) + 0.5) * columns / across - 0.5
    position = np.stack([y, x], axis=1).astype(np.float64)
    features = np.concatenate([colour, position * COMPACT / step], axis=1)
    starts = [round(a) * columns + round(b) for a in at_y for b in at_x]
    centres = features[np.clip(starts, 0, rows * columns - 1)]
    for _ in range(ROUNDS):
        apart = ((features[:, None] - centres[None]) ** 2).sum(-1)
        far = np.abs(features[:, None, 3:] - centres[None, :, 3:]).max(-1) > 2 * COMPACT
        nearest = np.where(far, np.inf, apart).argmin(1)
        nearest = np.where(far.all(1), apart.argmin(1), nearest)
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, features)
        sizes = np.bincount(nearest, minlength=len(centres))[:, None]
        new = np.where(sizes > 0, sums / np.maximum(sizes, 1), centres)
        if np.allclose(new, centres):
            break
        centres = new
    return np.unique(nearest, return_inverse=True)[1].reshape(-1)


def lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB (..., 3) from 0 to 1 -> CIELAB under D65."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    root = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
