"""Heads that localise, by hand and by brute force; lists of heads and their file."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sinkscope.capture.trace import MEAN_HEAD, GenerationTrace, LayerSinks
from sinkscope.methods.explain import explain
from sinkscope.methods.heads import (
    HeadList,
    best_heads,
    elbow,
    localising_heads,
    sink_heads,
    spatial_entropy,
)
from sinkscope.methods.localising import LocalisingHeads
from tests.web.synthetic import make_trace


@pytest.fixture(scope="module")
def run() -> GenerationTrace:
    """8 x 12 cells; random rows of 2 tokens, 3 layers and 4 heads with very different image mass;
    some have one spot, some several."""
    made = make_trace()
    generator = np.random.default_rng(3)
    shape = (2, 3, 4, made.layout.vision_tokens)
    values = generator.gamma(0.15, size=shape)
    values *= (generator.uniform(0.02, 0.9, shape[:3]) / values.sum(-1))[..., None]
    values[:, 1, 2] = 0
    values[:, 1, 2, [30, 31, 42]] = 0.3  # one spot, 90 % of the row
    return dataclasses.replace(
        made,
        tokens=made.tokens[:2],
        attention=torch.from_numpy(values).half(),
        layers=(0, 2, 5),
        heads=(0, 1, 2, 3),
        shares=torch.zeros(2, 3, 4, made.shares.shape[-1]),
        entropy=torch.zeros(2, 3, 4),
        sinks=(),
    )


def test_entropy_by_hand(run: GenerationTrace) -> None:
    values = np.zeros(96)
    assert math.isinf(spatial_entropy(values, run.layout))
    values[[0, 13]] = 0.4  # they touch by a corner
    assert spatial_entropy(values, run.layout) == 0
    values[95] = 0.4
    mean = values.mean()
    inside = np.array([2 * (0.4 - 2 * mean), 0.4 - 2 * mean])
    p = inside / inside.sum()
    assert spatial_entropy(values, run.layout) == pytest.approx(-(p * np.log(p)).sum())
    assert math.isinf(spatial_entropy(np.full(96, 0.01), run.layout))  # nothing stands out


def brute_entropy(values: np.ndarray, rows: int, columns: int) -> float:
    """Flood fill, cell by cell."""
    above = np.maximum(values - 2 * values.mean(), 0).reshape(rows, columns)
    todo = {(r, c) for r in range(rows) for c in range(columns) if above[r, c] > 1e-3}
    spots = []
    while todo:
        edge, spot = [todo.pop()], 0.0
        while edge:
            r, c = edge.pop()
            spot += above[r, c]
            near = {(r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & todo
            todo -= near
            edge += near
        spots.append(spot)
    if not spots:
        return math.inf
    return -sum(s / sum(spots) * math.log(s / sum(spots)) for s in spots)


def test_the_method_by_brute_force(run: GenerationTrace) -> None:
    for token in (0, 1):
        own = run.attention[token].float().numpy().astype(np.float64)
        masses = own.sum(-1).ravel()
        ordered = np.sort(masses)
        first, last, count = ordered[0], ordered[-1], len(ordered)
        chord = np.array([count - 1, last - first])
        apart = [
            abs(chord[0] * (value - first) - chord[1] * index)
            for index, value in enumerate(ordered)
        ]
        least = ordered[int(np.argmax(apart))]
        assert elbow(masses) == pytest.approx(least)
        found = sorted(
            (brute_entropy(own[place], 8, 12), place)
            for place in np.ndindex(3, 4)
            if own[place].sum() >= least and math.isfinite(brute_entropy(own[place], 8, 12))
        )
        expected = np.mean([own[place] for _, place in found[:3]], axis=0)
        stack = explain(run, token, "localising_heads")
        np.testing.assert_allclose(stack.values[0], expected, rtol=1e-5)
        assert (1, 2) in [place for _, place in found[:3]]
    assert explain(run, "answer", "localising-heads").axes == (("token", (0, 1)),)


def test_the_elbow_is_a_value_and_not_an_index() -> None:
    assert elbow(np.array([0.1, 0.11, 0.12, 0.9, 0.95, 1.0])) == pytest.approx(0.12)
    assert elbow(np.array([0.3, 0.2])) == 0.2 and elbow(np.full(5, 0.4)) == 0.4
    mass, entropy = np.array([[0.1, 0.9], [0.11, 0.95]]), np.array([[0.0, 0.7], [0.0, math.inf]])
    assert best_heads(mass, entropy, 3) == [(1, 0), (0, 1)]


def test_no_spot_is_a_missing_map(run: GenerationTrace) -> None:
    flat = dataclasses.replace(run, attention=torch.full_like(run.attention, 0.01))
    assert np.isnan(explain(flat, 0, "localising_heads").values).all()
    mean = dataclasses.replace(run, attention=run.attention[:, :, :1], heads=(MEAN_HEAD,))
    with pytest.raises(ValueError, match="the run kept only the mean over heads"):
        explain(mean, 0, "localising_heads")


def test_a_list_is_saved_opened_and_used(run: GenerationTrace, tmp_path: Path) -> None:
    found = localising_heads([run, run], count=2)
    assert found.chosen[0].layer == 2 and found.chosen[0].head == 2  # slot 1 is layer 2
    assert found.chosen[0].value == 0 and found.heads_of(2)[0] == 2
    found.save(tmp_path / "heads.json")
    assert HeadList.open(tmp_path / "heads.json") == found
    stack = explain(run, 1, LocalisingHeads(1, found))
    np.testing.assert_allclose(stack.values[0], run.attention[1, 1, 2].float())
    heat = explain(run, 1).map(layers=[2], heads=found.heads_of(2)[:1])
    np.testing.assert_allclose(heat.values.ravel(), stack.values[0])
    other = dataclasses.replace(found, revision="another", model="another model")
    with pytest.raises(ValueError, match=r"the list of heads is of another model \(another model"):
        explain(run, 1, LocalisingHeads(1, other))
    fewer = dataclasses.replace(run, layers=(0, 1, 5))
    with pytest.raises(ValueError, match=r"the run did not keep the heads 2\.2"):
        explain(fewer, 1, LocalisingHeads(1, found))


def test_heads_that_feed_on_sinks(run: GenerationTrace) -> None:
    places = run.layout.vision_positions()[[30, 31, 42]].tolist()
    sinks = (LayerSinks(2, tuple(places), (9.0, 9.0, 9.0)),)
    known = dataclasses.replace(run, sinks=sinks)
    found = sink_heads([known])
    assert [(one.layer, one.head) for one in found.chosen] == [(2, 2)]
    assert found.chosen[0].value == pytest.approx(1) and found.kind == "feeds_on_sinks"
    with pytest.raises(ValueError, match="no sink dimensions are known"):
        sink_heads([run])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "x"}, "is not a list of heads"),
        ({"version": 2}, "has version 2; allowed: 1"),
        ({"kind": "odd"}, "kind is 'odd'; allowed: localising, feeds_on_sinks"),
        ({"chosen": [{"layer": -1, "head": 0, "image_mass": 0, "value": 0}]}, "is -1; allowed"),
        ({"chosen": [{"layer": 1}]}, "is a damaged list"),
        (None, "list of heads heads.json is damaged, because it is not JSON"),
    ],
)
def test_damaged_lists(
    run: GenerationTrace, tmp_path: Path, change: dict[str, object] | None, words: str
) -> None:
    path = tmp_path / "heads.json"
    localising_heads([run]).save(path)
    text = path.read_text() if change is None else json.dumps(json.loads(path.read_text()) | change)
    path.write_text(text[:-20] if change is None else text)
    with pytest.raises(ValueError, match=words):
        HeadList.open(path)


def test_runs_that_do_not_fit_together(run: GenerationTrace) -> None:
    for runs, words in (
        ([], "runs is empty"),
        ([run, dataclasses.replace(run, layers=(0, 1, 5))], "other layers or heads"),
        ([dataclasses.replace(run, tokens=())], "no image or no answer"),
    ):
        with pytest.raises(ValueError, match=words):
            localising_heads(runs)  # type: ignore[arg-type]
