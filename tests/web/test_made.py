"""What made a run: a control is named on its panel and the patches that it treated are marked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sinkscope.capture.trace import GenerationTrace
from sinkscope.drawing.panels import Painter
from sinkscope.drawing.view import View, make_side, treated_of
from sinkscope.web.exporting import Wanted, sides_of_view
from sinkscope.web.payload import _variant
from sinkscope.web.store import Run
from tests.web.synthetic import make_pair


def controlled(control: str = "random") -> Run:
    pair = make_pair()
    var: GenerationTrace = pair["var"]
    first = var.layout.grids[0].positions
    report = {
        **(var.var or {}),
        "settings": {**((var.var or {}).get("settings") or {}), "control": control},
        "layers": [{"layer": var.layers[1], "positions": [first[5], first[9]]}],
    }
    return Run({**pair, "var": replace(var, var=report)})


def test_a_control_is_named_on_its_panel_and_in_files() -> None:
    run = controlled()
    assert run.label("var") == "VAR · control: random"
    assert run.label("baseline") == "Baseline"
    assert controlled("none").label("var") == "VAR"
    sides, _ = sides_of_view(run, Wanted("png", View()))
    assert list(sides) == ["Baseline", "VAR · control: random"]


def test_the_page_is_told_which_patches_a_control_treated() -> None:
    run = controlled()
    told = _variant(run, "var", run.traces["var"])["treated"]
    assert told == [{"layer": run.traces["var"].layers[1], "columns": [5, 9]}]
    plain = controlled("none")
    assert _variant(plain, "var", plain.traces["var"])["treated"] == []


def test_files_mark_the_same_patches_in_the_chosen_layers() -> None:
    run = controlled()
    trace = run.traces["var"]
    assert treated_of(trace, View()) == (5, 9)
    assert treated_of(trace, View(layers=(trace.layers[0],))) == ()
    drawn = {}
    for name, one in (("with", run), ("without", controlled("none"))):
        side = make_side("VAR", one.traces["var"])
        drawn[name] = Painter([side], View(), 300).panels([0])[0].pixels
    changed = np.argwhere((drawn["with"] != drawn["without"]).any(-1))
    grid = trace.layout.grids[0]
    cells = {
        (int(y * grid.rows / drawn["with"].shape[0]), int(x * grid.columns / 300))
        for y, x in changed
    }
    assert cells == {divmod(5, grid.columns), divmod(9, grid.columns)}
