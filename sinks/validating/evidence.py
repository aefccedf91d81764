"""One sample's part of a validation, from its measurements: pure tensor functions.

They determine which tokens are flagged and which receive high attention, which sets of tokens to
hide for comparison, and how much attention each of these receives. Nothing here runs the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sinkscope.models.profiles import SinkProfile
from sinkscope.models.sink_score import above_threshold


@dataclass(frozen=True)
class Reading:
    """Measurements of one forward pass over a prompt, per layer (L), vision token (V); on the CPU.

    Attributes:
        phi: float32 (L, V), sink score under the profile's dimensions.
        random_phi: float32 (draws, L, V), under each draw of random dimensions.
        attention: float32 (L, V), attention received from later queries; each row sums to 1, so it
            is each token's share of the image's attention.
        high: bool (L, V), tokens of high attention: at least `min_ratio` times the image's median.
        top: bool (L, V), those among them that finding would take for sinks.
        selected: for each tau of the sweep, the share of the (head, query row) pairs after the
            image that VAR would change, mean over the layers in which it acts.
    """

    phi: Tensor
    random_phi: Tensor
    attention: Tensor
    high: Tensor
    top: Tensor
    selected: tuple[float, ...]


@dataclass(frozen=True)
class Candidates:
    """Vision tokens to hide.

    Attributes:
        pattern: bool (L, V): where each flagged token is flagged; False outside the settings'
            layers.
        tokens: name -> int64 (draws, n): the tokens of each draw; n is the number of flagged
            tokens. Sets that do not exist (fewer other tokens than flagged ones) are missing.
    """

    pattern: Tensor
    tokens: Mapping[str, Tensor]


def random_dimensions(profile: SinkProfile, draws: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Draws of as many dimensions as the profile has, excluding the profile's own."""
    others = [d for d in range(profile.hidden_size) if d not in profile.dims]
    generator = torch.Generator().manual_seed(seed)
    result = []
    for _ in range(draws):
        order = torch.randperm(len(others), generator=generator)[: len(profile.dims)]
        result.append(tuple(sorted(others[i] for i in order.tolist())))
    return tuple(result)


def candidates(
    reading: Reading,
    tau: float,
    layers: Sequence[int],
    order: Tensor,
) -> Candidates:
    """The flagged tokens, and as many others chosen by each of the controls.

    Args:
        reading: measurements of the sample.
        tau: threshold on phi; above it a token is flagged.
        layers: layers whose flags count.
        order: int64 (draws, V), a random order of the vision tokens for each draw.
    """
    flagged = above_threshold(reading.phi, tau, "official")
    pattern = torch.zeros_like(flagged)
    pattern[list(layers)] = flagged[list(layers)]
    union = pattern.any(0)
    sinks = union.nonzero()[:, 0]
    count, total = len(sinks), union.shape[0]
    tokens = {"image": torch.arange(total)[None]}
    if count:
        tokens["sinks"] = sinks[None]
    if 0 < count <= total - count:
        tokens["random"] = torch.stack([row[~union[row]][:count] for row in order])
        score = reading.random_phi[:, list(layers)].amax(1)  # (draws, V)
        tokens["random_dims"] = score.topk(count, dim=1).indices
        attended = reading.attention[list(layers)].mean(0).masked_fill(union, -1.0)
        tokens["attended"] = attended.topk(count).indices[None]
    return Candidates(pattern, tokens)


def hidden_pattern(candidates: Candidates, name: str, draw: int, own_layers: bool) -> Tensor:
    """Where a set is hidden: bool (V,), or (L, V) with `own_layers`.

    With `own_layers` each token of the set replaces one flagged token, in the layers in which that
    token is flagged, so that every set hides equally many tokens in every layer.
    """
    tokens = candidates.tokens[name][draw]
    if own_layers and name != "image":
        where = torch.zeros_like(candidates.pattern)
        where[:, tokens] = candidates.pattern[:, candidates.tokens["sinks"][0]]
        return where
    everywhere = torch.zeros(candidates.pattern.shape[1], dtype=torch.bool)
    everywhere[tokens] = True
    return everywhere.expand_as(candidates.pattern).clone() if own_layers else everywhere


def held(reading: Reading, candidates: Candidates, layers: Sequence[int], name: str) -> float:
    """Share of the image's attention that a set receives, mean over `layers` and draws."""
    attention = reading.attention[list(layers)].mean(0)  # (V,)
    return float(attention[candidates.tokens[name]].sum(-1).mean())


def overlap(candidates: Candidates, name: str) -> float:
    """Share of a set that is flagged, mean over draws."""
    return float(candidates.pattern.any(0)[candidates.tokens[name]].float().mean())


def lift(reading: Reading, flagged: Tensor) -> float | None:
    """Attention of a flagged token in multiples of the average vision token's.

    Sum over layers of the share of attention received, divided by the sum over layers of the share
    of tokens that are flagged. Layers in which none is flagged add nothing to either.

    Args:
        reading: measurements of the sample.
        flagged: bool (L, V).

    Returns:
        The quotient, or None if nothing is flagged.
    """
    if not bool(flagged.any()):
        return None
    share = flagged.double().mean(1).sum()
    return float((reading.attention.double() * flagged).sum() / share)


def top_by_score(score: Tensor, flagged: Tensor) -> Tensor:
    """bool (L, V): in each layer the highest-scoring tokens, as many as are flagged there."""
    rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return rank < flagged.sum(1, keepdim=True)


def counts(reading: Reading, tau: float) -> Tensor:
    """int64 (L, 5) in every layer: flagged, high, top, flagged and high, flagged and top."""
    flagged = above_threshold(reading.phi, tau, "official")
    columns = (
        flagged,
        reading.high,
        reading.top,
        flagged & reading.high,
        flagged & reading.top,
    )
    return torch.stack([column.sum(1) for column in columns], dim=1)
