"""Flagged tokens, controls and their attention: cases computed by hand."""

from __future__ import annotations

import pytest
import torch

from sinkscope.models.profiles import SinkProfile
from sinkscope.sinks.validating.evidence import (
    Reading,
    candidates,
    counts,
    held,
    hidden_pattern,
    lift,
    overlap,
    random_dimensions,
    top_by_score,
)

# Three layers, six vision tokens. Flagged above 5: tokens 1 and 2 in layer 1, token 1 in layer 2.
PHI = torch.tensor(
    [
        [9.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        [1.0, 8.0, 6.0, 1.0, 5.0, 1.0],
        [1.0, 7.0, 1.0, 1.0, 1.0, 1.0],
    ]
)
ATTENTION = torch.tensor(
    [
        [0.5, 0.1, 0.1, 0.1, 0.1, 0.1],
        [0.1, 0.4, 0.1, 0.1, 0.2, 0.1],
        [0.3, 0.2, 0.2, 0.1, 0.1, 0.1],
    ]
)
RANDOM_PHI = torch.tensor([[[9.0] * 6, [1, 2, 3, 4, 5, 6], [7, 0, 0, 0, 0, 0]]] * 2)
ORDER = torch.tensor([[1, 5, 2, 4, 3, 0], [0, 3, 1, 2, 4, 5]])


def reading(phi: torch.Tensor = PHI) -> Reading:
    high = ATTENTION >= 0.2
    return Reading(phi, RANDOM_PHI, ATTENTION, high, high & (ATTENTION >= 0.4), ())


def test_flags_of_layers_that_do_not_count_are_left_out() -> None:
    found = candidates(reading(), 5.0, (1, 2), ORDER)
    assert found.pattern.tolist()[0] == [False] * 6, "layer 0 flags token 0 but is not asked"
    assert found.pattern.nonzero().tolist() == [[1, 1], [1, 2], [2, 1]], "5.0 is not above 5"
    assert {name: t.tolist() for name, t in found.tokens.items()} == {
        "image": [[0, 1, 2, 3, 4, 5]],
        "sinks": [[1, 2]],
        "random": [[5, 4], [0, 3]],  # the first two of each order that are not flagged
        "random_dims": [[0, 5], [0, 5]],  # highest in layers 1 and 2: 7 (token 0), 6 (token 5)
        "attended": [[0, 4]],  # means over layers 1 and 2: .2 (.3 .15) .1 .15 .1
    }


def test_where_controls_are_missing() -> None:
    none = candidates(reading(), 20.0, (1, 2), ORDER)
    assert set(none.tokens) == {"image"}
    most = candidates(reading(), 0.5, (1,), ORDER)  # all six flagged
    assert set(most.tokens) == {"image", "sinks"}
    phi = PHI.clone()
    phi[1] = torch.tensor([9.0, 9.0, 9.0, 1.0, 1.0, 1.0])
    half = candidates(reading(phi), 5.0, (1,), ORDER)
    assert set(half.tokens["random"][0].tolist()) == {3, 4, 5}, "half of the image still works"


def test_a_set_takes_the_place_of_the_flagged_tokens() -> None:
    found = candidates(reading(), 5.0, (1, 2), ORDER)
    assert hidden_pattern(found, "random", 1, False).nonzero()[:, 0].tolist() == [0, 3]
    own = hidden_pattern(found, "random", 1, True)
    # 0 stands for token 1 (layers 1 and 2), 3 for token 2 (layer 1)
    assert own.nonzero().tolist() == [[1, 0], [1, 3], [2, 0]]
    assert torch.equal(hidden_pattern(found, "sinks", 0, True), found.pattern)
    for name in found.tokens:
        if name != "image":
            pattern = hidden_pattern(found, name, 0, True)
            assert torch.equal(pattern.sum(1), found.pattern.sum(1)), name
    assert hidden_pattern(found, "image", 0, True).all(), "the whole image goes in every layer"


def test_attention_held_and_overlap() -> None:
    found = candidates(reading(), 5.0, (1, 2), ORDER)
    assert held(reading(), found, (1, 2), "sinks") == pytest.approx((0.4 + 0.1 + 0.2 + 0.2) / 2)
    assert held(reading(), found, (1, 2), "random") == pytest.approx((0.25 + 0.3) / 2)
    assert held(reading(), found, (1, 2), "image") == pytest.approx(1.0)
    assert overlap(found, "sinks") == 1.0
    assert overlap(found, "random") == 0.0
    assert overlap(found, "image") == pytest.approx(2 / 6)


def test_lift_by_hand() -> None:
    found = candidates(reading(), 5.0, (1, 2), ORDER)
    # layer 1: 0.5 on 2 of 6 tokens; layer 2: 0.2 on 1 of 6; layer 0 adds nothing
    assert lift(reading(), found.pattern) == pytest.approx((0.5 + 0.2) / (2 / 6 + 1 / 6))
    assert lift(reading(), torch.zeros(3, 6, dtype=torch.bool)) is None
    everything = torch.ones(3, 6, dtype=torch.bool)
    assert lift(reading(), everything) == pytest.approx(1.0), "all tokens together are average"


def test_as_many_by_score() -> None:
    found = candidates(reading(), 5.0, (1, 2), ORDER)
    picked = top_by_score(RANDOM_PHI[0], found.pattern)
    assert picked.nonzero().tolist() == [[1, 4], [1, 5], [2, 0]]


def test_counts_are_of_all_layers() -> None:
    # columns: flagged, high, top, flagged and high, flagged and top
    assert counts(reading(), 5.0).tolist() == [
        [1, 1, 1, 1, 1],
        [2, 2, 1, 1, 1],
        [1, 3, 0, 1, 0],
    ]


def test_random_dimensions_are_others() -> None:
    profile = SinkProfile("m", "f", 8, 3, (2, 5), 1.0, "s", "low")
    draws = random_dimensions(profile, 50, 3)
    assert all(len(set(d)) == 2 and not {2, 5} & set(d) for d in draws)
    assert set().union(*draws) == {0, 1, 3, 4, 6, 7}
    assert draws == random_dimensions(profile, 50, 3) != random_dimensions(profile, 50, 4)
