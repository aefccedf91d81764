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
    """Shares of the energy at one group of tokens, summed up sample by sample.

    Attributes:
        keep: also keep the mean shares of each sample (F numbers), which `joint` and `top` need.
    """

    keep: bool = True
    _total: Tensor | None = None
    _count: int = 0
    _samples: list[Tensor] = field(default_factory=list)

    def add(self, values: Tensor) -> None:
        """One sample's z (n, F), n 1 or more."""
        own = shares(values)
        total = own.sum(0)
        self._total = total if self._total is None else self._total + total
        self._count += len(values)
        if self.keep:
            self._samples.append(own.mean(0))

    @property
    def mean(self) -> Tensor:
        """float64 (F,): mean share over tokens of all samples."""
        assert self._total is not None, "nothing was added"
        return self._total / self._count

    @property
    def order(self) -> Tensor:
        """int64 (F,): the neurons by their mean share, falling."""
        return self.mean.argsort(descending=True, stable=True)

    def joint(self, dims: Tensor) -> Tensor:
        """float64 (S,): joint share of some neurons in each sample."""
        return torch.stack([own[dims].sum() for own in self._samples])

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
        order = self.order
        most = _most(count, len(order))
        tried = range(1, most + 1) if count is None else (most,)
        held = 0.0
        for size in tried:
            held = median(self.joint(order[:size]))
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


def median(values: Tensor) -> float:
    """Of (n,); of an even number the mean of the two in the middle (`torch.median` gives the lower
    one)."""
    return float(values.double().quantile(0.5))


def _most(count: int | None, neurons: int) -> int:
    """The largest set that is tried."""
    return max(1, min(MOST, neurons // ONE_OF)) if count is None else min(count, neurons)


def top_neurons(study: Study, layer: int, count: int | None, min_share: float) -> Tensor:
    """int64 (k,): the neurons of a layer that hold the sinks' energy, from a pass of each sample.

    Raises:
        NoNeuronsError: no small set does; the text says which layers have one, for which each
            sample is passed through once more.
    """
    # Of the other layers only the mean is kept: rows of all layers and samples would be large.
    energies = {number: Energy(keep=number == layer) for number in range(study.layers)}
    for case, inputs in study.each("Looking for neurons"):
        probe = AtTokens(("z",), case.groups[study.sink])
        session = study.passed(case, inputs, [probe]).session
        for number, energy in energies.items():
            energy.add(session[probe].layer("z", number))
    try:
        return energies[layer].top(count, min_share, layer)
    except NoNeuronsError as error:
        there = _layers_with(study, energies, count, min_share)
        listed = ", ".join(map(str, there)) if there else "none"
        raise NoNeuronsError(
            f"{error} Layers that have such a set: {listed}. Nothing in this layer's MLP can be "
            "taken away as the cause (verdict negative); min_share lowers the threshold."
        ) from None


def _layers_with(
    study: Study, energies: dict[int, Energy], count: int | None, min_share: float
) -> list[int]:
    """Layers in which the largest set that is tried holds enough. A larger set holds more in every
    sample, so no smaller one needs to be looked at."""
    tops = {n: own.order[: _most(count, len(own.mean))] for n, own in energies.items()}
    held: dict[int, list[Tensor]] = {n: [] for n in energies}
    study.plan(1)
    for case, inputs in study.each("Looking for neurons in other layers"):
        probe = AtTokens(("z",), case.groups[study.sink])
        session = study.passed(case, inputs, [probe]).session
        for n, top in tops.items():
            held[n].append(shares(session[probe].layer("z", n))[:, top].sum(-1).mean())
    return [n for n, own in held.items() if median(torch.stack(own)) >= min_share]
