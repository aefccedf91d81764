"""The two conditions of a good explanation, from numbers to words.

(A) causal: removing the factor removes the sinks, and controls do not.

    excess   = attention to the sinks - attention to the reference tokens, plain model
    removed  = (attention to the sinks, plain - the same without the factor) / excess

Both are means over the later layers, heads, queries and samples. A holds if there is an excess (its
interval is above 0), `removed` reaches `StudySettings.removed`, no control's reaches above
`spared`, and the interval of the factor is above that of every control.

(B) specific: only the sinks stand out on the factor. AUC: how often a sink token's projection is
above an ordinary token's (ties count half); it must reach `StudySettings.auc`. Margin: distance of
the weakest sink above the strongest ordinary token, in standard deviations of the ordinary ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sinkscope.experiments.bootstrap import Interval, Resampling
from sinkscope.experiments.result import Verdict
from sinkscope.experiments.settings import StudySettings


@dataclass(frozen=True)
class Causal:
    """Figures of condition A.

    Attributes:
        excess: of sink attention, plain model.
        removed: share of it, by the factor.
        controls: name -> share of it, by a control.
    """

    excess: Interval
    removed: Interval
    controls: Mapping[str, Interval]

    @property
    def gone(self) -> str:
        """How much of the sinks' attention is gone, in words."""
        if self.excess.value > 0 and not self.excess.low <= 0:
            return f"{self.removed.percent()} of the sinks' excess attention is gone"
        return "there is no excess attention of the sinks that could be removed"


@dataclass(frozen=True)
class Specific:
    """Figures of condition B.

    Attributes:
        auc: sinks against ordinary tokens.
        margin: in standard deviations of the ordinary tokens.
        sinks, ordinary: how many tokens.
    """

    auc: Interval
    margin: float
    sinks: int
    ordinary: int


def is_causal(causal: Causal, settings: StudySettings) -> bool:
    """Condition A."""
    if not causal.excess.low > 0 or not causal.removed.value >= settings.removed:
        return False
    return all(
        control.value <= settings.spared and control.high < causal.removed.low
        for control in causal.controls.values()
    )


def is_specific(specific: Specific, settings: StudySettings) -> bool:
    """Condition B."""
    return specific.auc.value >= settings.auc


def specific(
    sinks: Sequence[Tensor], ordinary: Sequence[Tensor], resampling: Resampling
) -> Specific:
    """Figures of condition B.

    Args:
        sinks, ordinary: of each sample, projections of its tokens (n,); those of sinks should be
            larger.
        resampling: of the samples.
    """
    above = torch.cat([part.double() for part in sinks])
    below = torch.cat([part.double() for part in ordinary])
    wins = _wins(sinks, ordinary)
    n = torch.tensor([float(len(part)) for part in sinks], dtype=torch.float64)
    m = torch.tensor([float(len(part)) for part in ordinary], dtype=torch.float64)

    def auc(weights: Tensor) -> Tensor:
        return ((weights @ wins) * weights).sum(-1) / ((weights @ n) * (weights @ m))

    deviation = float(below.std(correction=0)) if len(below) > 1 else math.nan
    gap = float(above.min() - below.max()) if len(above) and len(below) else math.nan
    margin = math.nan if math.isfinite(gap) and not deviation > 0 else gap / deviation
    return Specific(resampling.of(auc), margin, len(above), len(below))


def _wins(sinks: Sequence[Tensor], ordinary: Sequence[Tensor]) -> Tensor:
    """float64 (S, S): of sample i's sinks and sample j's ordinary tokens, the pairs in which the
    sink is above; ties count half."""
    wins = torch.zeros(len(sinks), len(ordinary), dtype=torch.float64)
    for column, others in enumerate(ordinary):
        rising = torch.sort(others.double()).values
        for row, sink in enumerate(sinks):
            value = sink.double().contiguous()
            below = torch.searchsorted(rising, value)
            upto = torch.searchsorted(rising, value, right=True)
            wins[row, column] = float((below + upto).double().sum()) / 2
    return wins


def verdict(
    settings: StudySettings,
    factor: str,
    causal: Causal | None = None,
    special: Specific | None = None,
    samples: int = 2,
) -> Verdict:
    """Both conditions in words.

    Args:
        settings: thresholds.
        factor: the removed factor, in words, such as `span of the top neurons`.
        causal, special: figures; None where a condition was not tested.
        samples: how many there are; one leaves no interval.
    """
    text, thresholds = [], []
    holds: bool | None = None
    if causal is not None:
        thresholds.append(
            f"A: the excess is above 0 with its interval, at least {settings.removed:.0%} of it "
            f"is removed, controls remove at most {settings.spared:.0%}, and their intervals lie "
            "below the factor's"
        )
        holds = is_causal(causal, settings)
        text.append(f"A (causal): {'yes' if holds else 'no'}. " + _why_causal(causal, factor))
        if samples < 2:
            text.append("One sample gives no interval, so A cannot hold; give two or more.")
    if special is not None:
        thresholds.append(f"B: AUC at least {settings.auc:g}")
        margin = "" if not math.isfinite(special.margin) else f", margin {special.margin:.3g} sd"
        text.append(
            f"B (specific): {'yes' if is_specific(special, settings) else 'no'}. On the {factor} "
            f"sink tokens are above ordinary ones with AUC {special.auc}{margin} "
            f"({special.sinks} sink tokens, {special.ordinary} ordinary ones)."
        )
    known = None if special is None else is_specific(special, settings)
    return Verdict(holds, known, tuple(text), tuple(thresholds))


def _why_causal(causal: Causal, factor: str) -> str:
    if not causal.excess.value > 0 or causal.excess.low <= 0:
        return (
            f"The sinks get no more attention than the reference tokens (excess {causal.excess}), "
            "so there is nothing to take away."
        )
    controls = "; ".join(f"{name} {control.percent()}" for name, control in causal.controls.items())
    return (
        f"Of the sinks' excess attention in later layers ({causal.excess}), "
        f"{causal.removed.percent()} disappears without the {factor}. "
        f"Controls: {controls or 'none'}."
    )
