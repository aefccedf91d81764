"""Targets and losses, worked out by hand on small cases."""

import numpy as np
import torch

from sinkscope.demo.packing import PackedBatch, Packer
from sinkscope.demo.questions import questions
from sinkscope.demo.recipe import STAGES, fingerprint
from sinkscope.demo.scenes import COLOURS, SHAPES, Scene, SceneObject, scene
from sinkscope.demo.teaching import (
    answer_loss,
    comparison_loss,
    hint_heads,
    hint_loss,
    reading_loss,
    scene_targets,
    winner_reading_loss,
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


def test_a_token_is_inside_a_box_where_its_centre_is():
    drawn = square_scene()
    owner = drawn.owner
    star = SceneObject("star", "red", "top left", 42, (0, 0, 42, 43))  # centres at 14, 42, 70 ...
    targets = scene_targets([Scene(drawn.image, (star,), owner, (0,))], 4, 4)
    assert targets.inside[0, 0].nonzero()[:, 0].tolist() == [0, 4]


def test_a_mere_corner_of_an_object_is_neither_object_nor_background():
    drawn = square_scene()
    owner = np.roll(drawn.owner, (3, 3), (0, 1))  # a strip of three pixels in the next tokens
    targets = scene_targets([Scene(drawn.image, drawn.objects, owner, (0,))], 4, 4)
    assert targets.shape[0].view(4, 4)[0, 1] == -100 and targets.shape[0].view(4, 4)[1, 1] == 0


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
        compared=torch.full((1, 19), -100),
        first_vision=1,
        vision_tokens=16,
    )
    hint_loss(heads, states, batch, scene_targets([square_scene()], 4, 4)).backward()
    reached = {name for name, p in heads.named_parameters() if p.grad is not None}
    assert reached == {
        n for n, _ in heads.named_parameters() if n.split(".")[0] not in ("other", "compared")
    }
    assert all(p.grad.abs().sum() > 0 for p in heads.parameters() if p.grad is not None)
    touched = [s.grad is not None and s.grad.abs().sum() > 0 for s in states]
    assert touched == [True, False, True, True, True, False]


def test_the_comparison_is_taught_at_the_second_name_in_the_last_two_layers(tokenizer):
    drawn = scene(8, 168, 140, min_objects=4, max_objects=4)
    asked = questions(drawn, ["left"] * 6)
    assert asked
    batch = Packer(tokenizer).pack([asked], 5, 6)
    torch.manual_seed(0)
    heads = hint_heads(64)
    states = [torch.randn(*batch.ids.shape, 64, requires_grad=True) for _ in range(6)]
    targets = scene_targets([drawn], 5, 6)
    loss, right = comparison_loss(heads, states, batch, targets)
    loss.backward()
    assert [s.grad is not None for s in states] == [False] * 4 + [True] * 2
    for state in states[4:]:
        rows = state.grad.abs().sum(-1) > 0
        assert torch.equal(rows, batch.compared != -100) and rows.sum() == len(asked)
    assert right.keys() == {"other", "compared"}
    # Heads that read the truth from the states make the loss vanish.
    winners = [SHAPES.index(q.answer.removeprefix("the ").removesuffix(".")) for q in asked]
    first = [drawn.objects[q.prompt_objects[0]] for q in asked]
    with torch.no_grad():
        for head in (heads["other"], heads["compared"]):
            head.weight.copy_(20 * torch.eye(64)[: len(head.weight)])
            head.bias.zero_()
        told = [torch.zeros(*batch.ids.shape, 64) for _ in range(6)]
        at = (batch.compared[0] != -100).nonzero()[:, 0]
        for position, thing, winner in zip(at, first, winners, strict=True):
            told[4][0, position, SHAPES.index(thing.shape)] = 1
            told[4][0, position, len(SHAPES) + thing.cell] = 1
            told[5][0, position, winner] = 1
        loss, right = comparison_loss(heads, told, batch, targets)
    assert float(loss) < 1e-4 and right == {"other": 1.0, "compared": 1.0}
    none = Packer(tokenizer).pack([questions(drawn, ["what"])], 5, 6)
    assert float(comparison_loss(heads, states, none, targets)[0]) == 0


def test_the_winner_is_read_by_the_last_head_of_the_last_layer(tokenizer):
    drawn = scene(8, 168, 140, min_objects=4, max_objects=4)
    batch = Packer(tokenizer).pack([questions(drawn, ["left", "what", "left"])], 5, 6)
    length = batch.ids.shape[1]
    attentions = [torch.zeros(1, 2, length, length) for _ in range(6)]
    assert winner_reading_loss(attentions, batch) > 6
    for position in (batch.compared[0] != -100).nonzero()[:, 0]:
        rows = batch.block[0] == batch.block[0][position]
        attentions[5][0, 1, rows, position] = 1
    assert abs(float(winner_reading_loss(attentions, batch))) < 0.01
    none = Packer(tokenizer).pack([questions(drawn, ["what"])], 5, 6)
    assert float(winner_reading_loss(attentions, none)) == 0


def test_answers_that_compare_weigh_more(tokenizer):
    drawn = scene(8, 168, 140, min_objects=4, max_objects=4)
    asked = questions(drawn, ["left", "what", "left"])
    batch = Packer(tokenizer).pack([asked], 5, 6)
    wanted = batch.labels[:, 1:][batch.labels[:, 1:] != -100]
    torch.manual_seed(0)
    scores = torch.randn(len(wanted), 600)
    each = torch.nn.functional.cross_entropy(scores, wanted, reduction="none")
    number = batch.block[batch.predicting]
    left = torch.tensor([asked[n - 1].kind == "left" for n in number.tolist()])
    weights = torch.where(left, 10.0, 1.0)
    expected = (weights * each).sum() / weights.sum()
    assert torch.allclose(answer_loss(scores, wanted, batch, 10.0), expected)
    assert torch.allclose(answer_loss(scores, wanted, batch, 1.0), each.mean())


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
        "compared": torch.full((1, 19), -100),
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
