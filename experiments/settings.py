"""The settings of experiments: one small class each, and one for the shared settings.

Nothing heavy is imported here, so that the command line can list them quickly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from sinkscope.setting import REQUIRED, check, explained, like, refuse, setting
from sinkscope.sinks.settings import FindSettings

ROLES = ("sinks", "ordinary", "first", "last")
GROUPS = f"{', '.join(ROLES)}, or positions such as 0,1,8; each once"
SinksBy = Literal["auto", "profile", "attention"]
Answers = Literal["given", "own"]
Quantity = Literal["q", "k", "v", "hidden", "attn", "mlp"]
Part = Literal["z", "g", "u", "out", "residual"]
What = Literal["direction", "magnitude"]
Keys = Literal["sinks", "ordinary", "first", "region"]
Queries = Literal["after_image", "later"]
Token = str | int
MOST = 999_999  # layers, heads, neurons: their number is known when the model is loaded


def token_groups(name: str, given: Any) -> tuple[Token, ...]:
    """`sinks,ordinary` or `0,1,8`, or a tuple of such, as `StudySettings.tokens` has it.

    Raises:
        ValueError: an entry is neither a role nor a position, or is there twice.
    """
    words = given.replace(" ", "").split(",") if isinstance(given, str) else given
    if not isinstance(words, list | tuple) or not words:
        raise refuse(name, given, GROUPS)
    tokens: list[Token] = []
    for word in words:
        if isinstance(word, str) and re.fullmatch(r"\d{1,6}", word):
            tokens.append(int(word))
        elif word in ROLES or (isinstance(word, int) and not isinstance(word, bool) and word >= 0):
            tokens.append(word)
        else:
            raise refuse(name, word, GROUPS)
    if len(set(tokens)) < len(tokens):
        raise refuse(name, given, GROUPS)
    return tuple(tokens)


@explained
@dataclass(frozen=True)
class StudySettings:
    """Settings of all experiments."""

    tokens: tuple[Token, ...] | None = setting(
        None,
        "Groups of tokens: the sink first, its reference second; some of sinks, "
        "ordinary, first, last, or positions such as 0,1,8.",
        converter=token_groups,
        allowed=GROUPS,
        metavar="LIST",
        left_out="sinks,ordinary,first,last; without images first,ordinary,last",
    )
    sinks_by: SinksBy = setting(
        "auto",
        "What makes a vision token a sink: profile (phi > tau), attention (what it receives, no "
        "profile needed), or auto: the profile, if there is one.",
    )
    dims: tuple[int, ...] | None = setting(
        None, "Sink dimensions.", left_out="the profile's, if there is one"
    )
    tau: float | None = setting(None, "Threshold on phi.", low=0.0, left_out="the profile's")
    min_ratio: float = like(FindSettings, "min_ratio")
    top_percent: float = like(FindSettings, "top_percent")
    answers: Answers = setting(
        "given", "given: the samples' answers, if there are any; own: the model's."
    )
    answer_tokens: int = setting(
        8, "Maximum number of answer tokens that are read.", low=1, high=256
    )
    controls: int = setting(3, "Number of random draws of each control.", low=1, high=100)
    bootstrap: int = like(FindSettings, "bootstrap", user_facing=True)
    confidence: float = like(FindSettings, "confidence", user_facing=True)
    removed: float = setting(
        0.8,
        "Verdict A: smallest share of the excess attention that must be removed.",
        low=0.0,
        high=1.0,
    )
    spared: float = setting(
        0.2, "Verdict A: largest share of it that a control may remove.", low=0.0, high=1.0
    )
    auc: float = setting(
        0.95,
        "Verdict B: smallest AUC, sinks against ordinary tokens.",
        low=0.5,
        high=1.0,
        label="AUC",
    )
    seed: int = setting(0, "Seed of all random choices.", low=0, high=2**63 - 1)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class _Shared:
    """Settings that several experiments have."""

    layer: int = setting(REQUIRED, "Decoder layer, from 0.", low=0, high=MOST)
    layers: tuple[int, ...] | None = setting(None, "Layers that are changed.", left_out="all")
    top: int | None = setting(
        None,
        "Number of top neurons, those with the largest mean share of the energy.",
        low=1,
        high=MOST,
        left_out="the fewest that reach the least share, at most 16 and one in 32, or one in 16 "
        "that hold 90 %",
    )
    min_share: float = setting(
        0.55,
        "Smallest median over samples of their joint share; below it there is no set.",
        label="Least share",
        low=0.0,
        high=1.0,
    )


@explained
@dataclass(frozen=True)
class ScanSettings:
    """Settings of `scan`."""

    print: tuple[Quantity, ...] = setting(
        ("q", "k", "v", "hidden", "attn", "mlp"),
        "What to show: some of q, k, v, hidden, attn, mlp.",
        label="Show",
    )
    head: int | None = setting(
        None,
        "Head whose attention is drawn by layer and position.",
        low=0,
        high=MOST,
        left_out="the one that attends most to the sinks",
    )

    def __post_init__(self) -> None:
        check(self)


@explained
@dataclass(frozen=True)
class DecomposeOutputSettings:
    """Settings of `decompose-output`."""

    layer: int = like(_Shared, "layer")

    def __post_init__(self) -> None:
        check(self)


@explained
@dataclass(frozen=True)
class MLPSubspaceSettings:
    """Settings of `mlp-subspace`."""

    layer: int = like(_Shared, "layer")
    mlp: Part = setting(
        "z",
        "Which part: z (input of the down projection), g (gate) or u (up projection), both before "
        "the activation, out (output), residual (the stream's sink dimensions by layer).",
        label="MLP part",
    )
    top: int | None = like(_Shared, "top")
    min_share: float = like(_Shared, "min_share")

    def __post_init__(self) -> None:
        check(self)


@explained
@dataclass(frozen=True)
class AblateMLPSettings:
    """Settings of `ablate-mlp`."""

    layer: int = like(_Shared, "layer")
    what: What = setting(
        "direction",
        "direction: the span of the top neurons' output columns is removed from the MLP's output "
        "at the sinks; magnitude: that output is cut to the reference tokens' norm.",
    )
    top: int | None = like(_Shared, "top")
    min_share: float = like(_Shared, "min_share")
    each_layer: bool = setting(
        True,
        "With direction: also remove the span from each later layer's input, one at a time.",
    )

    def __post_init__(self) -> None:
        check(self)


@explained
@dataclass(frozen=True)
class DecomposeMLPInSettings:
    """Settings of `decompose-mlp-in`."""

    layer: int = like(_Shared, "layer")
    top: int | None = like(_Shared, "top")
    min_share: float = like(_Shared, "min_share")
    before_norm: bool | None = setting(
        None,
        "Also project before the MLP's norm; defined only for RMS norms.",
        left_out="if it is defined",
    )

    def __post_init__(self) -> None:
        check(self)


@explained
@dataclass(frozen=True)
class LowerAttentionSettings:
    """Settings of `lower-attention`."""

    factor: float = setting(0.0, "Factor on the attention to the sinks.", low=0.0, high=1.0)
    layers: tuple[int, ...] | None = like(_Shared, "layers")
    keep_value: bool = setting(
        False, "Also keep the contribution of the sinks' values to the output."
    )

    def __post_init__(self) -> None:
        check(self)


@explained
@dataclass(frozen=True)
class CutEdgesSettings:
    """Settings of `cut-edges`."""

    keys: Keys = setting("sinks", "Which keys are cut.")
    region: tuple[float, ...] | None = setting(
        None,
        "With keys region: x0,y0,x1,y1 of a box in the first image, as shares of its sides.",
        low=0.0,
        high=1.0,
        left_out="no box",
    )
    queries: Queries = setting(
        "after_image",
        "Queries that lose the edges: those after the last image, or all later ones.",
    )
    layers: tuple[int, ...] | None = like(_Shared, "layers")

    def __post_init__(self) -> None:
        check(self)
        if (self.keys == "region") != (self.region is not None):
            raise refuse("region", self.region, "a box with keys region, and none without")
        box = self.region
        if box is not None and not (len(box) == 4 and box[0] < box[2] and box[1] < box[3]):
            raise refuse("region", box, "x0,y0,x1,y1 with x0 below x1 and y0 below y1")

    @property
    def default_tokens(self) -> tuple[Token, ...] | None:
        """Groups of tokens if the study names none: a region needs no sinks."""
        return ("first", "last") if self.keys in ("region", "first") else None

    @property
    def draws_tokens(self) -> bool:
        """Whether controls are random tokens: those of a region are other boxes."""
        return self.keys != "region"


@explained
@dataclass(frozen=True)
class VisionOrTextSettings:
    """Settings of `vision-or-text`."""

    massive: int = setting(
        4,
        "Without known sink dimensions: number of dimensions, the largest at the sinks.",
        low=1,
        high=256,
    )

    def __post_init__(self) -> None:
        check(self)


@explained
@dataclass(frozen=True)
class SinkTokensSettings:
    """Settings of `sink-tokens`."""

    words: int = setting(
        5, "Number of the sinks' most frequent words in the detector.", low=1, high=100
    )

    def __post_init__(self) -> None:
        check(self)
