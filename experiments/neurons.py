"""Neurons of an MLP by their share of the energy at the sink.

    f_ij = z_ij^2 / sum_j z_ij^2      the share of neuron j in the energy of z at sink token i

The top k are those of the largest mean share. They count as a set only if the median over samples
of their joint share reaches a threshold (0.55 by default): below it the energy is spread, and there
is no small set of neurons.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sinkscope.experiments.probes import AtTokens
from sinkscope.experiments.streaming import Vector
from sinkscope.experiments.study import Study

MOST = 16  # neurons that are tried by default,
ONE_OF = 32  # and at most one of this many: a larger part of them is not a small set,
ONE_OF_ALL = 16  # or one of this many if they hold nearly all of the energy:
NEARLY_ALL = 0.9  # so few random neurons hold it in at most 5 % of MLPs, even of only 32 neurons


class NoNeuronsError(ValueError):
    """No small set of neurons holds the energy."""


class Energy:
    """Shares of the energy at one group of tokens, summed up sample by sample."""

    def __init__(self) -> None:
        self._mean = Vector()

    def add(self, values: Tensor) -> None:
        """One sample's z (n, F), n 1 or more."""
        self._mean.add(shares(values))

    @property
    def mean(self) -> Tensor:
        """float64 (F,): mean share over tokens of all samples."""
        return self._mean.value()

    @property
    def order(self) -> Tensor:
        """int64 (F,): the neurons by their mean share, falling."""
        return self.mean.argsort(descending=True, stable=True)


class JointShares:
    """Joint shares of the first 1, 2, ... neurons of an order, in each sample: a few numbers per
    sample. The order must be known, so this needs a second pass.

    Args:
        order: int64 (F,), of `Energy`.
        count: of requested neurons; None: the fewest that reach a share, at most `MOST`
            and at most one of `ONE_OF`, or one of `ONE_OF_ALL` that hold `NEARLY_ALL`.
    """

    def __init__(self, order: Tensor, count: int | None) -> None:
        if count is None:
            most, self._few = (max(1, min(MOST, len(order) // n)) for n in (ONE_OF_ALL, ONE_OF))
        else:
            most = self._few = min(count, len(order))
        self._top = order[:most]
        self._first = 1 if count is None else most  # the smallest set that is tried
        self._held: list[Tensor] = []  # a sample: (sizes,)

    def add(self, values: Tensor) -> None:
        """One sample's z (n, F), n 1 or more."""
        held = shares(values)[:, self._top].mean(0).cumsum(0)
        self._held.append(held[self._first - 1 :].clone())

    def joint(self, size: int) -> float:
        """Median over samples of the joint share of the first `size` neurons."""
        return median(torch.stack([held[size - self._first] for held in self._held]))

    def enough(self, min_share: float) -> bool:
        """Whether a set that is tried holds enough. A larger set holds more in every sample, so
        only the largest need to be checked."""
        return any(self._reaches(size, min_share) for size in (self._few, len(self._top)))

    def _reaches(self, size: int, min_share: float) -> bool:
        needed = min_share if size <= self._few else max(min_share, NEARLY_ALL)
        return self.joint(size) >= needed

    def top(self, min_share: float, layer: int, what: str = "z") -> Tensor:
        """int64 (k,): the top neurons, falling.

        Args:
            min_share: least median over samples of their joint share.
            layer, what: for the text of the error.

        Raises:
            NoNeuronsError: they do not reach it.
        """
        for size in range(self._first, len(self._top) + 1):
            if self._reaches(size, min_share):
                return self._top[:size]
        raise NoNeuronsError(
            f"The top neurons are none: in layer {layer} the {self._few} strongest hold "
            f"{self.joint(self._few):.0%} of the energy of {what} at the sinks (median over "
            f"samples), and {min_share:.0%} are needed."
        )


def shares(values: Tensor) -> Tensor:
    """float64 (..., F): each one's share of the energy."""
    squares = values.double().square()
    return squares / squares.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)


def dims_for(values: Tensor, share: float) -> Tensor:
    """float64 (n,): how many of the largest dimensions hold a share of the energy, of (n, F)."""
    falling = shares(values).sort(dim=-1, descending=True).values.cumsum(-1)
    reached = falling >= share - 1e-12
    return reached.to(torch.int8).argmax(-1).double() + 1


def median(values: Tensor) -> float:
    """Median of (n,); for an even number the mean of the middle two (`torch.median` gives the lower
    one)."""
    return float(values.double().quantile(0.5))


def top_neurons(study: Study, layer: int, count: int | None, min_share: float) -> Tensor:
    """int64 (k,): the neurons of a layer that hold the sinks' energy, from two passes of each
    sample: their order by mean share, and the share of the first of them.

    Raises:
        NoNeuronsError: no small set does; the text says which layers have one.
    """
    energies = {number: Energy() for number in range(study.layers)}
    _each_layer(study, energies, "Looking for neurons")
    held = {number: JointShares(energy.order, count) for number, energy in energies.items()}
    _each_layer(study, held, "Measuring their share of the energy")
    try:
        return held[layer].top(min_share, layer)
    except NoNeuronsError as error:
        enough = [number for number, energy in held.items() if energy.enough(min_share)]
        listed = ", ".join(map(str, enough)) if enough else "none"
        raise NoNeuronsError(
            f"{error} Layers that have such a set: {listed}. Nothing in this layer's MLP can be "
            "taken away as the cause (verdict negative); min_share lowers the threshold."
        ) from None


def _each_layer(study: Study, into: Mapping[int, Energy | JointShares], text: str) -> None:
    """Pass z at the sinks, of each layer and sample, to its accumulator."""
    for case, inputs in study.prepared_cases(text):
        probe = AtTokens(("z",), case.groups[study.sink])
        session = study.forward_pass(case, inputs, [probe]).session
        for number, energy in into.items():
            energy.add(session[probe].layer("z", number))
