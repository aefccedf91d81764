"""Insertion and deletion (RISE, BMVC 2018): how a word's probability depends on the cells in the
order of a map.

Cells are removed by cutting the attention of all later queries to their vision tokens, in every
layer (`interventions.edges`), from one shared pass over the image. With f_0 < ... < f_S the
fractions k / S of the image's cells, strongest first, and log p the sum over the word's tokens:

    deletion  = area over f of log p(without the strongest f) - log p(whole image)
    insertion = area over f of log p(with only the strongest f) - log p(whole image)

by the trapezoid rule, in nats. Lower is better for deletion, higher for insertion. Equal values are
ordered at random by the target's own seed, the same for every method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sinkscope.capture.prefix import forward_prefix
from sinkscope.evaluation.explanations.scores import filled
from sinkscope.experiments.answers import PromptAndAnswer
from sinkscope.experiments.region import BATCH_TOKENS
from sinkscope.experiments.region_passes import cut
from sinkscope.methods.masked import full_rows
from sinkscope.models.family import PromptInputs, PromptLayout
from sinkscope.models.loading import ModelHandle

MOST_ROWS = 64  # of one pass


@dataclass(frozen=True)
class Cells:
    """Some cells of an image's map, whose vision tokens are cut."""

    cells: tuple[int, ...]
    image: int = 0

    def positions(self, layout: PromptLayout) -> tuple[int, ...]:
        """Prompt positions of the vision tokens that see them."""
        grid = layout.grids[self.image]
        return tuple(grid.positions[token] for token in grid.tokens_of(self.cells))


@dataclass(frozen=True)
class Removal:
    """Areas of one map, in nats."""

    insertion: float
    deletion: float


def removals(
    handle: ModelHandle,
    inputs: PromptInputs,
    answer: Sequence[int],
    tokens: Sequence[int],
    maps: Mapping[str, npt.NDArray[Any]],
    steps: int,
    seed: int = 0,
) -> dict[str, Removal]:
    """Insertion and deletion of each map.

    Args:
        handle: the model; its lock is taken for each pass.
        inputs: the prompt.
        answer: token ids of the answer.
        tokens: indices of the word's tokens in it.
        maps: by name, (rows, columns) of the first image.
        steps: S.
        seed: of the order of equal values.
    """
    count = len(inputs.layout.grids[0].boxes())
    orders = {name: order_of(values, seed) for name, values in maps.items()}
    sizes = [round(count * k / steps) for k in range(steps + 1)]
    wanted: dict[frozenset[int], int] = {}
    for order in orders.values():
        for size in sizes:
            for removed in (order[:size], order[size:]):
                wanted.setdefault(frozenset(removed), len(wanted))
    logs = _log_probabilities(handle, inputs, answer[: max(tokens) + 1], tokens, list(wanted))
    whole = logs[wanted[frozenset()]]
    fractions = np.array(sizes) / count

    def area(removed: Sequence[frozenset[int]]) -> float:
        values = np.array([logs[wanted[cells]] - whole for cells in removed])
        return float(((values[1:] + values[:-1]) / 2 * np.diff(fractions)).sum())

    return {
        name: Removal(
            insertion=area([frozenset(order[size:]) for size in sizes]),
            deletion=area([frozenset(order[:size]) for size in sizes]),
        )
        for name, order in orders.items()
    }


def order_of(values: npt.NDArray[Any], seed: int) -> list[int]:
    """Cells from the largest value to the smallest, equal ones in a drawn order."""
    flat = filled(values)
    drawn = np.random.default_rng(seed).permutation(len(flat))
    return [int(cell) for cell in drawn[np.argsort(-flat[drawn], kind="stable")]]


def _log_probabilities(
    handle: ModelHandle,
    inputs: PromptInputs,
    answer: Sequence[int],
    tokens: Sequence[int],
    sets: Sequence[frozenset[int]],
) -> npt.NDArray[np.float64]:
    """float64 (sets,): sum of the tokens' log-probabilities without each set of cells."""
    asked = PromptAndAnswer(inputs, tuple(answer), ("",) * len(answer))
    with handle.lock:
        prefix = forward_prefix(handle, inputs, ())
    length = inputs.layout.length - inputs.layout.after_images + len(answer) - 1
    budget = BATCH_TOKENS.get(handle.device.type, BATCH_TOKENS["cuda"])
    rows = max(1, min(MOST_ROWS, budget // max(1, length), len(sets)))
    parts = []
    for low in range(0, len(sets), rows):
        some = [Cells(tuple(sorted(one))) for one in sets[low : low + rows]]
        least = max(len(some), full_rows(handle, rows))
        with handle.lock:
            parts.append(cut(handle, asked, some, least, prefix)[:, list(tokens)].sum(dim=1))
    return np.concatenate([part.double().numpy() for part in parts])
