"""Maps of single heads, against plain NumPy; the allowed ways to name heads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sinkscope.attention_processor import patch_map
from sinkscope.capture.arrays import as_arrays
from sinkscope.capture.trace import MEAN_HEAD, GenerationTrace
from sinkscope.config import Reduce
from sinkscope.drawing.files import Drawing
from sinkscope.drawing.view import View, make_side, sinks_of
from sinkscope.methods.base import MapStack, Target
from sinkscope.methods.explain import explain, explain_map
from sinkscope.methods.head_list import MOST_PICKED, HeadChoice, HeadList, HeadsFrom, PickedHeads
from sinkscope.methods.heads import found_heads, localising_heads
from sinkscope.methods.together import SlotChoice, label_of, map_of
from tests.web.synthetic import make_trace

PAIRS = ((1, 2), (3, 4), (3, 5), (5, 0))
SLOTS = [1, 3, 3, 5], [2, 4, 5, 0]
TOKENS = [2, 3, 7]


@pytest.fixture(scope="module")
def run() -> GenerationTrace:
    return make_trace()


def rows(run: GenerationTrace) -> np.ndarray:
    """float32 (tokens, pairs, V)."""
    made: np.ndarray = run.attention.float().numpy()[TOKENS][:, SLOTS[0], SLOTS[1]]
    return made


@pytest.mark.parametrize("reduce", ["mean", "max", "min"])
def test_a_map_is_that_of_the_pairs(run: GenerationTrace, reduce: Reduce) -> None:
    expected = getattr(rows(run), reduce)(1).mean(0)
    made = patch_map(run, TOKENS, reduce=reduce, pairs=PAIRS)
    np.testing.assert_allclose(made.values.ravel(), expected, rtol=1e-5)
    arrays = patch_map(as_arrays(run), TOKENS, reduce=reduce, pairs=PAIRS)
    np.testing.assert_allclose(arrays.values, made.values, rtol=1e-5)
    assert made.label.endswith(f"{reduce} over 4 heads (1.2, 3.4, 3.5, 5.0)")
    named = explain_map(run, TOKENS, "attention", reduce=reduce, pairs=PAIRS)
    np.testing.assert_allclose(named.values, made.values, rtol=1e-5)
    assert named.label == made.label


def test_methods_take_the_pairs(run: GenerationTrace) -> None:
    blanked = explain_map(run, TOKENS, "without_sinks", pairs=PAIRS).values.ravel()
    sinks = {p for one in run.sinks if one.layer in (1, 3, 5) for p in one.positions}
    columns = [k for k, p in enumerate(run.layout.vision_positions().tolist()) if p in sinks]
    assert columns and np.flatnonzero(np.isnan(blanked)).tolist() == sorted(columns)
    assert run.reference is not None
    generic = run.reference.attention.float().numpy()[0, SLOTS[0], SLOTS[1]].mean(0)
    above = rows(run).mean((0, 1))
    ratio = above / np.maximum(generic, 0.1 * generic.mean())
    made = explain_map(run, TOKENS, "relative", pairs=PAIRS).values.ravel()
    np.testing.assert_allclose(made, ratio, rtol=1e-4)
    with pytest.raises(ValueError, match="has none to choose"):
        explain_map(run, 1, "localising_heads", pairs=PAIRS)


def test_a_choice_takes_of_a_stack_what_it_has(run: GenerationTrace) -> None:
    choice, target = SlotChoice(pairs=PAIRS), Target((4,))
    stack = explain(run, target)
    expected = patch_map(run, 4, pairs=PAIRS)
    np.testing.assert_allclose(map_of(stack, choice).values, expected.values, rtol=1e-6)
    assert label_of(run, target, stack, choice) == expected.label
    values = stack.values.reshape(6, 8, -1).mean(1)
    layers = MapStack(values, (("token", (4,)), ("layer", run.layers)), run.layout, stack.unit)
    of_layers = map_of(layers, choice).values.ravel()
    np.testing.assert_allclose(of_layers, values[[1, 3, 5]].mean(0), rtol=1e-5)
    assert label_of(run, target, layers, choice).endswith("mean over layers 1, 3, 5")
    alone = MapStack(values[:1], (("token", (4,)),), run.layout, stack.unit)
    np.testing.assert_allclose(map_of(alone, choice).values.ravel(), values[0])


def test_a_view_has_their_shares_and_sinks(run: GenerationTrace) -> None:
    side, view = make_side("", run), View(picked=PickedHeads(PAIRS))
    mass = side.mass[TOKENS][:, SLOTS[0], SLOTS[1]]
    held = side.held[TOKENS][:, SLOTS[0], SLOTS[1]]
    image, part = side.shares(TOKENS, view)
    assert image == pytest.approx(mass.mean())
    assert part == pytest.approx((mass * held).mean() / mass.mean())
    assert sinks_of(run, view) == sinks_of(run, View(layers=(1, 3, 5)))
    drawing = Drawing(view, first=1)
    assert Drawing.of(json.loads(json.dumps(drawing.values()))) == drawing
    for more in ({"layers": (1,)}, {"heads": (1,)}, {"separate_layers": (1, 2)}):
        with pytest.raises(ValueError, match="Single heads are chosen; allowed"):
            View(picked=PickedHeads(PAIRS), **more)  # type: ignore[arg-type]


def test_what_a_run_does_not_have(run: GenerationTrace) -> None:
    for pairs in (((6, 0),), ((1, 2), (1, 8))):
        with pytest.raises(ValueError, match=r"heads is (6\.0|1\.8); the run kept layers 0-5 and"):
            patch_map(run, 1, pairs=pairs)
    mean = dataclasses.replace(
        run,
        attention=run.attention.float().mean(2, keepdim=True).half(),
        shares=run.shares.mean(2, keepdim=True),
        entropy=run.entropy.mean(2, keepdim=True),
        heads=(MEAN_HEAD,),
    )
    with pytest.raises(ValueError, match="kept only the mean over heads"):
        patch_map(mean, 1, pairs=PAIRS)
    with pytest.raises(ValueError, match="kept only the mean over heads"):
        HeadsFrom("localising").heads_of(mean)
    with pytest.raises(ValueError, match="no sink dimensions are known"):
        found_heads(dataclasses.replace(run, sinks=()), "sinks")
    with pytest.raises(ValueError, match="No head of this run feeds on sinks: "):
        found_heads(make_trace(sink_weight=0.0), "sinks")
    with pytest.raises(ValueError, match="allowed: localising, sinks"):
        found_heads(run, "all")


def test_what_users_say(run: GenerationTrace, tmp_path: Path) -> None:
    found = localising_heads([run])
    assert HeadsFrom.read(" localising ").heads_of(run) == found.picked()
    assert HeadsFrom.read("4.1, 5.0-2").heads_of(run).pairs == ((4, 1), (5, 0), (5, 1), (5, 2))
    assert HeadsFrom.read(found.as_json()).heads_of(run) == found.picked()
    found.save(tmp_path / "h.json")
    assert HeadsFrom.read(str(tmp_path / "h.json"), files=True).heads_of(run) == found.picked()
    assert found.picked().words.startswith("10 localising heads (0.6, 1.6, ")
    assert PickedHeads(((4, 1),)).words == "1 head (4.1)"
    many = PickedHeads(tuple((1, k) for k in range(13)), "feeds_on_sinks").words
    assert many.startswith("13 sink heads (1.0, ") and many.endswith("1.11, …)")


EMPTY = HeadList("localising", "synthetic", "000000000000", ())
OTHER = HeadList("localising", "another", "r", (HeadChoice(1, 1, 0.5, 0.1),))


@pytest.mark.parametrize(
    ("said", "files", "words"),
    [
        ("all", False, "allowed: localising, sinks, LAYER.HEAD"),
        ("4", False, "the JSON of a list"),
        ("x.json", False, "allowed: localising"),  # API users may not name files of the server
        ("/nowhere/x.json", True, "x.json cannot be read"),
        ("{", False, "heads_from is not a list of heads, because it is not JSON"),
        ("{}", False, "not a list of heads"),
        ("[" * 99, False, "allowed: localising"),
        ('{"a":' + "[" * 99, False, "nested too deeply"),
        (EMPTY.as_json(), False, "The list of heads is empty"),
        (OTHER.as_json(), False, "of another (r), and synthetic (000000000000) is loaded"),
        ("9.0", False, "heads_from names 9.0, and synthetic has 6 layers of 8 heads"),
        (",".join(f"1.{k}" for k in range(MOST_PICKED + 1)), False, "allowed: at most 1000"),
    ],
)
def test_what_users_may_not_say(run: GenerationTrace, said: str, files: bool, words: str) -> None:
    with pytest.raises(ValueError) as error:
        HeadsFrom.read(said, files=files).heads_of(run)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("given", [{"pairs": []}, {"pairs": [[1]]}, {"pairs": [[1, 1], [1, 1]]}])
def test_what_no_page_sends(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        PickedHeads(**given)
