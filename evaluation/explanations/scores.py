"""How well a map localises an object: scores of one map against one mask, both on the map's grid.

`truth` is bool, one value per cell: whether the cell is part of the object. `values` has a number
for each cell, or NaN if the method has none. Rules for every score and every method:

- A missing value counts as the smallest of the map's values: leaving cells out brings no advantage,
  and nothing is normalised over several maps or methods.
- Ties are shared: if several cells are the maximum, pointing counts the part of them that is
  inside; AUC counts a tie 1/2. So a constant map scores chance or less.
- No smoothing, and no threshold chosen using the truth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from sinkscope.methods.together import mean_ranks
from sinkscope.models.views import ImageGrid

Values = npt.NDArray[np.float64]
Truth = npt.NDArray[np.bool_]


def filled(values: npt.NDArray[Any]) -> Values:
    """float64, flat, without missing values.

    Raises:
        ValueError: a value is infinite.
    """
    flat = np.asarray(values, dtype=np.float64).reshape(-1)
    if np.isinf(flat).any():
        raise ValueError("A map has an infinite value, so it cannot be scored.")
    missing = np.isnan(flat)
    if missing.all():
        return np.zeros_like(flat)
    return np.where(missing, flat[~missing].min(), flat)


def pointing(values: npt.NDArray[Any], truth: Truth) -> float:
    """The pointing game (Zhang et al., ECCV 2016): 1 where the map's maximum is inside the object,
    0 where it is not; of several maxima, the part of them that is inside. By chance: the object's
    part of the cells."""
    flat = filled(values)
    return float(truth.reshape(-1)[flat == flat.max()].mean())


def energy_inside(values: npt.NDArray[Any], truth: Truth) -> float:
    """Energy-based pointing (Score-CAM, CVPR 2020 workshops): the fraction of the map's positive
    values inside. For a map without any: the object's fraction of the cells, which is chance."""
    flat, inside = np.maximum(filled(values), 0.0), truth.reshape(-1)
    total = flat.sum()
    return float(flat[inside].sum() / total) if total > 0 else float(inside.mean())


def nss(values: npt.NDArray[Any], truth: Truth) -> float:
    """Normalised scanpath saliency (Peters et al. 2005), with the object's cells in place of
    fixations: the mean over these of (M - mean) / standard deviation. 0 by chance, and for a
    constant map."""
    flat = filled(values)
    spread = flat.std()
    if spread <= 1e-12 * max(1e-300, np.abs(flat).max()):
        return 0.0
    return float(((flat[truth.reshape(-1)] - flat.mean()) / spread).mean())


def auc(values: npt.NDArray[Any], truth: Truth) -> float:
    """Area under the ROC curve: how often a cell inside has more than one outside, a tie counting
    1/2 (Mann and Whitney). 1/2 by chance; NaN if every cell is inside, or none is."""
    flat, inside = filled(values), truth.reshape(-1)
    positive = int(inside.sum())
    negative = len(flat) - positive
    if positive == 0 or negative == 0:
        return float("nan")
    ranks = mean_ranks(flat)[inside].sum()
    return float((ranks - positive * (positive + 1) / 2) / (positive * negative))


def object_iou(values: npt.NDArray[Any], truth: Truth) -> float:
    """Obj-IoU (TAM): intersection over union of the object and the cells above Otsu's threshold,
    which depends only on the map. 0 for a constant map: it selects nothing."""
    flat, inside = filled(values), truth.reshape(-1)
    chosen = flat > otsu(flat)
    union = (chosen | inside).sum()
    return float((chosen & inside).sum() / union) if union else 0.0


def otsu(values: Values) -> float:
    """Otsu's threshold (IEEE SMC 1979) over the values as they are, without bins: the cut between
    two neighbours in order that leaves the largest variance between "at most" and "above". If all
    are equal, that value."""
    kinds, counts = np.unique(values, return_counts=True)
    if len(kinds) == 1:
        return float(kinds[0])
    scaled = (kinds - kinds[0]) / (kinds[-1] - kinds[0])
    low = np.cumsum(counts)[:-1].astype(np.float64)
    high = counts.sum() - low
    total = (scaled * counts).sum()
    below = np.cumsum(scaled * counts)[:-1]
    between = low * high * (below / low - (total - below) / high) ** 2
    return float(kinds[int(between.argmax())])


SCORES: dict[str, Callable[[npt.NDArray[Any], Truth], float]] = {
    "pointing": pointing,
    "energy": energy_inside,
    "nss": nss,
    "auc": auc,
    "obj_iou": object_iou,
}


def scored(values: npt.NDArray[Any], truth: Truth) -> dict[str, float]:
    """All of `SCORES`."""
    return {name: score(values, truth) for name, score in SCORES.items()}


def mask_on_cells(mask: npt.NDArray[np.bool_], grid: ImageGrid) -> Truth:
    """Which cells of an image's map are part of an object: those of which it covers at least half
    as much as of the cell that it covers most. For a large object these are the cells that it
    covers by half; a small object across several cells is in all of them.

    Args:
        mask: bool (height, width) of the ORIGINAL image.

    Returns:
        bool (rows, columns).

    Raises:
        ValueError: the mask is of another size than the image, or empty.
    """
    if mask.shape != grid.original:
        raise ValueError(
            f"The mask is {mask.shape[1]} x {mask.shape[0]} pixels and its image "
            f"{grid.original[1]} x {grid.original[0]}; allowed: a mask of the image's size."
        )
    if not mask.any():
        raise ValueError("The mask is empty: no pixel of it is set.")
    # The integral image, read between pixels, is exact for cells whose edges are not whole pixels.
    table = np.pad(mask.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    boxes = grid.boxes()

    def at(x: Values, y: Values) -> Values:
        x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
        x0, y0 = np.minimum(x0, mask.shape[1] - 1), np.minimum(y0, mask.shape[0] - 1)
        fx, fy = x - x0, y - y0
        top = table[y0, x0] * (1 - fx) + table[y0, x0 + 1] * fx
        bottom = table[y0 + 1, x0] * (1 - fx) + table[y0 + 1, x0 + 1] * fx
        return np.asarray(top * (1 - fy) + bottom * fy)

    x0, y0, x1, y1 = boxes.T
    covered = (at(x1, y1) - at(x0, y1) - at(x1, y0) + at(x0, y0)) / ((x1 - x0) * (y1 - y0))
    inside: np.ndarray = covered >= covered.max() / 2 - 1e-9
    return inside.reshape(grid.rows, grid.columns)
