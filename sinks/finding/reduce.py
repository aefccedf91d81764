"""From the statistics of many samples to values for each dimension and layer.

Samples come in the order of their ids and are summed in float64. Each counts once, whatever its
number of tokens. So neither the order in which they were measured nor the batches can matter. They
are read twice, so that memory holds one sample's statistics at a time: once for the means of all
dimensions, and once for each sample's values of the few dimensions worth a bootstrap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sinkscope.sinks.finding.stats import ORDINARY, SINK, SampleStats
from sinkscope.sinks.settings import FindSettings

TRACKED_A_LAYER = 6  # dimensions of the highest contrast in each layer
TRACKED = 48  # dimensions in all


@dataclass(frozen=True)
class Totals:
    """Means over samples; float64 (L, D) unless stated otherwise.

    Attributes:
        samples: their number.
        layers: indices in the model (L).
        with_sinks: int64 (L,): number of samples in which a token stands out.
        sink_tokens, ordinary_tokens: int64 (L,).
        ratio: float64 (L,): mean of the largest ratio of a vision token.
        sink: mean m on tokens that stand out, over the samples that have any.
        ordinary, ordinary_spread: mean and standard deviation of m on ordinary tokens.
        ordinary_max: largest m on an ordinary token.
        first, text: mean m on the first token; mean of the largest m on the other text.
        prominence, ordinary_prominence: means of m / background on tokens that stand out and on
            ordinary ones.
        consistency: share of all samples that reach the least magnitude, prominence and contrast.
        first_consistency: the same for the first token instead of the sinks.
        massive: share of the tokens that stand out on which it is a massive activation.
    """

    samples: int
    layers: tuple[int, ...]
    with_sinks: Tensor
    sink_tokens: Tensor
    ordinary_tokens: Tensor
    ratio: Tensor
    sink: Tensor
    prominence: Tensor
    ordinary_prominence: Tensor
    ordinary: Tensor
    ordinary_spread: Tensor
    ordinary_max: Tensor
    first: Tensor
    text: Tensor
    consistency: Tensor
    first_consistency: Tensor
    massive: Tensor

    @property
    def contrast(self) -> Tensor:
        """float64 (L, D): `prominence` / `ordinary_prominence`."""
        return ratio_of(self.prominence, self.ordinary_prominence)


@dataclass(frozen=True)
class Tracked:
    """Each sample's values of a few dimensions.

    Attributes:
        dims: the C dimensions, rising.
        sink: float64 (n, L, C): mean m on the tokens that stand out, in each sample.
        prominence, ordinary_prominence: float64 (n, L, C): as in `Totals`, in each sample.
        holds: bool (n, L, C): whether the sample reaches magnitude, prominence and contrast.
        has: float64 (n, L): 1 if a token stands out, else 0.
    """

    dims: tuple[int, ...]
    sink: Tensor
    prominence: Tensor
    ordinary_prominence: Tensor
    holds: Tensor
    has: Tensor


def ratio_of(above: Tensor, below: Tensor) -> Tensor:
    """A quotient of two means that stays finite."""
    return above / below.clamp(min=1e-6)


def suffices(
    m: Tensor, prominence: Tensor, ordinary: Tensor, magnitude: float, contrast: float
) -> Tensor:
    """Whether tokens have a dimension that is large enough, in absolute terms and compared with
    ordinary tokens.

    Args:
        m, prominence: values of these tokens.
        ordinary: prominence on ordinary tokens.
        magnitude, contrast: the least m, and the least quotient of the two prominences.
    """
    return (m >= magnitude) & (prominence >= contrast * ordinary)


def holds(sample: SampleStats, settings: FindSettings, magnitude: float) -> Tensor:
    """bool (L, D): whether a sample's tokens that stand out have the dimension, by all three."""
    large = suffices(
        sample.sink,
        sample.prominence,
        sample.ordinary_prominence,
        magnitude,
        settings.min_contrast,
    )
    return large & (sample.prominence >= settings.min_prominence)


