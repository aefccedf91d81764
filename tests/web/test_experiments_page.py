"""The Experiments tab without a model: controls, the data of a result, texts before a run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from sinkscope.experiments.catalogue import EXPERIMENTS
from sinkscope.experiments.result import Chart, Findings, Result, Series, Table, Verdict
from sinkscope.experiments.settings import StudySettings
from sinkscope.setting import REQUIRED, user_settings
from sinkscope.web.components.assets import read_static
from sinkscope.web.components.controls import box, control_value
from sinkscope.web.experiments.estimate import estimate_text
from sinkscope.web.experiments.payload import MOST_ROWS, build_experiment_payload
from sinkscope.web.experiments.tab import _values_of, choosing, picking
from sinkscope.web.runs.loaded_model import LoadState
from tests.web.scripted import fake_handle
from tests.web.test_payload import unpack

CLASSES = [StudySettings, *(row.settings for row in EXPERIMENTS)]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_form_that_nobody_touched_says_the_defaults(cls: type[Any]) -> None:
    said = {}
    with gr.Blocks():
        for one in user_settings(cls):
            component: Any = box(one, 0 if one.default is REQUIRED else None)
            sent = component.postprocess(component.value)
            sent = "" if isinstance(component, gr.Textbox) and sent is None else sent
            said[one.field] = control_value(one, component.preprocess(sent))
    needed = {one.field: 0 for one in user_settings(cls) if one.default is REQUIRED}
    assert cls(**said) == cls(**needed)


def test_numbers_that_may_be_left_out_are_read_from_text() -> None:
    tau, top = (
        next(one for row in CLASSES for one in user_settings(row) if one.name == name)
        for name in ("tau", "top")
    )
    assert control_value(tau, " 4.5 ") == 4.5 and control_value(tau, " ") is None
    assert control_value(top, "3") == 3 and isinstance(control_value(top, "3"), int)
    for text in ("3.5", "inf", "x", "1e999"):
        with pytest.raises(ValueError, match="top is "):
            control_value(top, text)


def result_with(verdict: Verdict | None, rows: int = 2) -> Result:
    table = Table(
        "t",
        "T",
        ("arm", "n", "x", "x_low", "x_high", "found"),
        tuple((f"a{i}", i, -0.25, -0.5, 1e-9, True) for i in range(rows)),
    )
    bare = Table("b", "B", ("k", "x_low"), ((None, float("nan")),))
    chart = Chart("c", "C", "lines", (0.0, 1.0), (Series("plain", (1.0, None)),), y_label="share")
    findings = Findings(("Said.",), (table, bare), (chart, chart), verdict, {}, ("Noted.",))
    return Result(
        experiment="scan",
        question="Why?",
        settings={"experiment": {"layers": [0, 2], "top": None, "on": True}, "study": {}},
        model={"id": "<b>m</b>", "revision": "r", "dtype": "float32", "device": "cpu"},
        samples=("one", "two"),
        source="the test",
        groups={"sinks": 3},
        findings=findings,
        versions={"torch": "2"},
        seconds=1.25,
    )


def sent(result: Result, **files: str) -> dict[str, Any]:
    header, _ = unpack(build_experiment_payload(result, files, {}))
    return header


def test_the_verdict_in_words_with_what_it_rests_on() -> None:
    text = (
        "A (causal): no. Of the excess (0.1 [0, 0.2]), 29% goes.",
        "One sample leaves no interval.",
        "B (specific): yes. AUC 1 [1, 1].",
    )
    limits = ("A: at least 80% of it goes", "B: AUC at least 0.95")
    found = sent(result_with(Verdict(False, True, text, limits)))["verdict"]
    a, b = found["conditions"]
    assert found["word"] == "negative" and found["more"] == ["One sample leaves no interval."]
    assert (a["holds"], a["word"]) == (False, "does not hold")
    assert a["text"] == "Of the excess (0.1 [0, 0.2]), 29% goes."
    assert a["threshold"] == "at least 80% of it goes"
    assert (b["holds"], b["word"], b["text"]) == (True, "holds", "AUC 1 [1, 1].")
    assert b["threshold"] == "AUC at least 0.95"

    found = sent(result_with(Verdict(None, True, text[2:], limits[1:])))["verdict"]
    a, b = found["conditions"]
    assert found["word"] == "open" and a["word"] == "not tested" and a["text"] == ""
    assert sent(result_with(Verdict(True, True, text)))["verdict"]["word"] == "positive"
    assert sent(result_with(None))["verdict"] is None


def test_tables_figures_and_where_they_come_from() -> None:
    header = sent(result_with(None, MOST_ROWS + 3), **{"t.csv": "u", "c.png": "p", "s.zip": "z"})
    first, bare = header["tables"]
    assert first["columns"] == ["arm", "n", "x", "found"]
    assert first["rows"][0] == ["a0", "0", "−0.25 [−0.5, 1e−09]", "yes"]
    assert first["texts"] == [True, False, False, False]
    assert len(first["rows"]) == MOST_ROWS and first["left"].startswith("3 more rows")
    assert first["csv"] == {"name": "t.csv", "url": "u"}
    assert bare["columns"] == ["k", "x_low"] and bare["rows"] == [["–", "–"]]
    assert header["files"] == [{"name": "s.zip", "url": "z"}]  # the given files
    assert header["figures"][0]["alt"] == "C. Lines of share over layer: plain."
    facts = dict(header["facts"])
    assert facts["Settings"] == "layers 0,2; top left out; on true"
    assert facts["Model"] == "<b>m</b>, revision r" and facts["Tokens"] == "sinks 3"
    assert "2 of the test: one, two" in facts["Samples"]


def test_before_a_run_it_is_said_how_sinks_are_known() -> None:
    def words(handle: Any, name: str = "scan", source: str = "Bundled") -> tuple[str, str]:
        said = estimate_text(LoadState("ready", "x", working=handle), name, source)
        return said["kind"], said["text"]

    assert words(fake_handle()) == (
        "quiet",
        "fake: layers 0 to 5. Sinks by its profile: dimensions 3, 5, tau 6.",
    )
    assert "no sink profile, so sinks are the vision tokens" in words(fake_handle(profile=False))[1]
    text = fake_handle(profile=False)
    text.family = SimpleNamespace(sees_images=False)
    kind, said = words(text)
    assert kind == "quiet" and "A text model: the first token counts as the sink" in said
    assert "Upload a .txt file" in words(text, source="My own")[1]
    kind, said = words(text, "vision-or-text")
    assert kind == "warn" and said.startswith("fake is a text model and sees no images;")
    assert estimate_text(LoadState(), "scan", "Bundled")["text"].startswith("No model is loaded.")
    loading = LoadState("loading", "x", "Loading the weights")
    assert "still loading" in estimate_text(loading, "scan", "Bundled")["text"]


def test_choosing_an_experiment() -> None:
    blocks = {row.name: None for row in EXPERIMENTS}
    info, *shown = choosing(blocks)("cut-edges")
    assert info["info"] == next(r.question for r in EXPERIMENTS if r.name == "cut-edges")
    assert [name for name, one in zip(blocks, shown, strict=True) if one["visible"]] == [
        "cut-edges"
    ]
    for data, name in (
        ({"name": "scan"}, "scan"),
        ({"name": "x"}, None),
        ("x", None),
        (None, None),
    ):
        found = picking(SimpleNamespace(_data=data))  # type: ignore[arg-type]
        assert found == name or (name is None and isinstance(found, dict))
    assert _values_of({"scan/a": 1, "scan-2/a": 2, "study/a": 3}, "scan") == {"a": 1}


def test_texts_never_become_part_of_a_template() -> None:
    for part in (read_static("experiments.html"), read_static("experiments.css")):
        assert not any(sign in part for sign in ("${", "{{", "`", "\\", "<script"))
    script = read_static("experiments")
    assert "innerHTML" not in script and "outerHTML" not in script
