"""The page's view in Python: panels, their scales and the description of what was drawn."""

from __future__ import annotations

import dataclasses

import pytest

from sinkscope.attention_processor import image_share, patch_map, sink_share
from sinkscope.drawing.panels import Painter
from sinkscope.drawing.scale import percent
from sinkscope.drawing.view import View, make_side, selection_words
from tests.web.synthetic import make_pair, make_trace, scene


def test_shares_are_those_of_the_selection() -> None:
    trace = make_trace()
    image, held = make_side("", trace).shares([2, 3], View(layers=(1, 4), heads=(0,)))
    mass = image_share(trace)[2:4][:, [1, 4], 0]
    assert image == pytest.approx(float(mass.mean()), rel=1e-5)
    part = (mass * sink_share(trace)[2:4][:, [1, 4], 0]).mean() / mass.mean()
    assert held == pytest.approx(float(part), rel=1e-5)


def test_both_sides_share_a_scale_or_have_their_own() -> None:
    pair = make_pair()
    sides = [make_side(name, trace) for name, trace in pair.items()]
    same = Painter(sides, View(), 96).panels([4])
    assert same[0].ticks == same[1].ticks and "same scale on both sides" in same[0].words
    own = Painter(sides, View(same_scale=False), 96).panels([4])
    assert own[0].ticks != own[1].ticks and "same scale" not in own[0].words
    whole = Painter(sides[:1], View(scale="linear", whole_answer=True), 96)
    top = max(patch_map(pair["baseline"], t).values.max() for t in range(27))
    for token in (0, 9):
        panel = whole.panels([token])[0]
        assert panel.ticks[-1][1] == percent(float(top)) and "whole answer" in panel.words


def test_the_difference_panel_says_what_it_is() -> None:
    sides = [make_side(name, trace) for name, trace in make_pair().items()]
    painter = Painter(sides, View(difference=True), 96)
    panel = painter.panels([4])[2]
    assert panel.label == "Difference" and panel.words.startswith("var − baseline")
    assert len(painter.heights) == 3
    quiet = Painter(sides, View(difference=True), 96, idle=True).panels([4])[2]
    assert quiet.words == "no difference anywhere"
    late = painter.panels([26])  # VAR's answer is one token shorter
    assert late[1].note == "This answer ended before token 26."
    assert late[2].note == "One of the answers has no such token."


def test_what_cannot_be_drawn_is_refused() -> None:
    a, b = make_side("a", make_trace()), make_side("b", make_trace(rows=4, columns=4))
    with pytest.raises(ValueError, match="cut into different patches"):
        Painter([a, b], View(difference=True), 96)
    with pytest.raises(ValueError, match="image is 1; a has 1"):
        Painter([a], View(image=1), 96)
    with pytest.raises(ValueError, match="trace holds layers 0-5"):
        Painter([a], View(layers=(9,)), 96)
    with pytest.raises(ValueError, match="scale is 'loud'; allowed: percentile, "):
        View(scale="loud")  # type: ignore[arg-type]
    plain = dataclasses.replace(make_trace(), prompt_rows=None)
    with pytest.raises(ValueError, match="no rows of its prompt"):
        make_side("", plain, "prompt")


def test_layers_one_by_one() -> None:
    side = make_side("", make_trace(image=scene()))
    panels = Painter([side], View(separate_layers=(0, 5)), 96).panels([3])
    assert [panel.label for panel in panels] == ["layer 0", "layer 5"]
    assert (panels[0].pixels != panels[1].pixels).any()
    words = selection_words(side.trace, View(separate_layers=(0, 5), heads=(1, 2, 4)))
    assert words == "mean over layers 0, 5 one by one and heads 1–2, 4"
