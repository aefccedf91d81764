"""The one scale: hand-computed cases, laws, and the browser's code on the same inputs."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinkscope.drawing.scale import (
    Scale,
    clipped,
    difference_of,
    percent,
    scaling,
    signed_scaling,
    times,
    value_format,
)
from sinkscope.web.components.assets import STATIC
from tests.drawing.scale_vectors import FILE, vectors

KINDS = get_args(Scale)
VECTORS = json.loads(FILE.read_text(encoding="utf-8"))


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


# --- by hand --------------------------------------------------------------------------------------


def test_a_clip_leaves_out_the_strongest_three_patches_at_least() -> None:
    made = scaling([np.arange(1, 101)], "percentile")
    assert (made.low, made.high, made.over) == (0, 97, 3)
    assert made.words == (
        "percentile clip: linear to the 97.0th percentile; the 3 strongest patches lie above"
    )
    assert made.ticks[0] == (0.0, "0 %") and made.ticks[-1] == (1.0, "≥ 9700.0 %")
    assert [clipped(n) for n in (3, 4, 8, 100, 1024)] == [0, 1, 2, 3, 11]


def test_a_clip_of_a_pool_is_as_deep_as_that_of_its_maps() -> None:
    maps = [np.arange(1, 101), np.arange(101, 201)]
    assert scaling(maps).high == 194  # three of each


def test_a_clip_spares_patches_that_are_the_map() -> None:
    made = scaling([f32(0.55, 0.43, 0.01, *[0.0005] * 20)])
    assert made.high == np.float32(0.43) and made.over == 1
    assert "the strongest patch lies above" in made.words
    alone = scaling([f32(0.9, *[0.0] * 20)])
    assert alone.high == np.float32(0.9)
    assert alone.words == "percentile clip: linear, nothing clipped"


def test_log_spans_three_decades() -> None:
    made = scaling([f32(0, 0.0001, 0.001, 0.01, 1)], "log")
    np.testing.assert_allclose(
        made.unit(f32(0, 0.0001, 0.001, 0.01, 1)), [0, 0, 0, 1 / 3, 1], atol=1e-7
    )
    assert [text for _, text in made.ticks] == ["0.10 %", "1.00 %", "10.0 %", "100.0 %"]


def test_equal_values_share_the_lowest_of_their_ranks() -> None:
    values = f32(0.1, 0.3, 0.3, 0.9)
    made = scaling([values], "rank")
    np.testing.assert_allclose(made.unit(values), [0, 1 / 3, 1 / 3, 1])
    assert made.value(1.0) == np.float32(0.9) and made.value(0.34) == np.float32(0.3)
    # A patch without any attention is never coloured, however many of them there are.
    assert scaling([f32(0, 0, 0, 0, 1)], "rank").unit(f32(0, 1)).tolist() == [0, 1]
    assert scaling([f32(2, 2, 2)], "rank").unit(f32(2)).tolist() == [0]


def test_linear_over_a_pool() -> None:
    assert scaling([f32(1, 2), f32(2, 4)], "linear").high == 4


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_see(kind: Scale) -> None:
    for maps in ([np.zeros(4)], [np.full(3, np.nan)], []):
        made = scaling(maps, kind)
        assert made.empty and made.words == "no attention here" and made.ticks == ((0.0, "0"),)
        assert made.unit(f32(0, 0.5)).tolist() == [0, 0] and made.value(0.7) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_missing_values_are_no_part_of_the_scale(kind: Scale) -> None:
    values = np.linspace(0.001, 0.2, 40, dtype=np.float32)
    some = values.copy()
    some[[3, 39]] = np.nan
    made, without = scaling([some], kind), scaling([np.delete(values, [3, 39])], kind)
    assert (made.low, made.high, made.words) == (without.low, without.high, without.words)
    assert np.isnan(made.unit(some)).nonzero()[0].tolist() == [3, 39]
    with pytest.raises(ValueError, match="not finite"):
        scaling([f32(1, np.inf)], kind)


def test_signed_values_have_zero_in_the_middle() -> None:
    values = f32(*[0.1] * 96, -5, 7, 9, 11)
    made = signed_scaling([values])  # of 100 patches three are clipped
    assert (made.low, made.high, made.over) == (-5, 5, 3)
    assert made.unit(f32(-9, -5, 0, 2.5, 7)).tolist() == [0, 0, 0.5, 0.75, 1]
    assert [text for _, text in made.ticks] == ["≤ −500.0 %", "0", "≥ +500.0 %"]
    nothing = signed_scaling([np.zeros(9)])
    assert nothing.empty and nothing.unit(f32(0, 1)).tolist() == [0.5, 0.5]
    assert nothing.words == "no difference anywhere"


def test_a_difference_of_rounding_is_none() -> None:
    left = f32(0.1, 0.02, 0.3)
    assert not difference_of(left, left * np.float32(1 + 2**-11)).any()
    assert not difference_of(left, left[::-1].copy(), idle=True).any()
    moved = difference_of(left, f32(0.1, 0.04, np.nan))
    assert moved[1] == np.float32(0.04) - np.float32(0.02) and np.isnan(moved[2])


def test_fixed_ends() -> None:
    made = scaling([f32(0.05, 0.3)], "linear", limits=(0.0, 0.2))
    assert made.unit(f32(0.05, 0.3)).tolist() == pytest.approx([0.25, 1]) and made.over == 1
    assert made.ticks[-1] == (1.0, "≥ 20.0 %") and made.words == "linear from 0 % to 20.0 %"


def test_numbers_keep_small_shares() -> None:
    shares = (0, 1e-7, 0.00012, 0.005, 0.0123, 0.0999, 1)
    said = "|".join(map(percent, shares))
    assert said == "0 %|1e-5 %|0.012 %|0.50 %|1.23 %|10.0 %|100.0 %"
    assert "|".join(map(times, (0, 4e-5, 0.3, 2.46, 12.4))) == "0 ×|4e-5 ×|0.3 ×|2.5 ×|12 ×"
    assert (
        value_format("attention mass") is percent
        and value_format("times the generic prompt") is times
    )
    assert value_format("nats")(0.12345) == "0.123"


# --- laws -----------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60), st.sampled_from(KINDS))
def test_scales_keep_order_and_stay_in_range(numbers: list[float], kind: Scale) -> None:
    values = np.sort(np.array(numbers, np.float32))
    made = scaling([values], kind)
    places = made.unit(values)
    assert (np.diff(places) >= 0).all() and places.min() >= 0 and places.max() <= 1
    assert not places[values == 0].any()
    if not made.empty and kind != "rank":
        assert places[-1] == pytest.approx(1)


@pytest.mark.parametrize("kind", ["percentile", "linear", "log"])
def test_the_bar_gives_values_back(kind: Scale) -> None:
    made = scaling([np.geomspace(0.001, 0.4, 100)], kind)
    for place in (0.0, 0.3, 1.0):
        assert made.unit(made.value(place)) == pytest.approx(place, abs=1e-5)


# --- the browser's code on the same inputs --------------------------------------------------------

RUN = """(vectors) => vectors.map((v) => {
  const maps = v.maps.map((m) => Float32Array.from(m, (x) => (x == null ? NaN : x)));
  const said = { percent, times }[v.said], n = maps[0].length;
  const rolled = maps[0].map((_, i) => maps[0][(i + n * 3 - 3) % n]);
  const result = ({ low, high, over, ticks, words, at }, some) => ({
    low, high, over, ticks, words,
    places: some.map((m) => Array.from(m, (x) => (Number.isNaN(at(x)) ? null : at(x)))),
  });
  const made = {}, moved = [differenceOf(maps[0], rolled)];
  for (const kind of ["percentile", "linear", "log", "rank"])
    made[kind] = result(makeScale(kind, maps, said), maps);
  return { ...made, signed: result(makeSigned(moved, said), moved) };
})"""


def page_code() -> str:
    """The page's own code, run without a page."""
    sources = [STATIC / "inspector" / name for name in ("00_base.js", "30_scale.js")]
    page = "const element = { querySelector: () => null, closest: () => null };"
    return "\n".join((page, *(source.read_text(encoding="utf-8") for source in sources)))