def totals(stats: Sequence[SampleStats], settings: FindSettings, hidden_size: int) -> Totals:
    """First reading: means of all dimensions in all layers.

    Args:
        stats: at least one sample, sorted by id.
        settings: the thresholds that the consistency applies to each sample.
        hidden_size: D.
    """
    magnitude = settings.min_magnitude(hidden_size)
    layers = stats[0].layers
    shape = (len(layers), hidden_size)
    names = (
        "sink",
        "ordinary",
        "spread",
        "first",
        "text",
        "holds",
        "first_holds",
        "massive",
        "prominence",
        "ordinary_prominence",
    )
    sums = {name: torch.zeros(shape, dtype=torch.float64) for name in names}
    largest = torch.zeros(shape, dtype=torch.float64)
    counts = {name: torch.zeros(len(layers), dtype=torch.int64) for name in ("has", "sink", "ord")}
    ratio = torch.zeros(len(layers), dtype=torch.float64)
    for sample in stats:
        sinks = (sample.group == SINK).sum(-1)
        counts["has"] += sinks > 0
        counts["sink"] += sinks
        counts["ord"] += (sample.group == ORDINARY).sum(-1)
        # Infinite if the median token receives no attention.
        ratio += sample.ratio.amax(-1).clamp(max=torch.finfo(torch.float32).max)
        ordinary, first = sample.ordinary.double(), sample.first
        sums["sink"] += sample.sink
        sums["ordinary"] += ordinary
        square = sample.ordinary_square.double() - ordinary.square()
        sums["spread"] += square.clamp(min=0).sqrt()
        sums["first"] += first
        sums["text"] += sample.text_max
        sums["holds"] += holds(sample, settings, magnitude)
        sums["prominence"] += sample.prominence
        sums["ordinary_prominence"] += sample.ordinary_prominence
        sums["first_holds"] += suffices(
            first,
            sample.first_prominence,
            sample.ordinary_prominence,
            magnitude,
            settings.min_contrast,
        )
        sums["massive"] += sample.massive
        largest = torch.maximum(largest, sample.ordinary_max.double())
    n = len(stats)
    return Totals(
        samples=n,
        layers=layers,
        with_sinks=counts["has"],
        sink_tokens=counts["sink"],
        ordinary_tokens=counts["ord"],
        ratio=ratio / n,
        sink=sums["sink"] / counts["has"].clamp(min=1)[:, None],
        prominence=sums["prominence"] / counts["has"].clamp(min=1)[:, None],
        ordinary_prominence=sums["ordinary_prominence"] / n,
        ordinary=sums["ordinary"] / n,
        ordinary_spread=sums["spread"] / n,
        ordinary_max=largest,
        first=sums["first"] / n,
        text=sums["text"] / n,
        consistency=sums["holds"] / n,
        first_consistency=sums["first_holds"] / n,
        massive=sums["massive"] / counts["sink"].clamp(min=1)[:, None],
    )


def first_token_passes(total: Totals, settings: FindSettings, magnitude: float) -> Tensor:
    """bool (L, D): massive on the first token of the prompt, by the same thresholds as sinks."""
    return (total.first >= magnitude) & (total.first_consistency >= settings.min_consistency)


def worth_tracking(total: Totals, settings: FindSettings, magnitude: float) -> tuple[int, ...]:
    """The dimensions worth a bootstrap and a row in tables, in rising order.

    These are: all that pass by their means; in each layer the ones with the highest contrast among
    those that exceed the rms of the tokens that stand out (a high contrast of two tiny values means
    nothing); and the largest ones of the first token and of ordinary tokens, for comparison.
    """
    eligible = torch.where(total.sink >= 1.0, total.contrast, 0.0)
    passing = (total.sink >= magnitude) & (total.consistency >= settings.min_consistency)
    first = torch.where(first_token_passes(total, settings, magnitude), total.first, 0.0)
    always = torch.where(total.ordinary >= magnitude, total.ordinary, 0.0)
    groups = (
        torch.where(passing, eligible, 0.0),
        first,
        always,
        eligible,
    )
    wanted: dict[int, None] = {}
    for group, most in zip(groups, (TRACKED // 2, 8, 8, TRACKED), strict=True):
        if group is eligible:
            per_layer = group.topk(min(TRACKED_A_LAYER, group.shape[1]), dim=-1)
            best = torch.zeros_like(group[0]).scatter_reduce(
                0, per_layer.indices.flatten(), per_layer.values.flatten(), "amax"
            )
        else:
            best = group.amax(0)
        order = torch.sort(best, descending=True, stable=True).indices[:most].tolist()
        wanted.update(dict.fromkeys(dim for dim in order if best[dim] > 0))
    return tuple(sorted(list(wanted)[:TRACKED]))


def tracked(
    stats: Sequence[SampleStats], dims: tuple[int, ...], settings: FindSettings, magnitude: float
) -> Tracked:
    """Second reading: each sample's values of `dims`."""
    columns = list(dims)
    return Tracked(
        dims,
        torch.stack([sample.sink[:, columns].double() for sample in stats]),
        torch.stack([sample.prominence[:, columns].double() for sample in stats]),
        torch.stack([sample.ordinary_prominence[:, columns].double() for sample in stats]),
        torch.stack([holds(sample, settings, magnitude)[:, columns] for sample in stats]),
        torch.stack([(sample.group == SINK).any(-1).double() for sample in stats]),
    )
