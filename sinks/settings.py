"""How sink dimensions are looked for: one frozen, checked set of settings.

There are two kinds of settings, because a forward pass is expensive and a decision is not. Those in
`MEASURING` say what is measured on each sample and belong to the fingerprint of the work folder.
All others only say how the measurements are judged, and may be changed without a new forward pass.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal

from sinkscope.config import HIGHEST_SEED, MOST_PIXELS
from sinkscope.setting import REQUIRED, check, explained, refuse, setting
from sinkscope.utils import sha256

TokensBy = Literal["received", "after_image", "last_row", "norm"]
MOST_COUNT = 1_000_000
AUTO_SAMPLES, AUTO_TOKENS = 16, 8192  # in a pass on a GPU, if no batch size is given
MEASURING = ("tokens_by", "top_percent", "min_ratio", "layers", "max_pixels")
# A Gaussian vector of size D has its largest |x[d]| / rms near sqrt(2 ln D); chance stays below
# this multiple of it for a dimension that has to be large on the mean over tokens and samples.
CHANCE = 1.25


@explained
@dataclass(frozen=True)
class SampleChoice:
    """Which samples are taken; the seed is the one of finding or validating."""

    data: str = setting(
        REQUIRED,
        "A folder of images; a .jsonl, .json, .csv, .tsv or .parquet file; "
        "hub:owner/name[@revision][:[configuration:]split]; or demo (drawn scenes).",
    )
    samples: int = setting(30, "Number of samples; 30 is a good choice.", low=1, high=MOST_COUNT)
    prompt: str | None = setting(
        None,
        "Question for each image that has none of its own.",
        left_out="Describe the image, if no image has one",
    )
    images: str | None = setting(
        None,
        "Folder that a file's image names are relative to.",
        metavar="FOLDER",
        left_out="the file's own",
    )

    def __post_init__(self) -> None:
        check(self)


@explained
@dataclass(frozen=True)
class EngineSettings:
    """Where the model works on many samples (`sinks.engine`)."""

    engine: Literal["local", "ray"] = setting(
        "local", "Where the model runs; ray: one model per GPU of a Ray cluster."
    )
    workers: int | None = setting(
        None, "Number of models with ray.", low=1, high=100_000, left_out="as many as fit"
    )

    def __post_init__(self) -> None:
        check(self)


@explained
@dataclass(frozen=True)
class FindSettings:
    """What `sinks.finding.find.find` does. docs/method.md, "Finding sink dimensions", has the
    equations.

    `tokens_by` chooses the candidates for sink tokens in each layer separately: `received`,
    attention received from all later queries, in multiples of uniform attention, mean over heads;
    `after_image`, the same from only the queries after the last image; `last_row`, only the last
    prompt row; `norm`, the L2 norm of the residual stream, without attention. At least one token
    per image is taken; those above `min_ratio` that are not among the top ones count neither as
    sinks nor as ordinary.

    A sink dimension fulfils `min_share`, `min_prominence` and `min_contrast` in at least
    `min_consistency` of the samples. sqrt(hidden size) is the largest value that |x[d]| / rms(x)
    can take. The prominence is over the token's background, the rms over all dimensions but its 16
    largest. It distinguishes an isolated massive activation from a feature of the image's content,
    which in small models is large too, but among others that are nearly as large. The result does
    not depend on `batch_size`.
    """

    tokens_by: TokensBy = setting(
        "received",
        "Which tokens stand out: by the attention received from all later tokens (received), from "
        "those after the image (after_image) or from the last one (last_row), or by norm.",
    )
    top_percent: float = setting(
        1.0,
        "At most this percentage of an image's tokens counts as sinks.",
        low=0.0,
        above=True,
        high=50.0,
        slider_range=(0.1, 10),
        step=0.1,
    )
    min_ratio: float = setting(
        3.0, "A sink token has at least this multiple of its image's median.", low=1.0
    )
    layers: tuple[int, ...] | None = setting(
        None, "Layers to measure, such as 2-5 or 0,3,7.", left_out="all"
    )
    max_pixels: int | None = setting(
        None,
        "Largest area of the resized image, for this run only.",
        low=1,
        high=MOST_PIXELS,
        unit="pixels",
        left_out="the model's own",
    )
    min_share: float = setting(
        0.2,
        "A sink dimension reaches this share of sqrt(hidden size) on sink tokens.",
        low=0.01,
        high=1.0,
        user_facing=False,
    )
    min_prominence: float = setting(
        9.0,
        "A sink dimension reaches this multiple of the token's background.",
        low=0.0,
        user_facing=False,
    )
    min_contrast: float = setting(
        3.0, "How far a dimension stands out on sink tokens, relative to others.", low=1.0
    )
    min_consistency: float = setting(
        0.5, "Share of the samples in which the thresholds must hold.", low=0.01, high=1.0
    )
    min_layers: int = setting(
        2,
        "Number of consecutive measured layers in which the thresholds must hold.",
        low=1,
        high=10_000,
        user_facing=False,
    )
    max_dims: int = setting(
        8, "Maximum number of dimensions; those of highest contrast.", low=1, high=10_000
    )
    bootstrap: int = setting(
        1000,
        "Bootstrap resamplings for each interval.",
        low=100,
        high=100_000,
        user_facing=False,
    )
    confidence: float = setting(
        0.95, "Confidence level of the two-sided intervals.", low=0.5, high=0.999, user_facing=False
    )
    halves: int = setting(
        100,
        "Random halvings of the samples for the stability.",
        low=1,
        high=10_000,
        user_facing=False,
    )
    seed: int = setting(
        0, "Seed of the choice of samples and of the resampling.", low=0, high=HIGHEST_SEED
    )
    batch_size: int | None = setting(
        None,
        "Samples in one forward pass.",
        low=1,
        high=1024,
        left_out=f"1 on a CPU; on a GPU up to {AUTO_SAMPLES} with at most {AUTO_TOKENS} tokens "
        "together",
    )

    def __post_init__(self) -> None:
        check(self)
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(sorted(self.layers)))

    def min_magnitude(self, hidden_size: int) -> float:
        """The smallest mean of |x[d]| / rms(x) on sink tokens: `min_share` of sqrt(hidden size),
        but more than chance can reach, which matters below a hidden size of about 500."""
        chance = CHANCE * math.sqrt(2 * math.log(hidden_size))
        return max(self.min_share * math.sqrt(hidden_size), chance)

    def looked_at(self, layers: int) -> tuple[int, ...]:
        """Indices of the layers to measure, of a model with `layers` layers.

        Raises:
            ValueError: `layers` names one that the model does not have.
        """
        if self.layers is None:
            return tuple(range(layers))
        if self.layers[-1] >= layers:
            raise refuse("layers", self.layers, f"layers of the model, 0 to {layers - 1}")
        return self.layers

    def measuring(self) -> str:
        """SHA-256 of the settings that change what is measured on a sample."""
        values = {name: getattr(self, name) for name in MEASURING}
        return sha256(json.dumps(values, sort_keys=True).encode())

    def as_dict(self) -> dict[str, Any]:
        """Plain values; `config.from_mapping(FindSettings, ...)` reads them again."""
        return dataclasses.asdict(self)