def in_node(expression: str, text: str) -> Any:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on this machine; tests/web/test_one_scale.py does it in Chromium")
    program = f"{page_code()}\nconsole.log(JSON.stringify({expression}));"
    done = subprocess.run(
        [node, "-e", program], input=text, capture_output=True, text=True, timeout=60, check=True
    )
    return json.loads(done.stdout)


def agree(found: list[dict[str, Any]]) -> None:
    assert len(found) == len(VECTORS) > 15
    for case, results in zip(VECTORS, found, strict=True):
        assert set(results) == {*KINDS, "signed"}
        for kind, got in results.items():
            wanted, where = case["results"][kind], f"{case['name']}, {kind}"
            for key in ("over", "ticks", "words"):
                assert got[key] == wanted[key], where
            assert [got["low"], got["high"]] == pytest.approx([wanted["low"], wanted["high"]]), (
                where
            )
            for mine, theirs in zip(wanted["places"], got["places"], strict=True):
                places = np.array(theirs, float), np.array(mine, float)
                np.testing.assert_allclose(*places, atol=1e-6, err_msg=where)


def test_the_vectors_are_those_of_this_code() -> None:
    """If this fails: `python -m tests.drawing.scale_vectors`."""
    made = json.loads(json.dumps(list(vectors())))
    assert [{**case, "results": 0} for case in made] == [{**c, "results": 0} for c in VECTORS]
    agree([case["results"] for case in made])


@pytest.mark.parametrize(("difference", "idle"), [("a * (1 + 2 ** -11)", "false"), ("0.7", "true")])
def test_the_page_takes_rounding_for_no_difference(difference: str, idle: str) -> None:
    values = "Float32Array.of(0.1, 0.02, 0.3)"
    made = f"[...differenceOf({values}, {values}.map((a) => {difference}), {idle})]"
    assert in_node(made, "") == [0, 0, 0]


def test_the_page_agrees_in_node() -> None:
    agree(in_node(f"({RUN})(JSON.parse(require('fs').readFileSync(0)))", FILE.read_text("utf-8")))
