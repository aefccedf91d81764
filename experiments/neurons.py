"""Neurons of an MLP by their share of the energy at the sink.

    f_ij = z_ij^2 / sum_j z_ij^2      the share of neuron j in the energy of z at sink token i

The top k are those of the largest mean share. They are a set only where the median over samples of
their joint share reaches a threshold (0.55 by default): below it the energy is spread, and there is
no small set of neurons to speak of.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sinkscope.experiments.probes import AtTokens
from sinkscope.experiments.study import Study

MOST = 16  # neurons that are tried where nobody says how many,
ONE_OF = 32  # and never more than one of so many: a larger part of them is no small set


class NoNeuronsError(ValueError):
    """No small set of neurons holds the energy."""


@dataclass
class Energy:
    """Shares of the energy at one group of tokens, summed up sample by sample."""

    _shares: list[Tensor] = field(default_factory=list)
    _counts: list[int] = field(default_factory=list)

    def add(self, values: Tensor) -> None:
        """One sample's z (n, F), n 1 or more."""
        self._shares.append(shares(values).mean(0))
        self._counts.append(len(values))

    @property
    def mean(self) -> Tensor:
        """float64 (F,): mean share over tokens of all samples."""
        weights = torch.tensor(self._counts, dtype=torch.float64)
        return (torch.stack(self._shares) * weights[:, None]).sum(0) / weights.sum()

    def joint(self, dims: Tensor) -> Tensor:
        """float64 (S,): joint share of some neurons in each sample."""
        return torch.stack([own[dims].sum() for own in self._shares])

    def top(self, count: int | None, min_share: float, layer: int, what: str = "z") -> Tensor:
        """int64 (k,): the top neurons, falling.

        Args:
            count: how many; None: the fewest that reach `min_share`, at most `MOST` and at most one
                of `ONE_OF`.
            min_share: least median over samples of their joint share.
            layer, what: for the text of the error.

        Raises:
            NoNeuronsError: they do not reach it.
        """
        order = self.mean.argsort(descending=True, stable=True)
        most = max(1, min(MOST, len(order) // ONE_OF))
        tried = range(1, most + 1) if count is None else (min(count, len(order)),)
        held = 0.0
        for size in tried:
            held = float(self.joint(order[:size]).median())
            if held >= min_share:
                return order[:size]
        raise NoNeuronsError(
            f"The top neurons are none: in layer {layer} the {tried[-1]} strongest hold "
            f"{held:.0%} of the energy of {what} at the sinks (median over samples), and "
            f"{min_share:.0%} are needed."
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


def top_neurons(study: Study, layer: int, count: int | None, min_share: float) -> Tensor:
    """int64 (k,): the neurons of a layer that hold the sinks' energy, from a pass of each sample.

    Raises:
        NoNeuronsError: no small set does; the text says which layers have one.
    """
    energies = {number: Energy() for number in range(study.layers)}
    for case, inputs in study.each("Looking for neurons"):
        probe = AtTokens(("z",), case.groups[study.sink])
        session = study.passed(case, inputs, [probe]).session
        for number, energy in energies.items():
            energy.add(session[probe].layer("z", number))
    try:
        return energies[layer].top(count, min_share, layer)
    except NoNeuronsError as error:
        there = [n for n in energies if _has(energies[n], count, min_share, n)]
        listed = ", ".join(map(str, there)) if there else "none"
        raise NoNeuronsError(
            f"{error} Layers that have such a set: {listed}. Nothing in this layer's MLP can be "
            "taken away as the cause (verdict negative); min_share lowers the threshold."
        ) from None


def _has(energy: Energy, count: int | None, min_share: float, layer: int) -> bool:
    try:
        energy.top(count, min_share, layer)
    except NoNeuronsError:
        return False
    return True
