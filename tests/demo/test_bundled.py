"""The required figures of the bundled model: as its check wrote them, and measured again."""

import json

import pytest

from sinkscope.cli.demo import BUNDLED, var_rows
from sinkscope.config import VARSettings
from sinkscope.demo.check import CheckSettings, check
from sinkscope.demo.recipe import TAU, SinkTeaching


@pytest.fixture(scope="module")
def figures():
    return json.loads((BUNDLED / "check.json").read_text())


def test_it_answers(figures):
    assert figures["scenes"] >= 500
    rows = {kind: row["exact"] for kind, row in figures["answers"]["by_type"].items()}
    assert min(rows[kind] for kind in ("what", "colour", "exist", "where", "count")) >= 0.9
    assert rows["describe"] >= 0.9 and rows["left"] >= 0.97
    assert figures["answers"]["together"]["exact"] >= 0.95
    grids = figures["describe_by_grid"]
    assert grids["7 x 7"]["exact"] >= 0.9 and grids["10 x 10"]["exact"] >= 0.8
    assert min(row["nothing"] for row in figures["without_objects"].values()) >= 0.98


def test_var_visibly_matters(figures):
    plain, changed = figures["looking"], figures["changed"]
    pointing = {name: c["looking"]["mean_map_pointing"] for name, c in changed.items()}
    assert plain["best_head"]["pointing"] >= 0.95
    assert pointing["VAR"] >= 0.9 and pointing["VAR, keep 0"] >= 0.95
    assert plain["mean_map_pointing"] < pointing["VAR"] - 0.4
    assert abs(pointing["random tokens"] - plain["mean_map_pointing"]) < 0.1
    assert all(c["answers"]["together"]["exact"] >= 0.93 for c in changed.values())


def test_sinks_are_where_var_acts_and_off_objects(figures):
    layers = figures["sinks"]["layers"]
    assert figures["sinks"]["images_with_sinks"] >= 0.95
    assert layers[1]["held"] <= 0.05 and layers[5]["held"] <= 0.05
    assert all(0.25 <= row["held"] <= 0.5 and row["on_object"] == 0 for row in layers[2:5])


def test_the_folder_is_small():
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) <= 20e6


@pytest.mark.slow
def test_the_weights_are_those_that_were_measured(figures):
    """40 new scenes, within the limits of chance (three standard errors, for at most one half)."""
    var = VARSettings(SinkTeaching().dims, tau=TAU)
    anew = check(CheckSettings(BUNDLED, 40), {"VAR": var_rows(var, 6)})
    for got, was in (
        (anew["answers"]["together"], figures["answers"]["together"]),
        (anew["answers"]["by_type"]["describe"], figures["answers"]["by_type"]["describe"]),
    ):
        assert abs(got["exact"] - was["exact"]) < 0.12
    for got, was in (
        (anew["looking"], figures["looking"]),
        (anew["changed"]["VAR"]["looking"], figures["changed"]["VAR"]["looking"]),
    ):
        assert abs(got["mean_map_pointing"] - was["mean_map_pointing"]) < 0.15
