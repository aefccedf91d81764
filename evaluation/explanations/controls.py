"""Maps that do not depend on the run: baselines that every method has to beat."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from sinkscope.models.views import ImageGrid

RANDOM, CENTRE = "random", "centre_prior"
SPREAD = 0.25  # standard deviation of the centre prior, as a part of each side
CONTROLS = (RANDOM, CENTRE)


def control_map(name: str, grid: ImageGrid, target: str, seed: int) -> npt.NDArray[np.float32]:
    """float32 (rows, columns).

    - `random`: independent uniform values, drawn again for each target.
    - `centre_prior`: exp(-((x - 1/2)^2 + (y - 1/2)^2) / (2 SPREAD^2)) at the cells' centres, x and
      y as fractions of the image's sides: photos often have their objects in the middle, so this
      map scores well on many benchmarks.
    """
    if name == RANDOM:
        rng = np.random.default_rng(seed_of(target, seed))
        return rng.random((grid.rows, grid.columns), dtype=np.float32)
    if name != CENTRE:
        raise ValueError(f"control is {name!r}; allowed: {', '.join(CONTROLS)}.")
    y = (np.arange(grid.rows) + 0.5) / grid.rows - 0.5
    x = (np.arange(grid.columns) + 0.5) / grid.columns - 0.5
    gaussian = np.exp(-(x[None] ** 2 + y[:, None] ** 2) / (2 * SPREAD**2))
    return gaussian.astype(np.float32)


def seed_of(target: str, seed: int) -> int:
    """A seed derived from the target."""
    return int(hashlib.sha256(f"{seed} {target}".encode()).hexdigest()[:15], 16)
