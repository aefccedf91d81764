"""How a run was made: a control is named on its panel, and the patches it changed are marked."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sinkscope.capture.trace import GenerationTrace
from sinkscope.drawing.frames import Frames, panel_width
from sinkscope.drawing.panels import Painter
from sinkscope.drawing.run_summary import summary_line
from sinkscope.drawing.view import View, make_side, treated_of
from sinkscope.web.explore.export_files import ExportRequest, make_files, sides_of_view
from sinkscope.web.runs.pairs import pair_of
from sinkscope.web.runs.payload import _variant, build_payload
from sinkscope.web.runs.store import Run, run_summary
from tests.web.synthetic import make_pair
from tests.web.test_payload import unpack


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
    sides, _ = sides_of_view(run, ExportRequest("png", View()))
    assert list(sides) == ["Baseline", "VAR · control: random"]


def test_the_page_is_told_which_patches_a_control_treated() -> None:
    run = controlled()
    reported = _variant(run, "var", run.traces["var"])["treated"]
    assert reported == [{"layer": run.traces["var"].layers[1], "columns": [5, 9]}]
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


def set_up(same_text: bool = True) -> Run:
    pair = make_pair()
    settings = {"tau": 6.0, "keep": 0.6, "max_sink_share": None, "dialect": "paper"}
    report = {"settings": settings, "changed": True, "layers": [{"layer": n} for n in (0, 1, 2, 5)]}
    traces = {"baseline": pair["baseline"], "var": replace(pair["var"], var=report)}
    return Run({name: replace(one, seed=7) for name, one in traces.items()}, same_text=same_text)


LINE = (
    "model synthetic · VAR tau 6 · keep 0.6 · layers 0–2, 5 · paper dialect · control none · "
    "same text · greedy · seed 7"
)


def test_one_line_says_what_made_a_run() -> None:
    run = set_up()
    assert run_summary(run) == LINE
    assert unpack(build_payload(run))[0]["made"] == LINE
    assert "own text" in run_summary(set_up(same_text=False))
    var = run.traces["var"]
    heads = {**(var.var or {})["settings"], "heads": [[4, 1], [5, 0]]}
    with_heads = replace(var, var={**(var.var or {}), "settings": heads})
    assert "layers 0–2, 5 · heads 4.1, 5.0 · paper dialect" in summary_line(with_heads)
    assert "text" not in summary_line(run.traces)  # which does not know
    plain = Run({"baseline": run.first})
    assert run_summary(plain) == "model synthetic · no VAR · greedy · seed 7"
    warm = replace(run.first, settings={**run.first.settings, "temperature": 0.7})
    assert summary_line(warm).endswith("no VAR · temperature 0.7 · seed 7")
    assert "control random" in run_summary(controlled())


def test_two_runs_are_each_said_by_their_label() -> None:
    run = set_up()
    pair = pair_of((run, "baseline"), (run, "var"), ("One", "Two"))
    assert run_summary(pair) == ""
    other = replace(run.first, seed=8)
    assert summary_line({"A": run.first, "B": other}).split("   |   ") == [
        "A: model synthetic · no VAR · greedy · seed 7",
        "B: model synthetic · no VAR · greedy · seed 8",
    ]


def test_tables_and_traces_carry_it(tmp_path: Path) -> None:
    run = set_up()
    (path,) = make_files(run, ExportRequest("csv"), tmp_path)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    said = [(row["answer"], row["made_by"]) for row in rows if row["made_by"]]
    assert [name for name, _ in said] == ["baseline", "var"]
    assert "no VAR" in said[0][1] and said[1][1] == LINE
    for file_path, name in zip(
        make_files(run, ExportRequest("trace"), tmp_path), run.traces, strict=True
    ):
        opened = GenerationTrace.open(file_path)
        assert opened.extra["made"] == LINE and opened.tokens == run.traces[name].tokens


@pytest.mark.parametrize("width", [320, 1200])
def test_every_frame_of_an_animation_has_it(width: int) -> None:
    """The line is drawn in a frame that grows for it, and wrapped if the frame is narrow."""
    sides = [make_side("VAR", set_up().traces["var"])]
    drawn = {}
    for made in ("", LINE, LINE.replace("keep 0.6", "keep 0.7")):
        painter = Painter(sides, View(), panel_width(width, 1))
        drawn[made] = Frames(painter, width, made).frame([0])
    bare, with_line, other = drawn.values()
    assert with_line.shape[0] > bare.shape[0]
    changed = np.argwhere((with_line != other).any(-1))
    assert len(changed) and changed[:, 0].min() > bare.shape[0] - 40  # under everything else
    assert (with_line[-4:] == 255).all()  # and nothing is cut
