"""Settings of scoring explanations. Imports little: the command line reads it at its start."""

from __future__ import annotations

from dataclasses import dataclass

from sinkscope.config import GenerationSettings, Reduce
from sinkscope.evaluation.statistics.settings import CONFIDENCE, MOST_RESAMPLES
from sinkscope.setting import check, explained, like, setting

MOST_TARGETS = 10**7


@explained
@dataclass(frozen=True)
class ScoreSettings:
    """Which words are explained, by what, and how the maps are scored."""

    data: str = setting(
        "demo",
        "demo (drawn scenes with exact masks), or a folder or .jsonl file with images and masks.",
        metavar="demo|FOLDER",
    )
    methods: str = setting("all", "all, or names such as attention,relative.", metavar="NAMES")
    limit: int | None = setting(
        None,
        "Number of targets, from the start of the data.",
        low=1,
        high=MOST_TARGETS,
        left_out="all; 500 for the scenes",
    )
    prompt: str | None = setting(
        None, "The question if the data has none.", left_out="Describe the image"
    )
    word: str | None = setting(None, "The word to explain if the data names none.", left_out="none")
    steps: int = setting(
        8,
        "Steps of insertion and deletion; 0 leaves both out.",
        low=0,
        high=256,
        unit="steps",
    )
    layers: tuple[int, ...] | None = like(GenerationSettings, "layers")
    heads: tuple[int, ...] | None = like(GenerationSettings, "heads")
    reduce: Reduce = setting("mean", "How layers and heads become one map.")
    max_new_tokens: int = like(GenerationSettings, "max_new_tokens")
    seed: int = like(GenerationSettings, "seed")

    def __post_init__(self) -> None:
        check(self)


@explained
@dataclass(frozen=True)
class ScoreReportSettings:
    """How a table of scores is computed from its records."""

    resamples: int = setting(2000, "Bootstrap resamplings.", low=100, high=MOST_RESAMPLES)
    confidence: float = setting(
        CONFIDENCE, "Confidence level of the intervals.", low=0.5, high=0.9999
    )
    bootstrap_seed: int = setting(0, "Seed of the bootstrap.", low=0, high=2**31 - 1)

    def __post_init__(self) -> None:
        check(self)
