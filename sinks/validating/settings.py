"""How a profile is validated: one frozen, checked set of settings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from sinkscope.config import HIGHEST_SEED
from sinkscope.interventions.var.report import MANY_FLAGGED
from sinkscope.models.profiles import SinkProfile
from sinkscope.setting import check, explained, like, setting
from sinkscope.sinks.settings import FindSettings, TokensBy

Answers = Literal["given", "own"]
HideIn = Literal["all_layers", "own_layers"]
FromQueries = Literal["later", "after_image"]
# Multiples of the profile's tau in the sweep; those above sqrt(hidden size) can flag nothing.
SWEEP = (0.5, 0.625, 0.75, 0.875, 1.0, 1.125, 1.25, 1.5, 2.0)


@explained
@dataclass(frozen=True)
class ValidateSettings:
    """What `sinks.validating.validate.validate` does.

    Precision and recall always count all layers, not only `layers`. With `hide_in` "all_layers" a
    token flagged in any of `layers` is hidden in every layer of the model; with "own_layers" only
    in the layers in which it is flagged. With `from_queries` "later" it is hidden from every later
    query; with "after_image" only from those after the last image, which is cheaper, but
    information that hidden tokens passed to other image tokens stays.
    """

    tokens_by: TokensBy = like(FindSettings, "tokens_by")
    top_percent: float = like(FindSettings, "top_percent")
    min_ratio: float = like(FindSettings, "min_ratio")
    max_pixels: int | None = like(FindSettings, "max_pixels")
    layers: tuple[int, ...] | None = setting(
        None,
        "Layers whose flagged tokens are hidden.",
        left_out="from layer 2 on, where sinks are detected",
        user_facing=False,
    )
    hide_in: HideIn = setting(
        "all_layers",
        "Hide flagged tokens in all layers, or only in those in which they are flagged.",
    )
    from_queries: FromQueries = setting(
        "later", "Hide them from all later tokens, or only from those after the image."
    )
    answers: Answers = setting(
        "given", "given: the data's answers, if it has any; own: the model's greedy ones."
    )
    answer_tokens: int = setting(
        24, "Maximum number of tokens of an answer.", low=1, high=1024, user_facing=False
    )
    random_draws: int = setting(
        4,
        "Draws of random vision tokens for each sample; their mean is used.",
        low=1,
        high=100,
        user_facing=False,
    )
    dims_draws: int = setting(
        4,
        "Draws of random dimensions, the same for all samples; their mean is used.",
        low=1,
        high=100,
        user_facing=False,
    )
    taus: tuple[float, ...] | None = setting(
        None,
        "Thresholds of the sweep.",
        low=0.0,
        above=True,
        left_out="multiples (`SWEEP`) of the profile's",
        user_facing=False,
    )
    sweep_samples: int = setting(
        10,
        "Samples on which the sweep hides tokens as well; 0: none.",
        low=0,
        high=10**6,
        user_facing=False,
    )
    min_samples: int = setting(
        10,
        "Smallest number of samples with a sink for a verdict.",
        low=2,
        high=10**6,
        user_facing=False,
    )
    max_flagged: float = setting(
        MANY_FLAGGED,
        "Largest share of the vision tokens that may be flagged (mean over `layers`).",
        low=0.0,
        high=1.0,
        user_facing=False,
    )
    min_lift: float = setting(
        2.0,
        "Flagged tokens get at least this multiple of the average vision token's attention.",
        low=1.0,
        user_facing=False,
    )
    margin: float = setting(
        0.05,
        "A smaller change of an answer token's log-probability counts as none.",
        low=0.0,
        unit="nats",
        user_facing=False,
    )
    bootstrap: int = setting(
        2000, "Bootstrap resamplings.", low=100, high=100_000, user_facing=False
    )
    confidence: float = setting(
        0.95, "Confidence level of the two-sided intervals.", low=0.5, high=0.999, user_facing=False
    )
    seed: int = setting(
        0, "Seed of the choice of samples, draws and resamplings.", low=0, high=HIGHEST_SEED
    )
    allow_finding_samples: bool = setting(
        False,
        "Also validate on samples that finding used; the result says that it is no evidence.",
        name="allow_finding_data",
    )
    batch_tokens: int = setting(
        4096,
        "Tokens that pass through the text model at once while tokens are hidden.",
        low=1,
        high=10**8,
        user_facing=False,
    )

    def __post_init__(self) -> None:
        check(self)
        if self.taus is not None:
            object.__setattr__(self, "taus", tuple(sorted(set(self.taus))))

    def chooser(self) -> FindSettings:
        """The settings by which finding would choose high-attention tokens in this way."""
        return FindSettings(
            tokens_by=self.tokens_by,
            top_percent=self.top_percent,
            min_ratio=self.min_ratio,
            max_pixels=self.max_pixels,
        )

    def sweep(self, profile: SinkProfile) -> tuple[float, ...]:
        """Thresholds of the sweep, rising, the profile's own among them."""
        given = self.taus or tuple(profile.tau * factor for factor in SWEEP)
        most = math.sqrt(profile.hidden_size)
        return tuple(sorted({tau for tau in given if tau < most} | {profile.tau}))
