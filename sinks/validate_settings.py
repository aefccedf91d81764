"""How a profile is validated: one frozen, checked set of settings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from sinkscope.config import _indices, _integer, _number, _one_of, _refuse, plain_numbers
from sinkscope.models.profiles import SinkProfile
from sinkscope.sinks.settings import FindSettings, TokensBy

Answers = Literal["given", "own"]
HideIn = Literal["all_layers", "own_layers"]
FromQueries = Literal["later", "after_image"]
# Multiples of the profile's tau in the sweep; those above sqrt(hidden size) flag nothing ever.
SWEEP = (0.5, 0.625, 0.75, 0.875, 1.0, 1.125, 1.25, 1.5, 2.0)


@dataclass(frozen=True)
class ValidateSettings:
    """What `sinks.validate.validate` does.

    Attributes:
        tokens_by, top_percent, min_ratio: which tokens count as high-attention ones, as in
            `FindSettings`.
        max_pixels: bound on the resized image's area; None: the model's own.
        layers: layers whose flagged tokens are hidden; None: from layer 2 on, where sinks are
            looked for. Precision and recall always count all layers.
        hide_in: `all_layers`: a token flagged in any of `layers` is hidden in every layer of the
            model; `own_layers`: in the layers alone in which it is flagged.
        from_queries: `later`: from every later query; `after_image`: from those behind the last
            image alone (cheaper; what hidden tokens told their neighbours in the image stays).
        answers: `given`: a sample's own answer where it has one, else the model's greedy one;
            `own`: always the model's.
        answer_tokens: at most so many tokens of an answer.
        random_draws: draws of random vision tokens for each sample; their mean counts.
        dims_draws: draws of random dimensions, the same for all samples; their mean counts.
        taus: thresholds of the sweep; None: multiples (`SWEEP`) of the profile's.
        sweep_samples: samples on which the sweep hides tokens as well; 0: none.
        min_samples: fewer samples with a sink than this are too few to say anything.
        max_flagged: a larger share of the vision tokens flagged (mean over `layers`) is too much.
        min_lift: flagged tokens hold at least so many times the attention of the average vision
            token.
        margin: nats an answer token; a smaller change of the log-probability counts as none.
        bootstrap, confidence: resamplings of the samples, and level of the two-sided intervals.
        seed: of the draws and the resamplings.
        allow_finding_samples: validate on samples that finding used as well. The result then says
            so, and is no evidence.
        batch_tokens: tokens that pass through the text model at once while tokens are hidden.
    """

    tokens_by: TokensBy = "received"
    top_percent: float = 1.0
    min_ratio: float = 3.0
    max_pixels: int | None = None
    layers: tuple[int, ...] | None = None
    hide_in: HideIn = "all_layers"
    from_queries: FromQueries = "later"
    answers: Answers = "given"
    answer_tokens: int = 24
    random_draws: int = 4
    dims_draws: int = 4
    taus: tuple[float, ...] | None = None
    sweep_samples: int = 10
    min_samples: int = 10
    max_flagged: float = 0.3
    min_lift: float = 2.0
    margin: float = 0.05
    bootstrap: int = 2000
    confidence: float = 0.95
    seed: int = 0
    allow_finding_samples: bool = False
    batch_tokens: int = 4096

    def __post_init__(self) -> None:
        plain_numbers(self)
        self.chooser()
        object.__setattr__(self, "layers", _indices("layers", self.layers))
        _one_of("hide_in", self.hide_in, get_args(HideIn))
        _one_of("from_queries", self.from_queries, get_args(FromQueries))
        _one_of("answers", self.answers, get_args(Answers))
        _integer("answer_tokens", self.answer_tokens, 1, 1024)
        _integer("random_draws", self.random_draws, 1, 100)
        _integer("dims_draws", self.dims_draws, 1, 100)
        if self.taus is not None:
            for tau in self.taus:
                _number("taus", tau, 0.0)
            object.__setattr__(self, "taus", tuple(sorted({float(tau) for tau in self.taus})))
            if not self.taus or self.taus[0] == 0:
                raise _refuse("taus", self.taus, "at least one number above 0")
        _integer("sweep_samples", self.sweep_samples, 0)
        _integer("min_samples", self.min_samples, 2)
        _number("max_flagged", self.max_flagged, 0.0, 1.0)
        _number("min_lift", self.min_lift, 1.0)
        _number("margin", self.margin, 0.0)
        _integer("bootstrap", self.bootstrap, 100, 100_000)
        _number("confidence", self.confidence, 0.5, 0.999)
        _integer("seed", self.seed, 0, 2**63 - 1)
        if not isinstance(self.allow_finding_samples, bool):
            raise _refuse("allow_finding_samples", self.allow_finding_samples, "true or false")
        _integer("batch_tokens", self.batch_tokens, 1)

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
