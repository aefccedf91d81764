"""Heads that localise, and heads that feed on sinks: lists of (layer, head) (`methods.head_list`).

A head localises if much of its row is on the image, in few connected spots (arXiv 2503.06287): of
the heads whose image mass is above the elbow of all heads' sorted masses, those whose map has the
lowest spatial entropy. It feeds on sinks if it attends to the image and sinks hold most of that
attention (arXiv 2503.03321).

Both are read from the rows of a run, or of several: a list from one token is an observation, one
from many runs is a statement about the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage

from sinkscope.attention_processor import sink_share
from sinkscope.capture.trace import MEAN_HEAD, GenerationTrace
from sinkscope.methods.head_list import NAMES, HeadChoice, HeadList
from sinkscope.models.family import PromptLayout
from sinkscope.utils import number_of

__all__ = ["HeadChoice", "HeadList", "localising_heads", "sink_heads"]

LEAST = 1e-3  # attention mass; less is not a spot
AROUND = np.ones((3, 3), dtype=int)  # cells that touch at a corner belong to the same spot


def localising_heads(
    runs: Sequence[GenerationTrace], count: int = 10, tokens: Sequence[int] | None = None
) -> HeadList:
    """The heads that localise best.

    Args:
        runs: of one model, with the same layers and heads kept.
        count: the maximal number of heads.
        tokens: tokens of each run's answer; None: all.

    Raises:
        ValueError: runs without an image, of several models, or without single heads.
    """
    first = _checked(runs)
    rows = [_rows(run, tokens) for run in runs]
    mass = np.mean([one.sum(-1).mean(0) for one in rows], axis=0)  # (L, H)
    entropy = np.mean(
        [
            np.stack([[spatial_entropy(h, run.layout) for h in layer] for layer in one.mean(0)])
            for run, one in zip(runs, rows, strict=True)
        ],
        axis=0,
    )
    order = best_heads(mass, entropy, count)
    chosen = tuple(
        HeadChoice(
            first.layers[layer], first.heads[head], float(mass[layer, head]), entropy[layer, head]
        )
        for layer, head in order
    )
    many = number_of(len(runs), "run")
    description = f"{many}, image mass above the elbow, lowest spatial entropy first"
    return HeadList("localising", first.model.id, first.model.revision, chosen, description)


def sink_heads(
    runs: Sequence[GenerationTrace],
    least_share: float = 0.5,
    least_mass: float = 0.2,
) -> HeadList:
    """The heads that attend to the image, mostly to its sinks; the largest share first.

    Args:
        runs: of one model, whose sinks are known.
        least_share: the least part of the image mass on sinks.
        least_mass: the least share of the row on the image.

    Raises:
        ValueError: as `localising_heads`, or runs whose sinks are not known.
    """
    first = _checked(runs)
    if not all(run.sinks for run in runs):
        raise ValueError("A run has no sinks: no sink dimensions are known for its model.")
    share = torch.stack([sink_share(run).mean(0) for run in runs]).mean(0).numpy()
    mass = np.mean([_rows(run, None).sum(-1).mean(0) for run in runs], axis=0)
    pairs = np.argwhere((share >= least_share) & (mass >= least_mass)).tolist()
    pairs.sort(key=lambda head: -share[tuple(head)])
    chosen = tuple(
        HeadChoice(first.layers[layer], first.heads[head], float(mass[layer, head]),
                   float(share[layer, head]))
        for layer, head in pairs
    )  # fmt: skip
    description = (
        f"{number_of(len(runs), 'run')}, sinks hold {least_share:g} of an image mass of "
        f"{least_mass:g} or more"
    )
    return HeadList("feeds_on_sinks", first.model.id, first.model.revision, chosen, description)


def found_heads(run: GenerationTrace, name: str) -> HeadList:
    """The list of one run by its name for users, with at least one head.

    Args:
        run: the run; all its tokens are used.
        name: `localising` or `sinks` (`methods.head_list.NAMES`).

    Raises:
        ValueError: no head of the run does that, or it is not known; or an unknown name.
    """
    if name not in NAMES:
        raise ValueError(f"heads is {name!r}; allowed: {', '.join(NAMES)}.")
    head_list = localising_heads([run]) if name == "localising" else sink_heads([run])
    if head_list.chosen:
        return head_list
    if name == "localising":
        raise ValueError("No head of this run localises: none has a spot that stands out.")
    most = float(sink_share(run).mean(0).max())
    raise ValueError(
        f"No head of this run feeds on sinks: they hold at most {most:.0%} of what a head sees of "
        "the image, and half is asked of one that sees enough of it."
    )


def best_heads(mass: np.ndarray, entropy: np.ndarray, count: int) -> list[tuple[int, int]]:
    """(layer slot, head slot) of the heads above the elbow of the masses, the lowest spatial
    entropy first; fewer than `count` if fewer have a spot.

    Args:
        mass, entropy: (L, H).
    """
    kept = (mass >= elbow(mass.ravel())) & np.isfinite(entropy)
    places = [(int(layer), int(head)) for layer, head in np.argwhere(kept)]
    places.sort(key=lambda head: (entropy[head], -mass[head]))
    return places[:count]


def elbow(values: np.ndarray) -> float:
    """The value at the elbow of sorted values: where they are farthest from the chord between the
    least and the greatest. The published code compares with its INDEX, which keeps all heads."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    rise = ordered[-1] - ordered[0]
    if len(ordered) < 3 or rise == 0:
        return float(ordered[0])
    across = np.arange(len(ordered)) / (len(ordered) - 1)
    below = across - (ordered - ordered[0]) / rise  # distance from the chord, up to a factor
    return float(ordered[int(np.argmax(np.abs(below)))])


