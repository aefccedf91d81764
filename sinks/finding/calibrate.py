"""The threshold tau, from the distribution of the sink score phi over vision tokens.

phi is counted separately for tokens that stand out and for ordinary ones, in the layers where sinks
were found. If sinks are real, there is a gap between the two distributions. Tau is its middle:

    J(tau) = share of tokens that stand out with phi > tau - share of ordinary ones with phi > tau
    low    = the least tau with J >= max J - 0.005: where ordinary tokens end
    high   = lower quartile of phi over the tokens that stand out with phi > low: where sinks are

Real sinks among the ordinary tokens (there may be more than `top_percent`) lower J by the same
amount everywhere in the gap, and so do tokens that stand out for another reason: neither moves
`low`. `high` is a quartile, because the weakest sinks are few and their phi is arbitrary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sinkscope.sinks.finding.findings import Origin, TauPoint
from sinkscope.sinks.finding.stats import ORDINARY, SINK, SampleStats

STEPS = (0.05, 0.1, 0.25, 0.5)  # bin widths; the first that needs at most MOST_BINS is used
MOST_BINS = 240
SWEEP = 48  # approximate number of points of the sweep
LOSS, QUARTILE = 0.005, 0.25


@dataclass(frozen=True)
class Histograms:
    """Counts of vision tokens by phi: bin i contains edges[i] < phi <= edges[i + 1].

    Attributes:
        edges: from 0 to at least sqrt(hidden size), in even steps.
        sinks, ordinary, vision: int64 (L, bins).
    """

    edges: tuple[float, ...]
    sinks: Tensor
    ordinary: Tensor
    vision: Tensor


@dataclass(frozen=True)
class Calibration:
    """Attributes:
    tau: the threshold.
    gap: (low, high) around it.
    sinks, ordinary: shares of these tokens that tau flags, in the layers with sinks.
    """

    tau: float
    gap: tuple[float, float]
    sinks: float
    ordinary: float


def phi_edges(hidden_size: int) -> tuple[float, ...]:
    """Edges of the bins: even steps of a round width, from 0 to above the largest possible phi."""
    most = math.sqrt(hidden_size)
    step = next((s for s in STEPS if most / s <= MOST_BINS), STEPS[-1])
    return tuple(round(i * step, 6) for i in range(math.ceil(most / step) + 1))


def histograms(stats: Sequence[SampleStats], dims: Sequence[int], hidden_size: int) -> Histograms:
    """Count the vision tokens of all samples by phi, layer by layer."""
    edges = phi_edges(hidden_size)
    inner = torch.tensor(edges[1:-1])
    bins, layers = len(edges) - 1, len(stats[0].layers)
    counts = {name: torch.zeros(layers, bins, dtype=torch.int64) for name in ("s", "o", "v")}
    for sample in stats:
        where = torch.bucketize(sample.phi(dims), inner)
        for name, mask in (
            ("s", sample.group == SINK),
            ("o", sample.group == ORDINARY),
            ("v", torch.ones_like(sample.group, dtype=torch.bool)),
        ):
            counts[name].scatter_add_(1, where, mask.to(torch.int64))
    return Histograms(edges, counts["s"], counts["o"], counts["v"])


def calibrate(histogram: Histograms, rows: Sequence[int]) -> Calibration:
    """Tau from the layers with sinks.

    Args:
        histogram: the counts of all layers.
        rows: the layers with sinks, as indices into the histogram.
    """
    sinks = flagged_shares(histogram.sinks[list(rows)].sum(0))
    ordinary = flagged_shares(histogram.ordinary[list(rows)].sum(0))
    gain = sinks - ordinary
    best = max(1, int(gain.argmax()))
    low = int((gain[1 : best + 1] >= gain[best] - LOSS).to(torch.int8).argmax()) + 1
    # the last edge that at least three quarters of the sinks above `low` exceed
    high = max(low, int((sinks >= (1 - QUARTILE) * sinks[low]).sum()) - 1)
    middle = max(1, (low + high) // 2)
    edges = histogram.edges
    return Calibration(
        edges[middle], (edges[low], edges[high]), float(sinks[middle]), float(ordinary[middle])
    )


def flagged_shares(counts: Tensor) -> Tensor:
    """float64 (..., bins + 1): share of the counted tokens (..., bins) with phi > each edge."""
    above = counts.flip(-1).cumsum(-1).flip(-1)
    above = torch.nn.functional.pad(above, (0, 1)).double()
    return above / counts.sum(-1, keepdim=True).clamp(min=1)


def sweep(histogram: Histograms, rows: Sequence[int], tau: float) -> tuple[TauPoint, ...]:
    """The shares that each threshold would flag, in rising order; `tau` is one of them."""
    sinks = flagged_shares(histogram.sinks[list(rows)].sum(0))
    ordinary = flagged_shares(histogram.ordinary[list(rows)].sum(0))
    vision = flagged_shares(histogram.vision.sum(0))
    by_layer = flagged_shares(histogram.vision)
    edges = histogram.edges
    step = max(1, (len(edges) - 1) // SWEEP)
    wanted = sorted({*range(step, len(edges) - 1, step), edges.index(tau)})
    return tuple(
        TauPoint(
            edges[i],
            float(sinks[i]),
            float(ordinary[i]),
            float(vision[i]),
            tuple(by_layer[:, i].tolist()),
        )
        for i in wanted
    )


def origins(
    stats: Sequence[SampleStats], dims: Sequence[int], tau: float, rows: Sequence[int]
) -> tuple[Origin, ...]:
    """For each sink token (phi > tau in one of the layers with sinks, `rows`), the first of the
    measured layers at whose input it is a sink."""
    layers = stats[0].layers
    counts = torch.zeros(len(layers), dtype=torch.int64)
    for sample in stats:
        above = sample.phi(dims) > tau  # (L, V)
        sinks = above[list(rows)].any(0)
        first = above.to(torch.int8).argmax(0)[sinks]
        counts += torch.bincount(first.to(torch.int64), minlength=len(layers))
    total = max(1, int(counts.sum()))
    return tuple(
        Origin(layer, count, count / total)
        for layer, count in zip(layers, counts.tolist(), strict=True)
        if count
    )
