"""Intervals by resampling whole samples: tokens, heads and layers of one sample stay together."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sinkscope.sinks.finding.decide import resamplings


@dataclass(frozen=True)
class Interval:
    """A figure with a percentile interval; without one for a single sample.

    Attributes:
        value: on all samples.
        low, high: ends; NaN where there is no interval.
    """

    value: float
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        if not math.isfinite(self.value):
            return "-"
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            return f"{self.value:.4g}"
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"

    def percent(self) -> str:
        """The same in percent."""
        if not math.isfinite(self.value):
            return "-"
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            return _percent(self.value)
        return f"{_percent(self.value)} [{_percent(self.low)}, {_percent(self.high)}]"


def _percent(value: float) -> str:
    """Rounded percent, without a minus before zero."""
    return f"{value:.0%}".replace("-0%", "0%") if abs(value) < 0.005 else f"{value:.0%}"


@dataclass(frozen=True)
class Resampling:
    """Draws of samples with replacement, the same ones for every figure of a run, so that figures
    can be compared.

    Attributes:
        samples: how many there are.
        draws: how many resamplings.
        confidence: of intervals, two-sided.
        seed: of the draws.
    """

    samples: int
    draws: int
    confidence: float
    seed: int

    @property
    def weights(self) -> Tensor:
        """float64 (draws, S): how often each sample is drawn."""
        return resamplings(self.samples, self.draws, self.seed)

    def of(self, statistic: Callable[[Tensor], Tensor]) -> Interval:
        """A statistic with its interval.

        Args:
            statistic: of weights float64 (draws, S), one number per draw (draws,); NaN where a draw
                gives none.
        """
        value = float(statistic(torch.ones(1, self.samples, dtype=torch.float64))[0])
        if self.samples < 2:
            return Interval(value)
        low, high = self.ends(statistic(self.weights))
        return Interval(value, low, high)

    def ends(self, drawn: Tensor) -> tuple[float, float]:
        """Ends of the interval of drawn figures (draws,); NaN without two samples."""
        kept = drawn[torch.isfinite(drawn)]
        if self.samples < 2 or not len(kept):
            return math.nan, math.nan
        edges = torch.tensor(
            [(1 - self.confidence) / 2, (1 + self.confidence) / 2], dtype=torch.float64
        )
        low, high = torch.quantile(kept.double(), edges).tolist()
        return low, high

    def mean(self, values: Tensor) -> Interval:
        """Mean over samples (S,), of those that have a finite value."""
        return self.ratio(values, torch.ones_like(values))

    def ratio(self, above: Tensor, below: Tensor) -> Interval:
        """Sum of `above` over samples by sum of `below`, both (S,); samples in which either is NaN
        are left out."""
        good = torch.isfinite(above) & torch.isfinite(below)
        zero = torch.zeros((), dtype=torch.float64)
        top = torch.where(good, above.double(), zero)
        bottom = torch.where(good, below.double(), zero)
        return self.of(lambda weights: (weights @ top) / (weights @ bottom))
