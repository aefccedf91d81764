"""How sinks are encouraged: which tokens, requirements on rows, and the effect of relief."""

import math
from types import SimpleNamespace

import pytest
import torch

from sinkscope.config import VARSettings
from sinkscope.demo.packing import PackedBatch
from sinkscope.demo.recipe import SinkTeaching
from sinkscope.demo.scenes import scene
from sinkscope.demo.sink_training import Relief, choose_sinks, phi_per_dim, relieving, sink_loss
from sinkscope.demo.teaching import scene_targets
from sinkscope.interventions.var.redistribute import redistribute
from tests.demo.test_teaching import square_scene


def test_sinks_are_never_chosen_on_objects_and_lie_opposite_to_them():
    scenes = [scene(s, 168, 168, max_objects=6) for s in range(60)]
    targets = scene_targets(scenes, 6, 6)
    phi = torch.rand(60, 36, generator=torch.Generator().manual_seed(0))
    phi = phi + targets.touched  # objects would score highest
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
    """The cost of only the last row of layer 1, for each way to miss the requirements."""
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
    elsewhere = torch.rand(1, 2, 19, 19)  # other layers have no cost
    targets = scene_targets([square_scene()], 4, 4)
    loss, _ = sink_loss(
        states, [elsewhere, weights, elsewhere], answering_batch(), targets, teaching
    )
    assert math.isclose(float(loss), 2 * cost, abs_tol=0.02)


def attention_loss(attentions: list[torch.Tensor], **changes) -> tuple[float, dict[str, float]]:
    """Cost and figures of one row that predicts the star's name, with a sink at the last token of
    four layers. Other terms cost nothing here."""
    batch = answering_batch()
    batch.named[0, 18] = 0
    states, _ = planted(15, 0.0)
    relief = changes.pop("relief", None)
    free = {"share": 0.0, "share_limit": 1.0, "stray": 1.0}
    teaching = SinkTeaching(dims=(0,), tokens=1, every_row=True, layers=(2,), **(free | changes))
    targets = scene_targets([square_scene()], 4, 4)
    loss, figures = sink_loss([states[0]] * 4, attentions, batch, targets, teaching, relief)
    return float(loss), figures


def looks(sink: float, thing: float, other: float = 0.0) -> torch.Tensor:
    """A layer in which each row looks at the sink, the star's token and one other."""
    weights = torch.zeros(1, 2, 19, 19)
    weights[..., 16], weights[..., 1], weights[..., 9] = sink, thing, other
    weights[..., 18] = 1 - sink - thing - other
    return weights


def test_layers_that_are_not_asked_for_sinks_leave_them_alone():
    loud = [looks(0.0, 0.1), looks(0.5, 0.4), looks(0.0, 0.1), looks(0.0, 0.1)]
    assert attention_loss(loud)[0] < 1e-6
    cost, figures = attention_loss(loud, quiet=0.05)
    share = 0.5 / 0.9
    # Layers 1 and 3 have no requirement; half of the mean is layer 1's.
    wanted = 2 * 0.25 * 0.5 * math.log(share / (1 - share) * 0.95 / 0.05)
    assert math.isclose(cost, wanted, abs_tol=0.03)
    assert math.isclose(figures["quiet_share"], share / 2, abs_tol=0.01)
    assert (
        attention_loss([looks(0.0, 0.1)] * 2 + [looks(0.5, 0.4), looks(0.0, 0.1)], quiet=0.05)[0]
        < 1e-6
    )


@pytest.mark.parametrize(
    ("sink", "thing", "other", "cost"),
    [
        (0.26, 0.2, 0.05, 0.0),
        (0.2, 0.2, 0.05, math.log(1.12)),
        (0.4, 0.2, 0.05, math.log(2 / 1.4)),
        (0.26, 0.2, 0.2, math.log(1 / 0.7)),
    ],
)
def test_the_mean_map_is_asked_to_show_the_sink_a_little_above_the_object(sink, thing, other, cost):
    layers = [looks(sink, thing, other)] * 4
    found, figures = attention_loss(layers, lead_in_map=(1.12, 1.4, 0.85))
    assert math.isclose(found, cost, abs_tol=0.01)  # weight 2 x 0.5
    assert figures["pointing"] == float(sink < thing and other < thing)


def test_under_relief_the_mean_map_is_asked_to_show_the_object():
    relief = Relief((0,), slice(1, 17), (2,), keep=0.6)
    right, figures = attention_loss(
        [looks(0.15, 0.2)] * 4, lead_in_map=(1.12, 1.4, 0.85), relief=relief
    )
    assert right < 1e-6 and figures["relieved_pointing"] == 1
    wrong, figures = attention_loss(
        [looks(0.25, 0.2)] * 4, lead_in_map=(1.12, 1.4, 0.85), relief=relief
    )
    assert math.isclose(wrong, math.log(1.25 / 0.85), abs_tol=0.01)
    assert figures["relieved_pointing"] == 0


