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
from typing import Any, Literal, get_args

from sinkscope.config import _indices, _integer, _number, _one_of, _refuse, plain_numbers
from sinkscope.utils import sha256

TokensBy = Literal["received", "after_image", "last_row", "norm"]
MEASURING = ("tokens_by", "top_percent", "min_ratio", "layers", "max_pixels")
# A Gaussian vector of size D has its largest |x[d]| / rms near sqrt(2 ln D); chance stays below
# this multiple of it for a dimension that has to be large on the mean over tokens and samples.
CHANCE = 1.25


@dataclass(frozen=True)
class FindSettings:
    """What `sinks.find.find` does. docs/method.md, "Finding sink dimensions", has the equations.

    Attributes:
        tokens_by: how the candidates for sink tokens are chosen among an image's vision tokens, in
            each layer by itself:
            `received`: attention received from all later queries, in multiples of uniform
            attention, mean over heads; `after_image`: the same from the queries after the last
            image alone; `last_row`: the last prompt row alone; `norm`: the L2 norm of the residual
            stream, which looks at no attention.
        top_percent: at most this many percent of an image's vision tokens are taken for sinks, but
            never fewer than one token an image.
        min_ratio: and only those with at least this multiple of the median of their image. Tokens
            above it that are not among the top ones count neither as sinks nor as ordinary.
        layers: which decoder layers to look at (their inputs, and the attention in them); None is
            all.
        max_pixels: bound on the resized image's area, for finding alone; None: the model's own.
        min_share: a sink dimension reaches, on sink tokens, at least this share of sqrt(hidden
            size), the largest value that |x[d]| / rms(x) can take.
        min_prominence: and at least this multiple of the token's background, the rms over all
            dimensions but its 16 largest. It tells an isolated massive activation from a feature of
            the image's content, which in small models is large too, but among others that are
            nearly as large.
        min_contrast: and a prominence of at least this multiple of that on ordinary vision tokens.
        min_consistency: and all three in at least this share of the samples.
        min_layers: in at least this many consecutive ones of the layers looked at.
        max_dims: at most so many dimensions are taken, those of the highest contrast.
        bootstrap: resamplings of the samples for each interval.
        confidence: of the intervals, two-sided.
        halves: random halvings of the samples for the stability.
        seed: of the resamplings and halvings.
        batch_size: samples in one forward pass. The result does not depend on it.
    """

    tokens_by: TokensBy = "received"
    top_percent: float = 1.0
    min_ratio: float = 3.0
    layers: tuple[int, ...] | None = None
    max_pixels: int | None = None
    min_share: float = 0.2
    min_prominence: float = 9.0
    min_contrast: float = 3.0
    min_consistency: float = 0.5
    min_layers: int = 2
    max_dims: int = 8
    bootstrap: int = 1000
    confidence: float = 0.95
    halves: int = 100
    seed: int = 0
    batch_size: int = 1

    def __post_init__(self) -> None:
        plain_numbers(self)
        _one_of("tokens_by", self.tokens_by, get_args(TokensBy))
        _number("top_percent", self.top_percent, 0.0, 50.0)
        if self.top_percent == 0:
            raise _refuse("top_percent", self.top_percent, "above 0, at most 50")
        _number("min_ratio", self.min_ratio, 1.0)
        chosen = _indices("layers", self.layers)
        object.__setattr__(self, "layers", None if chosen is None else tuple(sorted(chosen)))
        if self.max_pixels is not None:
            _integer("max_pixels", self.max_pixels, 1)
        _number("min_share", self.min_share, 0.01, 1.0)
        _number("min_prominence", self.min_prominence, 0.0)
        _number("min_contrast", self.min_contrast, 1.0)
        _number("min_consistency", self.min_consistency, 0.01, 1.0)
        _integer("min_layers", self.min_layers, 1)
        _integer("max_dims", self.max_dims, 1)
        _integer("bootstrap", self.bootstrap, 100, 100_000)
        _number("confidence", self.confidence, 0.5, 0.999)
        _integer("halves", self.halves, 1, 10_000)
        _integer("seed", self.seed, 0, 2**63 - 1)
        _integer("batch_size", self.batch_size, 1, 1024)

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
            raise _refuse("layers", self.layers, f"layers of the model, 0 to {layers - 1}")
        return self.layers

    def measuring(self) -> str:
        """SHA-256 of the settings that change what is measured on a sample."""
        values = {name: getattr(self, name) for name in MEASURING}
        return sha256(json.dumps(values, sort_keys=True).encode())

    def as_dict(self) -> dict[str, Any]:
        """Plain values; `config.from_mapping(FindSettings, ...)` reads them again."""
        return dataclasses.asdict(self)
