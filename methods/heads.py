"""Heads that localise, and heads that feed on sinks: lists of (layer, head), and their JSON file.

A head localises if much of its row is on the image, in few connected spots (arXiv 2503.06287): of
the heads whose image mass is above the elbow of all heads' sorted masses, those whose map has the
lowest spatial entropy. It feeds on sinks if it attends to the image and sinks hold most of that
attention (arXiv 2503.03321).

Both are read from the rows of a run, or of several: a list from one token is an observation, one
from many runs is a statement about the model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from scipy import ndimage

from sinkscope.attention_processor import sink_share
from sinkscope.capture.trace import MEAN_HEAD, GenerationTrace
from sinkscope.models.family import PromptLayout
from sinkscope.models.info import ModelInfo
from sinkscope.outside import cut, read_json
from sinkscope.setting.checks import shown
from sinkscope.utils import write_atomically

Kind = Literal["localising", "feeds_on_sinks"]
FORMAT, VERSION = "sinkscope heads", 1
LEAST = 1e-3  # attention mass; less is not a spot
AROUND = np.ones((3, 3), dtype=int)  # cells that touch by a corner are one spot


@dataclass(frozen=True)
class HeadChoice:
    """One head.

    Attributes:
        layer, head: indices in the model.
        image_mass: share of its rows on the image, the mean over tokens.
        value: spatial entropy in nats (localising), or the sinks' share of the image mass.
    """

    layer: int
    head: int
    image_mass: float
    value: float


@dataclass(frozen=True)
class HeadList:
    """Chosen heads, best first.

    Attributes:
        kind: `localising` or `feeds_on_sinks`.
        model, revision: of which model (`ModelInfo`).
        chosen: the heads.
        said: how the list was made, in words.
    """

    kind: Kind
    model: str
    revision: str
    chosen: tuple[HeadChoice, ...]
    said: str = ""

    def heads_of(self, layer: int) -> tuple[int, ...]:
        """The heads of one layer, rising, as views and `GenerationSettings.heads` take them."""
        return tuple(sorted(one.head for one in self.chosen if one.layer == layer))

    def layer_heads(self) -> tuple[tuple[int, int], ...]:
        """(layer, head) of each, rising, as `VARSettings.heads` takes them."""
        return tuple(sorted((one.layer, one.head) for one in self.chosen))

    def check_model(self, info: ModelInfo) -> None:
        """Refuse another model than the list's: its heads have other indices.

        Raises:
            ValueError: naming both.
        """
        if self.revision != info.revision:
            raise ValueError(
                f"The list of heads is of {self.model} ({self.revision}), and {info.id} "
                f"({info.revision}) is loaded."
            )

    def save(self, path: Path | str) -> None:
        """Write it as JSON."""
        values = {"format": FORMAT, "version": VERSION, **asdict(self)}
        values["chosen"] = [asdict(one) for one in self.chosen]
        text = json.dumps(values, indent=1) + "\n"
        write_atomically(Path(path), lambda file: file.write(text.encode()))

    @staticmethod
    def open(path: Path | str) -> HeadList:
        """Read a list.

        Raises:
            ValueError: the file is missing, or is no such list; the text says what is wrong.
        """
        path = Path(path)
        values = read_json(path, "The list of heads")
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError(f"{path.name} is no list of heads (format is not {FORMAT!r}).")
        if values.get("version") != VERSION:
            raise ValueError(
                f"{path.name} has version {shown(values.get('version'))}; allowed: {VERSION}."
            )
        try:
            chosen = tuple(
                HeadChoice(
                    _index(one["layer"]),
                    _index(one["head"]),
                    float(one["image_mass"]),
                    float(one["value"]),
                )
                for one in values["chosen"]
            )
            kind = values["kind"]
            if kind not in get_args(Kind):
                raise ValueError(f"kind is {shown(kind)}; allowed: {', '.join(get_args(Kind))}")
            return HeadList(
                kind, str(values["model"]), str(values["revision"]), chosen, str(values["said"])
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path.name} is a damaged list of heads: {cut(str(error))}"
            ) from error


def localising_heads(
    runs: Sequence[GenerationTrace], count: int = 10, tokens: Sequence[int] | None = None
) -> HeadList:
    """The heads that localise best.

    Args:
        runs: of one model, with the same layers and heads kept.
        count: how many at most.
        tokens: of each run's answer; None: all.

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
    said = f"{len(runs)} runs, image mass above the elbow, lowest spatial entropy first"
    return HeadList("localising", first.model.id, first.model.revision, chosen, said)


def sink_heads(
    runs: Sequence[GenerationTrace],
    least_share: float = 0.5,
    least_mass: float = 0.2,
) -> HeadList:
    """The heads that attend to the image and there mostly to sinks, the greatest share first.

    Args:
        runs: of one model, whose sinks are known.
        least_share: the sinks' part of the image mass, at least.
        least_mass: share of the row on the image, at least.

    Raises:
        ValueError: as `localising_heads`, or runs whose sinks are not known.
    """
    first = _checked(runs)
    if not all(run.sinks for run in runs):
        raise ValueError("A run has no sinks: no sink dimensions are known for its model.")
    share = torch.stack([sink_share(run).mean(0) for run in runs]).mean(0).numpy()
    mass = np.mean([_rows(run, None).sum(-1).mean(0) for run in runs], axis=0)
    found = np.argwhere((share >= least_share) & (mass >= least_mass)).tolist()
    found.sort(key=lambda head: -share[tuple(head)])
    chosen = tuple(
        HeadChoice(first.layers[layer], first.heads[head], float(mass[layer, head]),
                   float(share[layer, head]))
        for layer, head in found
    )  # fmt: skip
    said = (
        f"{len(runs)} runs, sinks hold {least_share:g} of an image mass of {least_mass:g} or more"
    )
    return HeadList("feeds_on_sinks", first.model.id, first.model.revision, chosen, said)


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
        own = torch.from_numpy(values[layout.columns(image)].astype(np.float64))
        cells = np.nan_to_num(grid.on_cells(own).numpy())
        above = np.maximum(cells - 2 * cells.mean(), 0)
        labels, found = ndimage.label(above > LEAST, structure=AROUND)
        spots += np.atleast_1d(ndimage.sum(above, labels, range(1, found + 1))).tolist()
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
    made: np.ndarray = rows.float().numpy()
    return made


def _index(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"a layer or head is {shown(value)}; allowed: whole numbers from 0")
    return value
