"""Which dimensions are sink dimensions: thresholds, intervals, runs of layers, halves of the data.

A dimension passes in a layer if, on the vision tokens that stand out, its m is large in absolute
terms (the interval's lower end reaches `min_magnitude`) and relative to ordinary vision tokens (the
lower end of the contrast reaches `min_contrast`), and if in enough samples it is both, and isolated
as well. It is a sink dimension if it passes in enough consecutive layers. Always-on dimensions fail
by their contrast, which is about 1. Dimensions of only the first token fail because image tokens do
not have them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sinkscope.sinks.finding.reduce import Totals, Tracked, ratio_of
from sinkscope.sinks.settings import FindSettings


@dataclass(frozen=True)
class Decision:
    """The result for the C tracked dimensions.

    Attributes:
        sink_low, sink_high, contrast_low, contrast_high: float64 (L, C): bootstrap intervals.
        passes: bool (L, C).
        found: bool (C,): passes in enough consecutive layers.
        stability: float64 (C,): share of random halves in which it is found again; NaN with fewer
            than 4 samples.
        same: share of the halves in which exactly the found dimensions are found; None with fewer
            than 4 samples.
    """

    sink_low: Tensor
    sink_high: Tensor
    contrast_low: Tensor
    contrast_high: Tensor
    passes: Tensor
    found: Tensor
    stability: Tensor
    same: float | None


def decide(total: Totals, values: Tracked, settings: FindSettings, magnitude: float) -> Decision:
    """Apply the thresholds to the tracked dimensions."""
    columns = list(values.dims)
    draws = resamplings(total.samples, settings.bootstrap, settings.seed)
    sink_ends, contrast_ends = [], []
    for layer in range(len(total.layers)):  # one layer at a time: (bootstrap, C) is small
        sink, contrast = _means(values, draws, layer)
        sink_ends.append(_ends(sink, settings.confidence))
        contrast_ends.append(_ends(contrast, settings.confidence))
    sink_low, sink_high = torch.stack(sink_ends, 1)
    contrast_low, contrast_high = torch.stack(contrast_ends, 1)
    passes = (
        (sink_low >= magnitude)
        & (contrast_low >= settings.min_contrast)
        & (total.consistency[:, columns] >= settings.min_consistency)
    )
    found = longest_run(passes) >= min(settings.min_layers, len(total.layers))
    stability, same = _stability(values, settings, magnitude, found)
    return Decision(
        sink_low, sink_high, contrast_low, contrast_high, passes, found, stability, same
    )


def resamplings(samples: int, draws: int, seed: int) -> Tensor:
    """float64 (draws, n): how often each sample is drawn, for n draws with replacement from n."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(samples, (draws, samples), generator=generator)
    return torch.zeros(draws, samples, dtype=torch.float64).scatter_add(
        1, drawn, torch.ones_like(drawn, dtype=torch.float64)
    )


def halvings(samples: int, count: int, seed: int) -> Tensor:
    """float64 (2 * count, n): both halves of each random split; 1 for samples in the half."""
    generator = torch.Generator().manual_seed(seed + 1)
    first = torch.zeros(count, samples, dtype=torch.float64)
    for row in first:
        row[torch.randperm(samples, generator=generator)[: samples // 2]] = 1
    return torch.cat([first, 1 - first])


def longest_run(passes: Tensor) -> Tensor:
    """int64 (..., C): length of the longest run of True along the layers, of bool (..., L, C)."""
    length = torch.zeros_like(passes[..., 0, :], dtype=torch.int64)
    best = length
    for layer in range(passes.shape[-2]):
        length = (length + 1) * passes[..., layer, :]
        best = torch.maximum(best, length)
    return best


def runs(passes: list[bool]) -> list[tuple[int, int]]:
    """Maximal runs [start, stop) of True."""
    edges = [i for i in range(len(passes) + 1) if _at(passes, i - 1) != _at(passes, i)]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _at(passes: list[bool], index: int) -> bool:
    return 0 <= index < len(passes) and passes[index]


def _ends(drawn: Tensor, confidence: float) -> Tensor:
    """float64 (2, C): the ends of the interval, from (draws, C)."""
    if not drawn.shape[1]:  # no dimension was tracked
        return drawn[:2]
    edges = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    return torch.quantile(drawn, edges, dim=0)


def _means(values: Tracked, weights: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """float64 (draws, C): mean m on tokens that stand out (over the samples that have any; 0 if a
    draw has none), and the contrast."""
    has = values.has[:, layer, None]
    count = (weights @ has).clamp(min=1)
    sink = (weights @ (values.sink[:, layer] * has)) / count
    prominence = (weights @ (values.prominence[:, layer] * has)) / count
    ordinary = (weights @ values.ordinary_prominence[:, layer]) / weights.sum(-1, keepdim=True)
    return sink, ratio_of(prominence, ordinary)


def _stability(
    values: Tracked, settings: FindSettings, magnitude: float, found: Tensor
) -> tuple[Tensor, float | None]:
    samples, layers, dims = values.sink.shape
    if samples < 4:
        return torch.full((dims,), float("nan"), dtype=torch.float64), None
    halves = halvings(samples, settings.halves, settings.seed)
    holds = values.holds.double()
    passes = []
    for layer in range(layers):
        sink, contrast = _means(values, halves, layer)
        share = (halves @ holds[:, layer]) / halves.sum(-1, keepdim=True)
        large = (sink >= magnitude) & (contrast >= settings.min_contrast)
        passes.append(large & (share >= settings.min_consistency))
    again = longest_run(torch.stack(passes, 1)) >= min(settings.min_layers, layers)
    return again.double().mean(0), float((again == found).all(-1).double().mean())
