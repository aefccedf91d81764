"""How sink dimensions are looked for: one frozen, checked set of settings.

Two kinds of settings, because a forward pass is dear and a decision is not: those in `MEASURING`
say what is measured on each sample and belong to the fingerprint of the work folder; all others
only say how the measurements are judged, and may be changed without a single new forward pass.
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
AUTO_SAMPLES, AUTO_TOKENS = 16, 8192  # in a pass on a GPU, where no batch size is given
MEASURING = ("tokens_by", "top_percent", "min_ratio", "layers", "max_pixels")
# A Gaussian vector of size D has its largest |x[d]| / rms near sqrt(2 ln D); chance stays below
# this multiple of it for a dimension that has to be large on the mean over tokens and samples.
CHANCE = 1.25


@explained
@dataclass(frozen=True)
class SampleChoice:
    """Which samples are taken; the seed is that of finding or validating."""

    data: str = setting(
        REQUIRED,
        "A folder of images; a .jsonl, .json, .csv, .tsv or .parquet file; "
        "hub:owner/name[@revision][:[configuration:]split]; or demo (drawn scenes).",
    )
    samples: int = setting(30, "How many samples; 30 are a good number.", low=1, high=MOST_COUNT)
    prompt: str | None = setting(
        None,
        "Asked about each image that has no question of its own.",
        left_out="Describe the image, where no image has one",
    )
    images: str | None = setting(
        None,
        "Folder in which a file's image names start.",
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
        "local", "Where the model works; ray: one model a GPU of a Ray cluster."
    )
    workers: int | None = setting(
        None, "Of ray: how many.", low=1, high=100_000, left_out="as many as there is room for"
    )

    def __post_init__(self) -> None:
        check(self)


@explained
@dataclass(frozen=True)
class FindSettings:
    """What `sinks.finding.find.find` does. docs/method.md, "Finding sink dimensions", has the
    equations.

    `tokens_by` chooses the candidates for sink tokens in each layer by itself: `received`,
    attention received from all later queries, in multiples of uniform attention, mean over heads;
    `after_image`, the same from the queries after the last image alone; `last_row`, the last prompt
    row alone; `norm`, the L2 norm of the residual stream, which looks at no attention. At least one
    token an image is taken; those above `min_ratio` that are not among the top ones count neither
    as sinks nor as ordinary.

    A sink dimension fulfils `min_share`, `min_prominence` and `min_contrast` in at least
    `min_consistency` of the samples. sqrt(hidden size) is the largest value that |x[d]| / rms(x)
    can take. The prominence is over the token's background, the rms over all dimensions but its 16
    largest: it tells an isolated massive activation from a feature of the image's content, which in
    small models is large too, but among others that are nearly as large. The result does not depend
    on `batch_size`.
    """

    tokens_by: TokensBy = setting(
        "received",
        "What makes a vision token stand out: attention received (exact), or less.",
    )
    top_percent: float = setting(
        1.0,
        "At most so many percent of an image's tokens are taken for sinks.",
        low=0.0,
        above=True,
        high=50.0,
        slider_range=(0.1, 10),
        step=0.1,
    )
    min_ratio: float = setting(
        3.0, "And only those with so many times the median of their image.", low=1.0
    )
    layers: tuple[int, ...] | None = setting(
        None, "Layers to look at, such as 2-5 or 0,3,7.", left_out="all"
    )
    max_pixels: int | None = setting(
        None,
        "Largest area of the resized image, for this alone.",
        low=1,
        high=MOST_PIXELS,
        unit="pixels",
        left_out="the model's own",
    )
    min_share: float = setting(
        0.2,
        "A sink dimension reaches, on sink tokens, this share of sqrt(hidden size).",
        low=0.01,
        high=1.0,
        user_facing=False,
    )
    min_prominence: float = setting(
        9.0, "And this multiple of the token's background.", low=0.0, user_facing=False
    )
    min_contrast: float = setting(
        3.0, "How far it stands out on sink tokens, by how far on others.", low=1.0
    )
    min_consistency: float = setting(
        0.5, "In at least this share of the samples.", low=0.01, high=1.0
    )
    min_layers: int = setting(
        2,
        "In at least this many consecutive ones of the layers looked at.",
        low=1,
        high=10_000,
        user_facing=False,
    )
    max_dims: int = setting(
        8, "At most so many dimensions, those of the highest contrast.", low=1, high=10_000
    )
    bootstrap: int = setting(
        1000,
        "Resamplings of the samples for each interval.",
        low=100,
        high=100_000,
        user_facing=False,
    )
    confidence: float = setting(
        0.95, "Of the two-sided intervals.", low=0.5, high=0.999, user_facing=False
    )
    halves: int = setting(
        100,
        "Random halvings of the samples for the stability.",
        low=1,
        high=10_000,
        user_facing=False,
    )
    seed: int = setting(0, "Which samples, and of the resampling.", low=0, high=HIGHEST_SEED)
    batch_size: int | None = setting(
        None,
        "Samples in one forward pass.",
        low=1,
        high=1024,
        left_out=f"1 on a CPU; on a GPU up to {AUTO_SAMPLES}, while they are {AUTO_TOKENS} tokens "
        "at most",
    )

    def __post_init__(self) -> None:
        check(self)
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(sorted(self.layers)))

    def min_magnitude(self, hidden_size: int) -> float:
        """The least mean of |x[d]| / rms(x) on sink tokens: `min_share` of sqrt(hidden size), but
        never what chance alone could reach, which matters below a hidden size of about 500."""
        chance = CHANCE * math.sqrt(2 * math.log(hidden_size))
        return max(self.min_share * math.sqrt(hidden_size), chance)

    def looked_at(self, layers: int) -> tuple[int, ...]:
        """Indices of the layers to look at, of a model with `layers` of them.

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
