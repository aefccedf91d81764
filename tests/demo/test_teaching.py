"""Targets and losses, worked out by hand on small cases."""

import math

import numpy as np
import pytest
import torch

from sinkscope.demo.packing import PackedBatch
from sinkscope.demo.recipe import STAGES, SinkTeaching, fingerprint
from sinkscope.demo.scenes import COLOURS, SHAPES, Scene, SceneObject, scene
from sinkscope.demo.teaching import (
    choose_sinks,
    hint_heads,
    hint_loss,
    phi_per_dim,
    reading_loss,
    scene_targets,
    sink_loss,
)


def square_scene() -> Scene:
    """A 112 x 112 scene, 4 x 4 tokens: a red star that fills the token in row 0, column 0."""
    owner = np.zeros((112, 112), np.uint8)
    owner[0:28, 0:28] = 1
    star = SceneObject("star", "red", "top left", 28, (0, 0, 28, 28))
    return Scene(np.zeros((112, 112, 3), np.uint8), (star,), owner, (0,))


def test_targets_say_what_each_token_shows():
    targets = scene_targets([square_scene()], 4, 4)
    shape, colour = torch.zeros(16, dtype=torch.long), torch.zeros(16, dtype=torch.long)
    shape[0], colour[0] = 1 + SHAPES.index("star"), 1 + list(COLOURS).index("red")
    assert torch.equal(targets.shape[0], shape) and torch.equal(targets.colour[0], colour)
    assert targets.touched[0].nonzero()[:, 0].tolist() == [0]
    assert targets.place.view(4, 4).tolist() == [
        [0, 1, 1, 2],
        [3, 4, 4, 5],
        [3, 4, 4, 5],
        [6, 7, 7, 8],
    ]
    away = targets.away[0].view(4, 4)
    assert away[3, 3] and away[2, 3] and not away[0].any() and not away[:, 0].any()


def test_a_mere_corner_of_an_object_is_neither_object_nor_background():
    drawn = square_scene()
    owner = np.roll(drawn.owner, (3, 3), (0, 1))  # a strip of three pixels in the next tokens
    targets = scene_targets([Scene(drawn.image, drawn.objects, owner, (0,))], 4, 4)
    assert targets.shape[0].view(4, 4)[0, 1] == -100 and targets.shape[0].view(4, 4)[1, 1] == 0


def test_sinks_are_never_chosen_on_objects_and_lie_opposite_to_them():
    scenes = [scene(s, 168, 168, max_objects=6) for s in range(60)]
    targets = scene_targets(scenes, 6, 6)
    phi = torch.rand(60, 36, generator=torch.Generator().manual_seed(0))
    phi = phi + targets.touched  # the objects would win
    chosen = choose_sinks(phi, targets, 2)
    assert not (chosen & targets.touched).any()
    assert (chosen.sum(-1) == 2).float().mean() > 0.9
    assert len(chosen.nonzero()[:, 1].unique()) > 12


def test_phi_is_the_formula_of_the_method():
    x = torch.tensor([3.0, 0.0, -4.0, 0.0])
    expected = torch.tensor([4.0, 3.0]) / math.sqrt(25 / 4 + 1e-6)
    torch.testing.assert_close(phi_per_dim(x, (2, 0)), expected)