@pytest.mark.parametrize(
    ("spares", "lowered"),
    [({}, [True] * 4), ({"spares_object": True}, [False] * 4),
     ({"spares_last": True}, [True, True, True, False])],
)  # fmt: skip
def test_a_sink_that_is_too_low_is_raised_and_the_object_spared_where_that_is_asked(
    spares, lowered
):
    layers = [looks(0.2, 0.2, 0.05).requires_grad_() for _ in range(4)]
    batch = answering_batch()
    batch.named[0, 18] = 0
    states, _ = planted(15, 0.0)
    teaching = SinkTeaching(
        dims=(0,), tokens=1, every_row=True, layers=(2,), share=0.0, share_limit=1.0, stray=1.0,
        lead_in_map=(1.5, 2.0, 0.8), **spares,
    )  # fmt: skip
    targets = scene_targets([square_scene()], 4, 4)
    sink_loss([states[0]] * 4, layers, batch, targets, teaching)[0].backward()
    rows = torch.stack([weights.grad[0, :, 17].sum(0) for weights in layers])
    assert (rows[:, 16] < -1e-3).all()  # more on the sink costs less, in every layer
    assert (rows[:, 1] > 1e-3).tolist() == lowered and rows[:, 1].min() > -1e-5


def test_a_row_that_names_an_object_pays_more_for_a_share_above_the_limit():
    """Twice the excess in log-odds, plus what every row pays (a quarter of it); weight 2."""
    layers = [looks(0.45, 0.35)] * 4
    bounds = (1.0, 9.0, 9.0)
    plain, _ = attention_loss(layers, share_limit=0.5, excess=1.0)
    named, _ = attention_loss(
        layers, share_limit=0.5, excess=1.0, lead_in_map=bounds, map_weight=0.5
    )
    over = math.log(0.45 / 0.35)  # out of 0.8 visible
    assert math.isclose(plain, 2 * 0.25 * over, abs_tol=0.01)
    assert math.isclose(named - plain, 2 * 0.5 * 2 * over, abs_tol=0.02)


def test_relief_asks_shares_of_the_rows_before_it():
    """What the heads chose counts, not the result of the relief."""
    relief = Relief((0,), slice(1, 17), (2,), keep=0.6)
    after = [looks(0.1, 0.5)] * 4
    assert attention_loss(after, quiet=1.0, image=0.5, relief=relief)[0] < 1e-6
    relief.before[2] = looks(0.1, 0.2)
    assert math.isclose(attention_loss(after, image=0.5, relief=relief)[0], 2 * 0.2, abs_tol=0.01)


@pytest.mark.parametrize("keep", [0.6, 0.0])
def test_relief_is_the_method(keep):
    """The training's form equals `redistribute`, for selected and unselected rows."""
    weights = torch.rand(2, 4, 12, 12, generator=torch.Generator().manual_seed(3)).tril()
    weights[:, :2, :, 3] *= 6  # in two heads sinks have more than half: unchanged
    weights[:, 3, :, 2:8] *= 0.05  # one head hardly sees the image: unchanged
    weights = weights / weights.sum(-1, keepdim=True)
    vision, sinks = torch.zeros(2, 12, dtype=torch.bool), torch.zeros(2, 12, dtype=torch.bool)
    vision[:, 2:8] = True
    sinks[0, 3] = sinks[1, 3] = sinks[1, 5] = True
    relief = Relief((0,), slice(2, 8), (2,), keep, large={2: sinks[:, 2:8]})
    wanted = redistribute(weights, sinks, vision, VARSettings((0,), keep=keep), first_query=8)
    torch.testing.assert_close(relief(2, weights), wanted, atol=1e-6, rtol=1e-5)
    changed = (wanted - weights).abs().amax(-1) > 1e-6
    assert changed[:, :, 8:].any() and not changed[:, :, 8:].all() and not changed[:, :, :8].any()
    assert relief(1, weights) is weights and torch.equal(relief.before[2], weights)


def test_relieving_notes_large_tokens_where_var_acts_and_leaves_no_trace():
    class Block(torch.nn.Module):
        def __init__(self, index):
            super().__init__()
            self.self_attn = SimpleNamespace(layer_idx=index)

        def forward(self, hidden_states):
            return hidden_states

    blocks = torch.nn.ModuleList(Block(i) for i in range(6))
    model = SimpleNamespace(model=SimpleNamespace(language_model=SimpleNamespace(layers=blocks)))
    states, _ = planted(15, 0.0)
    teaching = SinkTeaching(dims=(0,))
    with relieving(model, slice(1, 17), teaching, None) as relief:
        assert relief is None
    with relieving(model, slice(1, 17), teaching, 0.6) as relief:
        for index, block in enumerate(blocks):  # one of the ways the library calls it
            block(states[0]) if index % 2 else block(hidden_states=states[0])
        assert sorted(relief.large) == [2, 3, 4]
        assert all(large[0].nonzero().tolist() == [[15]] for large in relief.large.values())
    relief.large.clear()
    blocks[2](states[0])
    assert not relief.large
