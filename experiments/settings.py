"""What can be set in an experiment: one small frozen dataclass each, and one for what they share.

Nothing heavy is imported here, so that a command line can list it all at once. Each field carries
its help text and, where the check is more than a type, `__post_init__` says what is allowed.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from sinkscope.config import _indices, _integer, _number, _one_of, _refuse, plain_numbers

ROLES = ("sinks", "ordinary", "first", "last")
SinksBy = Literal["auto", "profile", "attention"]
Answers = Literal["given", "own"]
Quantity = Literal["q", "k", "v", "hidden", "attn", "mlp"]
Part = Literal["z", "g", "u", "out", "residual"]
What = Literal["direction", "magnitude"]
Keys = Literal["sinks", "ordinary", "first", "region"]
Queries = Literal["after_image", "later"]
Token = str | int


def option(default: Any, text: str) -> Any:
    """A field with its help text."""
    return field(default=default, metadata={"help": text})


def token_names(text: str) -> tuple[Token, ...]:
    """`sinks,ordinary` or `0,1,8` as `StudySettings.tokens` takes it.

    Raises:
        ValueError: an entry is neither a role nor a position.
    """
    made: list[Token] = []
    for word in text.replace(" ", "").split(","):
        if re.fullmatch(r"\d{1,6}", word):
            made.append(int(word))
        elif word in ROLES:
            made.append(word)
        else:
            raise _refuse("tokens", text, f"{', '.join(ROLES)}, or positions such as 0,1,8")
    return tuple(made)


@dataclass(frozen=True)
class StudySettings:
    """What all experiments share."""

    tokens: tuple[Token, ...] | None = option(
        None,
        "Groups of tokens, the sink first, what it is held against second: of sinks, ordinary, "
        "first, last, or positions such as 0,1,8. Left out: sinks,ordinary,first,last; for a model "
        "without images first,ordinary,last.",
    )
    sinks_by: SinksBy = option(
        "auto",
        "What makes a vision token a sink: profile (phi > tau), attention (received, no "
        "profile needed), or auto: the profile where there is one.",
    )
    dims: tuple[int, ...] | None = option(
        None, "Sink dimensions, instead of the profile's. Left out: the profile's, if there is one."
    )
    tau: float | None = option(None, "Threshold on phi, instead of the profile's.")
    min_ratio: float = option(
        3.0, "By attention: at least so many times the median of the image's tokens."
    )
    top_percent: float = option(1.0, "By attention: at most so many percent of an image's tokens.")
    max_pixels: int | None = option(None, "Area of an image that the model sees, most.")
    answers: Answers = option("given", "The samples' answers where there are any, or the model's.")
    answer_tokens: int = option(8, "Tokens of an answer that are looked at, most.")
    controls: int = option(3, "Random draws of each control.")
    bootstrap: int = option(1000, "Resamplings of the samples for each interval.")
    confidence: float = option(0.95, "Of the intervals, two-sided.")
    removed: float = option(0.8, "Verdict A: least share of the excess sink attention that goes.")
    spared: float = option(0.2, "Verdict A: most of it that a control may take.")
    auc: float = option(0.95, "Verdict B: least AUC, sinks against ordinary tokens.")
    seed: int = option(0, "Of all random choices.")

    def __post_init__(self) -> None:
        plain_numbers(self)
        if self.tokens is not None:
            if not isinstance(self.tokens, tuple | list) or not self.tokens:
                raise _refuse("tokens", self.tokens, f"some of {', '.join(ROLES)}, or positions")
            for token in self.tokens:
                known = token in ROLES if isinstance(token, str) else _is_position(token)
                if not known:
                    raise _refuse("tokens", token, f"{', '.join(ROLES)}, or a position from 0 up")
            if len(set(self.tokens)) < len(self.tokens):
                raise _refuse("tokens", self.tokens, "each group once")
            object.__setattr__(self, "tokens", tuple(self.tokens))
        _one_of("sinks_by", self.sinks_by, get_args(SinksBy))
        object.__setattr__(self, "dims", _indices("dims", self.dims))
        if self.tau is not None:
            _number("tau", self.tau, 0.0)
        _number("min_ratio", self.min_ratio, 1.0)
        _number("top_percent", self.top_percent, 0.01, 50.0)
        if self.max_pixels is not None:
            _integer("max_pixels", self.max_pixels, 1)
        _one_of("answers", self.answers, get_args(Answers))
        _integer("answer_tokens", self.answer_tokens, 1, 256)
        _integer("controls", self.controls, 1, 100)
        _integer("bootstrap", self.bootstrap, 100, 100_000)
        _number("confidence", self.confidence, 0.5, 0.999)
        for name in ("removed", "spared"):
            _number(name, getattr(self, name), 0.0, 1.0)
        _number("auc", self.auc, 0.5, 1.0)
        _integer("seed", self.seed, 0, 2**63 - 1)


def _is_position(token: object) -> bool:
    return isinstance(token, int) and not isinstance(token, bool) and token >= 0


def _layer(value: int) -> None:
    _integer("layer", value, 0)


def _top(settings: Any) -> None:
    if settings.top is not None:
        _integer("top", settings.top, 1, 4096)
    _number("min_share", settings.min_share, 0.0, 1.0)


LAYER = "Decoder layer, from 0."
TOP = (
    "How many neurons of largest mean share of the energy. Left out: the fewest that reach the "
    "least share, at most 16 and at most one of 32."
)
MIN_SHARE = "Least median over samples of their joint share; below it there is no such set."


@dataclass(frozen=True)
class ScanSettings:
    """Settings of `scan`."""

    print: tuple[Quantity, ...] = option(
        get_args(Quantity), "What to show: some of q, k, v, hidden, attn, mlp."
    )
    head: int | None = option(
        None, "Whose attention is drawn by layer and position. Left out: the one that looks most."
    )

    def __post_init__(self) -> None:
        plain_numbers(self)
        if isinstance(self.print, str) or not self.print:
            raise _refuse("print", self.print, f"some of {', '.join(get_args(Quantity))}")
        for quantity in self.print:
            _one_of("print", quantity, get_args(Quantity))
        object.__setattr__(self, "print", tuple(dict.fromkeys(self.print)))
        if self.head is not None:
            _integer("head", self.head, 0)


@dataclass(frozen=True)
class DecomposeOutputSettings:
    """Settings of `decompose-output`."""

    layer: int = option(dataclasses.MISSING, LAYER)

    def __post_init__(self) -> None:
        plain_numbers(self)
        _layer(self.layer)


@dataclass(frozen=True)
class MLPSubspaceSettings:
    """Settings of `mlp-subspace`."""

    layer: int = option(dataclasses.MISSING, LAYER)
    mlp: Part = option(
        "z",
        "Which part: z (input of the down projection), g (gate) or u (up projection), both before "
        "the activation, out (output), residual (the stream's sink dimensions by layer).",
    )
    top: int | None = option(None, TOP)
    min_share: float = option(0.55, MIN_SHARE)

    def __post_init__(self) -> None:
        plain_numbers(self)
        _layer(self.layer)
        _one_of("mlp", self.mlp, get_args(Part))
        _top(self)


@dataclass(frozen=True)
class AblateMLPSettings:
    """Settings of `ablate-mlp`."""

    layer: int = option(dataclasses.MISSING, LAYER)
    what: What = option(
        "direction",
        "direction: the span of the top neurons' output columns is taken out of the MLP's output "
        "at the sinks; magnitude: that output is cut to the reference tokens' norm.",
    )
    top: int | None = option(None, TOP)
    min_share: float = option(0.55, MIN_SHARE)
    each_layer: bool = option(
        True, "direction: also take the span out of each later layer's input, one at a time."
    )

    def __post_init__(self) -> None:
        plain_numbers(self)
        _layer(self.layer)
        _one_of("what", self.what, get_args(What))
        _top(self)


@dataclass(frozen=True)
class DecomposeMLPInSettings:
    """Settings of `decompose-mlp-in`."""

    layer: int = option(dataclasses.MISSING, LAYER)
    top: int | None = option(None, TOP)
    min_share: float = option(0.55, MIN_SHARE)
    before_norm: bool | None = option(
        None,
        "Also project before the MLP's norm, which is defined for RMS norms. Left out: where it "
        "is defined.",
    )

    def __post_init__(self) -> None:
        plain_numbers(self)
        _layer(self.layer)
        _top(self)


@dataclass(frozen=True)
class LowerAttentionSettings:
    """Settings of `lower-attention`."""

    factor: float = option(0.0, "What the attention to the sinks is multiplied with.")
    layers: tuple[int, ...] | None = option(None, "In these layers. Left out: all.")
    keep_value: bool = option(False, "Keep what the sinks' values contribute to the output.")

    def __post_init__(self) -> None:
        plain_numbers(self)
        _number("factor", self.factor, 0.0, 1.0)
        object.__setattr__(self, "layers", _indices("layers", self.layers))


@dataclass(frozen=True)
class CutEdgesSettings:
    """Settings of `cut-edges`."""

    keys: Keys = option("sinks", "Which keys are cut off: sinks, ordinary, first, or region.")
    region: tuple[float, ...] | None = option(
        None, "For region: x0,y0,x1,y1 of a box in the first image, as shares from 0 to 1."
    )
    queries: Queries = option("after_image", "From whom: after_image, or all later tokens.")
    layers: tuple[int, ...] | None = option(None, "In these layers. Left out: all.")

    def __post_init__(self) -> None:
        plain_numbers(self)
        _one_of("keys", self.keys, get_args(Keys))
        _one_of("queries", self.queries, get_args(Queries))
        object.__setattr__(self, "layers", _indices("layers", self.layers))
        if (self.keys == "region") != (self.region is not None):
            raise _refuse("region", self.region, "a box with keys = region, and none without")
        if self.region is not None:
            box = tuple(float(edge) for edge in self.region)
            good = len(box) == 4 and 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1
            if not good:
                raise _refuse("region", self.region, "x0,y0,x1,y1 with 0 <= x0 < x1 <= 1, y alike")
            object.__setattr__(self, "region", box)

    @property
    def tokens(self) -> tuple[Token, ...] | None:
        """Groups of tokens where the study names none: a region needs no sinks."""
        return ("first", "last") if self.keys in ("region", "first") else None


@dataclass(frozen=True)
class VisionOrTextSettings:
    """Settings of `vision-or-text`."""

    massive: int = option(
        4, "Without sink dimensions: how many dimensions that are largest at the sinks."
    )

    def __post_init__(self) -> None:
        plain_numbers(self)
        _integer("massive", self.massive, 1, 256)


@dataclass(frozen=True)
class SinkTokensSettings:
    """Settings of `sink-tokens`."""

    words: int = option(5, "How many of the sinks' most frequent words make the detector.")

    def __post_init__(self) -> None:
        plain_numbers(self)
        _integer("words", self.words, 1, 100)