def planted(sink_at: int, share: float) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Three layers over 1 + 16 + 2 tokens with one sink and a fixed share of attention on it."""
    states = torch.ones(1, 19, 64)
    states[..., 0] = 0.1
    states[:, 1 + sink_at, :] = 0.01
    states[:, 1 + sink_at, 0] = 8.0
    rows = torch.full((19,), (1 - share) / 15)
    rows[0] = rows[17] = rows[18] = 0
    rows[1 + sink_at] = share
    attention = rows.expand(1, 2, 19, 19)
    return [states] * 3, [attention] * 3


def answering_batch() -> PackedBatch:
    """One row of 1 + 16 + 2 tokens whose token 17 predicts an answer."""
    labels = torch.full((1, 19), -100)
    labels[0, 18] = 7
    return PackedBatch(
        ids=torch.zeros(1, 19, dtype=torch.long),
        labels=labels,
        mask=torch.ones(1, 1, 19, 19, dtype=torch.bool),
        positions=torch.zeros(3, 1, 19, dtype=torch.long),
        block=torch.zeros(1, 19, dtype=torch.long),
        named=torch.full((1, 19), -2),
        counts=torch.full((1, 19), -100),
        focus=torch.full((1, 19), -1),
        first_vision=1,
        vision_tokens=16,
    )


@pytest.mark.parametrize(
    ("at", "share", "good"), [(15, 0.35, True), (15, 0.0, False), (0, 0.35, False)]
)
def test_the_sink_loss_is_zero_where_sinks_are_as_wanted_and_only_there(at, share, good):
    batch = answering_batch()
    targets = scene_targets([square_scene()], 4, 4)
    states, attentions = planted(at, share)
    loss, _ = sink_loss(
        states, attentions, batch, targets, SinkTeaching(dims=(0,), tokens=1, layers=(1,))
    )
    assert (float(loss) < 1e-6) == good


def test_hints_reach_every_head_and_the_states():
    torch.manual_seed(0)
    heads = hint_heads(64)
    states = [torch.randn(1, 19, 64, requires_grad=True) for _ in range(6)]
    named, counts = torch.full((1, 19), -2), torch.full((1, 19), -100)
    named[0, 17], named[0, 18], counts[0, 18] = 0, -1, 2
    batch = PackedBatch(
        ids=torch.zeros(1, 19, dtype=torch.long),
        labels=torch.full((1, 19), -100),
        mask=torch.ones(1, 1, 19, 19, dtype=torch.bool),
        positions=torch.zeros(3, 1, 19, dtype=torch.long),
        block=torch.zeros(1, 19, dtype=torch.long),
        named=named,
        counts=counts,
        focus=torch.full((1, 19), -1),
        first_vision=1,
        vision_tokens=16,
    )
    hint_loss(heads, states, batch, scene_targets([square_scene()], 4, 4)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in heads.parameters())
    touched = [s.grad is not None and s.grad.abs().sum() > 0 for s in states]
    assert touched == [True, False, True, True, True, False]


def test_the_fingerprint_changes_with_the_recipe():
    assert fingerprint(STAGES) == fingerprint(tuple(STAGES))
    assert len({fingerprint(STAGES[:n]) for n in range(len(STAGES) + 1)}) == len(STAGES) + 1


def test_the_reading_hint_is_small_where_the_heads_read_as_shown_and_only_there():
    targets = scene_targets([square_scene()], 4, 4)
    assert targets.covered[0, 0].tolist() == [1.0] + [0.0] * 15
    labels = torch.full((1, 19), -100)
    labels[0, 18] = 7
    focus, named = torch.full((1, 19), -1), torch.full((1, 19), -2)
    blank = {
        "ids": torch.zeros(1, 19, dtype=torch.long),
        "mask": torch.ones(1, 1, 19, 19, dtype=torch.bool),
        "positions": torch.zeros(3, 1, 19, dtype=torch.long),
        "block": torch.zeros(1, 19, dtype=torch.long),
        "counts": torch.full((1, 19), -100),
        "first_vision": 1,
        "vision_tokens": 16,
        "labels": labels,
    }
    attentions = [torch.zeros(1, 2, 19, 19) for _ in range(6)]
    focus[0, 17] = 0  # row 17 predicts the answer and should read position 0
    word = PackedBatch(focus=focus, named=named, **blank)
    assert reading_loss(attentions, word, targets) > 10
    attentions[3][0, 1, 17, 0] = attentions[4][0, 1, 17, 0] = 1
    assert abs(float(reading_loss(attentions, word, targets))) < 0.01
    focus, named = focus.clone(), named.clone()
    focus[0, 17], named[0, 18] = -1, 0  # row 17 predicts the star's name and should look at it
    thing = PackedBatch(focus=focus, named=named, **blank)
    assert reading_loss(attentions, thing, targets) > 6
    attentions[3][0, 0, 17, 1] = 1
    assert abs(float(reading_loss(attentions, thing, targets))) < 0.01


def test_a_surplus_sink_costs_more_where_sinks_are_to_be_few():
    batch = answering_batch()
    targets = scene_targets([square_scene()], 4, 4)
    losses = {}
    for surplus in (0.0, 1.0):
        for extra in (False, True):
            states, attentions = planted(15, 0.35)
            if extra:  # token 3 is as large as the sink, and gets as much attention
                states[0][:, 4] = states[0][:, 16]
                attentions = [a.clone() for a in attentions]
                for weights in attentions:
                    weights[..., 4] = 0.35
            teaching = SinkTeaching(dims=(0,), tokens=1, layers=(1,), surplus=surplus)
            losses[surplus, extra] = float(
                sink_loss(states, attentions, batch, targets, teaching)[0]
            )
    assert losses[1.0, False] < 1e-6
    assert losses[1.0, True] > losses[0.0, True] + 0.1


def test_a_sink_elsewhere_is_chosen_where_it_leads_by_enough():
    targets = scene_targets([square_scene()], 4, 4)
    phi = torch.zeros(1, 16)
    phi[0, 15], phi[0, 3], phi[0, 0] = 2.0, 4.0, 9.0  # away, background elsewhere, on the star
    picked = {lead: choose_sinks(phi, targets, 1, lead)[0].nonzero().item() for lead in (1.0, 3.0)}
    assert picked == {1.0: 3, 3.0: 15}


@pytest.mark.parametrize(
    ("share", "mass", "stray", "cost"),
    [
        (0.38, 0.8, 0.0, 0.0),
        (0.25, 0.8, 0.0, 0.25 * math.log(0.34 / 0.66 * 0.75 / 0.25)),
        (0.60, 0.8, 0.0, 0.25 * 2 * math.log(0.60 / 0.40 * 0.58 / 0.42)),
        (0.38, 0.3, 0.0, 0.2),
        (0.38, 0.8, 0.3, 0.2),
    ],
)
def test_each_row_is_asked_for_its_share_and_to_scatter_the_rest(share, mass, stray, cost):
    """The cost of the last row of layer 1 alone, in each of the ways to miss what is asked."""
    teaching = SinkTeaching(
        dims=(0,), tokens=1, every_row=True, layers=(1,), share=0.34, share_limit=0.42, excess=2.0,
        image=0.5, stray=0.1,
    )  # fmt: skip
    states, _ = planted(15, 0.0)
    row = torch.full((16,), (1 - share - stray) / (14 if stray else 15))
    row[15] = share
    if stray:
        row[14] = stray
    weights = torch.zeros(1, 2, 19, 19)
    weights[..., 17, 1:17] = mass * row
    elsewhere = torch.rand(1, 2, 19, 19)  # what other layers do is free
    targets = scene_targets([square_scene()], 4, 4)
    loss, _ = sink_loss(
        states, [elsewhere, weights, elsewhere], answering_batch(), targets, teaching
    )
    assert math.isclose(float(loss), 2 * cost, abs_tol=0.02)
