"""Settings of comparing methods. Imports little, because the command line reads it at its start."""

from __future__ import annotations

from dataclasses import dataclass

from sinkscope.config import HIGHEST_SEED
from sinkscope.setting import check, explained, setting

MOST_RESAMPLES = 1_000_000
RESAMPLES = 5000
ALPHA, CONFIDENCE = 0.05, 0.95


@explained
@dataclass(frozen=True)
class CompareSettings:
    """How methods are compared.

    `controls` is not a setting: (method, its control) pairs that are compared in addition.
    """

    baseline: str = setting(
        "default",
        "The method that the others are compared with; without `default`, a run's first one.",
        metavar="METHOD",
    )
    alpha: float = setting(
        ALPHA,
        "Two-sided error rate of a family of comparisons, for verdicts.",
        low=0.0,
        above=True,
        high=0.5,
    )
    confidence: float = setting(
        CONFIDENCE,
        "Confidence level of the intervals, which are not corrected.",
        low=0.5,
        high=0.9999,
    )
    resamples: int = setting(RESAMPLES, "Bootstrap resamplings.", low=1, high=MOST_RESAMPLES)
    seed: int = setting(0, "Seed of the bootstrap.", low=0, high=HIGHEST_SEED)
    controls: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        check(self)
