"""Tokens by role in one prompt: detected vision sinks, matched ordinary vision tokens, first text
token, last token, or positions.

Sinks are detected in one plain pass. A vision token is a sink if it is flagged in at least half of
the layers in which any vision token of the prompt is flagged, from the third layer on
(`models.sink_score.FIRST_LAYER`). Flagged is: phi > tau by the profile, or by attention received
(`sinks.received.choose`), which needs no profile.

Ordinary vision tokens are those flagged in no layer. Matched ones are as many as there are sinks,
each at random among the nearest ordinary ones of the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sinkscope.experiments.controls import nearest_tokens
from sinkscope.experiments.settings import StudySettings, Token
from sinkscope.models.family import PromptLayout
from sinkscope.models.sink_score import FIRST_LAYER

NEAREST = 16  # ordinary tokens among which the match of a sink is drawn
FIRST_QUERY = 4  # of a prompt without images: the first query whose attention counts


def group_names(tokens: Sequence[Token]) -> tuple[str, ...]:
    """Names of the groups; position 8 is `tok8`."""
    return tuple(token if isinstance(token, str) else f"tok{token}" for token in tokens)


def chosen_tokens(settings: StudySettings, images: bool) -> tuple[Token, ...]:
    """The groups of a study.

    Args:
        settings: may name them.
        images: whether the samples have images.

    Raises:
        ValueError: a role of vision tokens, and there are no images.
    """
    if settings.tokens is None:
        return ("sinks", "ordinary", "first", "last") if images else ("first", "ordinary", "last")
    if not images and "sinks" in settings.tokens:
        raise ValueError(
            "tokens has 'sinks', which are vision tokens, but the samples have no images; allowed: "
            "first, ordinary, last, or positions such as 0,1,8."
        )
    return settings.tokens


@dataclass(frozen=True)
class Flags:
    """Which vision tokens are a prompt's sinks.

    Attributes:
        sinks: bool (V,).
        ordinary: bool (V,): flagged in no layer.
    """

    sinks: Tensor
    ordinary: Tensor


def sinks_of(flagged: Tensor) -> Flags:
    """The sinks, of flags bool (L, V) of all layers."""
    counted = flagged[min(FIRST_LAYER, len(flagged) - 1) :]
    layers = int(counted.any(1).sum())
    sinks = (2 * counted.sum(0) >= max(1, layers)) & (layers > 0)
    return Flags(sinks, ~flagged.any(0))


def first_query(layout: PromptLayout) -> int:
    """The first query whose attention counts: after the last image; without images, the fifth."""
    return layout.grids[-1].after if layout.grids else FIRST_QUERY


def groups(
    tokens: Sequence[Token], layout: PromptLayout, flags: Flags | None, seed: int
) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...]]:
    """Positions of each group in a prompt, and of the ordinary tokens, from which controls are
    drawn and the sinks must stand out.

    Args:
        tokens: which groups; the first is the sink.
        layout: of the prompt.
        flags: of its vision tokens; None where there is no image.
        seed: of the draw.

    Returns:
        name -> rising positions, empty where the prompt has none; and rising positions.

    Raises:
        ValueError: a position that the prompt does not have.
    """
    wrong = [t for t in tokens if isinstance(t, int) and t >= layout.length]
    if wrong:
        raise ValueError(
            f"tokens has {wrong[0]}, but the prompt has positions 0 to {layout.length - 1}."
        )
    result: dict[str, tuple[int, ...]] = {}
    vision = layout.vision_positions()
    if flags is not None:
        result["sinks"] = tuple(vision[flags.sinks].tolist())
    in_image = set(vision.tolist())
    text = [p for p in range(layout.length) if p not in in_image]
    result["first"] = tuple(text[:1])
    result["last"] = (layout.length - 1,)
    for token in tokens:
        if isinstance(token, int):
            result[f"tok{token}"] = (token,)
    names = group_names(tokens)
    sink = result.get(names[0], ())
    spared = {*sink, *result["first"], *result["last"]}
    among = vision[flags.ordinary].tolist() if flags is not None else vision.tolist() or text
    others = tuple(position for position in among if position not in spared)
    result["ordinary"] = nearest_tokens(others, sink, NEAREST, seed)
    return {name: result[name] for name in names}, others