def spatial_entropy(values: np.ndarray, layout: PromptLayout) -> float:
    """Entropy in nats of the mass over connected spots; infinite without a spot.

        b = relu(A - 2 mean(A)),  spots: 8-connected cells with b > 0.001
        H = - sum over spots of P log P,   P = b in the spot / b in all spots

    Args:
        values: (V,), one row; each image has its own mean and its own spots.
    """
    spots: list[float] = []
    for image, grid in enumerate(layout.grids):
        image_values = torch.from_numpy(values[layout.columns(image)].astype(np.float64))
        cells = np.nan_to_num(grid.on_cells(image_values).numpy())
        above = np.maximum(cells - 2 * cells.mean(), 0)
        labels, components = ndimage.label(above > LEAST, structure=AROUND)
        spots += np.atleast_1d(ndimage.sum(above, labels, range(1, components + 1))).tolist()
    total = sum(spots)
    if total <= 0:
        return math.inf
    return -sum(spot / total * math.log(spot / total) for spot in spots)


def has_heads(run: GenerationTrace) -> bool:
    """Whether a run kept single heads, and not only their mean."""
    return tuple(run.heads) != (MEAN_HEAD,)


def _checked(runs: Sequence[GenerationTrace]) -> GenerationTrace:
    if not runs:
        raise ValueError("runs is empty; give at least one.")
    first = runs[0]
    for run in runs:
        if not run.layout.grids or not run.tokens:
            raise ValueError(
                "A run has no image or no answer; heads are chosen by where they look."
            )
        if not has_heads(run):
            raise ValueError("A run kept only the mean over heads (reduce_heads).")
        if (run.model.revision, run.layers, run.heads) != (
            first.model.revision,
            first.layers,
            first.heads,
        ):
            raise ValueError("The runs are of several models, or kept other layers or heads.")
    return first


def _rows(run: GenerationTrace, tokens: Sequence[int] | None) -> np.ndarray:
    """float32 (T, L, H, V)."""
    rows = run.attention if tokens is None else run.attention[list(tokens)]
    values: np.ndarray = rows.float().numpy()
    return values
