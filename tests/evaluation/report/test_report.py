"""Reports of runs with known answers: they hide nothing and run nothing."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from html import escape
from pathlib import Path
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from sinkscope.evaluation.report.charts import Bar, Dot, curve, forest, ticks
from sinkscope.evaluation.report.gather import _control, gather, sweeps
from sinkscope.evaluation.report.settings import ReportSettings
from sinkscope.evaluation.report.terminal import show
from sinkscope.evaluation.report.write import Report, make_report, write_report
from sinkscope.evaluation.statistics.intervals import mcnemar
from sinkscope.evaluation.statistics.settings import CompareSettings
from sinkscope.evaluation.tasks.demo import read
from tests.evaluation.report.made_up_run import record, scored, write_run

QUICK = ReportSettings(data=False)
FEW = CompareSettings(resamples=200)
# 12 fixed, 2 broken, 50 right in both, 36 in neither.
BASE = [1.0] * 50 + [0.0] * 12 + [1.0] * 2 + [0.0] * 36
MORE = [1.0] * 50 + [1.0] * 12 + [0.0] * 2 + [0.0] * 36
EVIL = "<script>alert(1)</script> | **x** [y](javascript:z)"


def report_of(folder: Path, **scores: list[float | None]) -> Report:
    return make_report([write_run(folder, scored(scores))], QUICK, FEW)  # type: ignore[arg-type]


def text_of(report: Report) -> str:
    """The terminal's text without line breaks."""
    out = io.StringIO()
    show(report.sections, Console(file=out, width=400))
    return out.getvalue()


def rows(report: Report, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(report.files[name])))


def test_a_gain_a_loss_and_nothing_are_said_in_the_same_words(tmp_path: Path) -> None:
    p = f"p = {mcnemar(12, 2):.3f}"
    gain = report_of(tmp_path / "gain", default=BASE, var=MORE)
    loss = report_of(tmp_path / "loss", default=MORE, var=BASE)
    none = report_of(tmp_path / "none", default=BASE, var=BASE)
    for report, words in (
        (
            gain,
            "var is better than default: accuracy 62.0 % against 52.0 % (+10.0 percentage points",
        ),
        (
            loss,
            "var is worse than default: accuracy 52.0 % against 62.0 % (−10.0 percentage points",
        ),
        (none, "No difference shown between var and default: accuracy 52.0 % against 52.0 % (+0.0"),
    ):
        for text in (text_of(report), report.files["report.html"], report.files["report.md"]):
            assert words in " ".join(text.replace("\\", "").split())
    assert p in text_of(gain) and p in text_of(loss)
    assert "12 questions became better, 2 worse" in text_of(gain)
    assert "with a probability of about 80 %" in text_of(none)
    assert "no difference shown" in none.files["report.html"]
    assert rows(loss, "differences.csv")[0]["verdict"] == "worse"


def test_numbers_in_csv_are_whole(tmp_path: Path) -> None:
    report = report_of(tmp_path / "run", default=BASE, var=MORE)
    first = rows(report, "differences.csv")[0]
    assert float(first["difference"]) == pytest.approx(0.1)
    assert float(first["p"]) == mcnemar(12, 2)
    assert (first["fixed"], first["broken"], first["same"], first["questions"]) == (
        "12",
        "2",
        "86",
        "100",
    )
    figures = rows(report, "figures.csv")
    assert {row["figure"] for row in figures} == {"accuracy", "macro_accuracy", "unparsable"}
    assert len(rows(report, "changed.csv")) == 14
    changed = rows(report, "changed.csv")[0]
    assert (changed["question"], changed["change"], changed["answer_before"]) == (
        "q50",
        "fixed",
        "no",
    )


def test_questions_without_an_answer_are_listed_and_counted(tmp_path: Path) -> None:
    scores: list[float | None] = [*BASE, None, None]
    report = report_of(tmp_path / "run", default=scores, var=[*MORE, None, None])
    (section,) = report.sections
    assert not report.complete
    assert (section.expected, section.answered) == (102, 100)
    for text in (text_of(report), report.files["report.html"], report.files["report.md"]):
        assert "THE RUN IS NOT COMPLETE" in text
        assert "2 failed and are in no figure" in text
        assert "The image is broken." in text and "q101" in text
    assert len(rows(report, "failures.csv")) == 4
    assert "52.0 %" in text_of(report)


def test_a_run_that_was_stopped_says_how_much_is_there(tmp_path: Path) -> None:
    records = scored({"default": BASE, "var": MORE})
    stopped = write_run(tmp_path / "stopped", records, questions=500)
    killed = write_run(tmp_path / "killed", records, finished=False)
    report = make_report([stopped, killed], QUICK, FEW)
    assert not report.complete
    assert "100 of 500 questions" in text_of(report)
    assert "100 of an unknown number of questions" in text_of(report)
    assert "THE RUN IS NOT COMPLETE" in text_of(report)


def test_a_stopped_session_does_not_know_how_many_questions_there_are(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", scored({"default": BASE, "var": MORE}), questions=184)
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "ended": False}))
    assert "100 of an unknown number of questions" in text_of(make_report([run], QUICK, FEW))


def test_a_run_in_which_everything_failed_has_a_report(tmp_path: Path) -> None:
    report = report_of(tmp_path / "run", default=[None] * 3, var=[None] * 3)
    text = text_of(report)
    assert "Nothing can be compared: No question has an answer of every method" in text
    assert "3 failed" in text
    assert report.sections[0].comparison is None


def test_one_method_alone_has_figures_and_no_comparison(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", scored({"default": BASE}), methods=["default"])
    report = make_report([run], QUICK, FEW)
    assert "default is the only method, so nothing is compared." in text_of(report)
    assert "52.0 %" in report.files["report.md"]


def test_a_gain_that_the_control_has_too_is_not_the_sinks(tmp_path: Path) -> None:
    scores = {"default": BASE, "var": MORE, "var-random": MORE}
    run = write_run(tmp_path / "run", scored(scores), methods=["default", "var", "var-random"])
    text = text_of(make_report([run], QUICK, CompareSettings(resamples=200, alpha=0.2)))
    assert "No difference shown between var and var-random" in text
    assert "the gain of var is not shown to come from the sinks" in text


def test_a_sweep_is_a_curve_and_a_family(tmp_path: Path) -> None:
    names = ["default", "var keep=0", "var keep=0.3", "var keep=0.6"]
    run = write_run(
        tmp_path / "run",
        scored(dict(zip(names, [BASE, MORE, MORE, BASE], strict=True))),
        sweeps=["keep=0,0.3,0.6"],
    )
    report = make_report([run], QUICK, FEW)
    (sweep,) = report.sections[0].sweeps
    assert (sweep.setting, [point.value for point in sweep.points]) == ("keep", [0.0, 0.3, 0.6])
    assert "accuracy by keep of var" in report.files["report.html"]
    assert "after Holm&#x27;s correction for 3 comparisons" in report.files["report.html"]


@pytest.mark.parametrize(
    ("name", "twin", "pair"),
    [
        ("var", "var-random", True),
        ("var keep=0.3", "var-random keep=0.3", True),
        ("var:keep=0,tau=3", "var-random:keep=0,tau=3", True),
        ("var keep=0.3", "var-random keep=0.6", False),
        ("var-random", "var-random", False),
        ("default", "var-random", False),
    ],
)
def test_a_method_and_its_control(name: str, twin: str, pair: bool) -> None:
    assert _control(name, twin) is pair


def test_sweeps_by_name() -> None:
    found = sweeps(
        ["default", "var keep=0.1", "var-random keep=0.1", "var keep=0.5", "var dialect=paper"]
    )
    assert [(one.name, one.setting, len(one.points)) for one in found] == [("var", "keep", 2)]


def test_whatever_data_and_models_say_is_escaped(tmp_path: Path) -> None:
    records = [
        record("q<b>1</b>", 0, "default", 0.0, answer=EVIL, extraction=EVIL, category="<i>c</i>"),
        record("q<b>1</b>", 0, "var", 1.0, answer=EVIL, truth=EVIL, category="<i>c</i>"),
        record("q2", 1, "default", None, error=EVIL, category="<i>d</i>"),
        record("q2", 1, "var", None, error=EVIL, category="<i>d</i>"),
    ]
    folder = write_run(tmp_path / "<b>run & more", records)
    report = make_report([folder], QUICK, FEW)
    page = report.files["report.html"]
    for tag in ("<script", "<b>", "<i>", "javascript:z)</a>"):
        assert tag not in page
    assert "&lt;script&gt;" in page
    assert "default-src 'none'" in page.replace("&#x27;", "'")
    assert "http" not in page.split("<body>")[0].replace("http-equiv", "")
    rendered = MarkdownIt("commonmark").enable("table").render(report.files["report.md"])
    for tag in ("<script", "<b>", "<i>", "<a ", "<em>", "<strong>x"):
        assert tag not in rendered


def test_rich_markup_of_data_is_text(tmp_path: Path) -> None:
    records = scored({"default": [1.0, 0.0], "var": [1.0, 1.0]}, category="[bold]x[/bold]")
    other = [
        dataclasses.replace(one, question=f"z{one.question}", index=one.index + 2)
        for one in records
    ]
    both = [
        *records,
        *(dataclasses.replace(one, category="[/]", cluster=one.question) for one in other),
    ]
    text = text_of(make_report([write_run(tmp_path / "run", both)], QUICK, FEW))
    assert "[bold]x[/bold]" in text and "[/]" in text


def test_charts_are_xml_and_their_numbers_are_drawn(tmp_path: Path) -> None:
    bars = [Bar("a & <b>", 1.0, -2.0, 4.0, "none"), Bar("c", float("nan"), 0, 0, "none")]
    drawn = ElementTree.fromstring(forest(bars, "x", "t"))
    assert len(list(drawn.iter("circle"))) == 1
    line = next(one for one in drawn.iter("line") if one.get("class") == "none")
    dot = next(drawn.iter("circle"))
    assert float(line.get("x1", 0)) < float(dot.get("cx", 0)) < float(line.get("x2", 0))
    assert forest([bars[1]], "x", "t") == ""
    dots = [Dot(0.0, 50, 45, 55), Dot(0.6, 60, 55, 65)]
    curved = ElementTree.fromstring(curve(dots, Dot(0, 52, 50, 54), ("keep", "%"), "t"))
    low, high = [float(one.get("cy", 0)) for one in curved.iter("circle")]
    assert high < low  # more is higher up
    assert curve(dots[:1], None, ("keep", "%"), "t") == ""


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [(-2.0, 4.0, [-2, -1, 0, 1, 2, 3, 4]), (0.0, 0.0, None), (-0.3, 0.1, None), (5.0, 5.0, None)],
)
def test_ticks_reach_over_both_ends(low: float, high: float, marks: list[float] | None) -> None:
    found = ticks(low, high)
    assert found[0] <= low + 1e-9 and found[-1] >= high - 1e-9
    assert 2 <= len(found) <= 12
    if marks:
        assert found == pytest.approx(marks)


def test_changed_questions_are_read_from_the_data_again(tmp_path: Path) -> None:
    """With the scenes' own ids, so that texts and images exist."""
    name, kind = "scene-0-colour", "colour"
    asked = next(iter(read(None)))
    name, kind = asked.id, asked.category
    records = [
        record(name, 0, "default", 0.0, category=kind),
        record(name, 0, "var", 1.0, category=kind),
    ]
    run = write_run(tmp_path / "run", records)
    report = make_report([run], ReportSettings(), CompareSettings(resamples=50))
    page = report.files["report.html"]
    assert "data:image/jpeg;base64," in page
    assert 'alt="image 0"' in page  # images count from 0
    assert escape(asked.text) in page
    assert rows(report, "changed.csv")[0]["text"] == asked.text


def test_the_data_is_read_without_the_judge_that_the_run_had(tmp_path: Path) -> None:
    asked = next(iter(read(None)))
    said = {"category": asked.category}
    records = [record(asked.id, 0, "default", 0.0, **said), record(asked.id, 0, "var", 1.0, **said)]
    judge = {"judge": "llm", "judge_model": "some"}
    report = make_report([write_run(tmp_path / "run", records, run=judge)], None, FEW)
    assert "data:image/jpeg;base64," in report.files["report.html"]
    assert "some at OpenAI" in report.files["report.md"]


def test_data_that_is_gone_leaves_ids(tmp_path: Path) -> None:
    records = scored({"default": [0.0], "var": [1.0]})
    run = write_run(
        tmp_path / "run", records, run={"task": "jsonl", "data": str(tmp_path / "gone.jsonl")}
    )
    report = make_report([run], ReportSettings(), CompareSettings(resamples=50))
    assert "The data cannot be opened" in report.files["report.html"]
    assert "q0" in report.files["report.md"]


def test_another_judge_stands_beside_the_protocols(tmp_path: Path) -> None:
    own = {"own": {"judge": "exact_match", "score": 0.0, "extraction": "x"}, "warning": "Too high."}
    records = scored({"default": BASE, "var": MORE}, details=own)
    run = write_run(tmp_path / "run", records, run={"judge": "substring-legacy"})
    text = " ".join(text_of(make_report([run], QUICK, FEW)).split())
    assert "Warning: Too high. (200 answers)" in text
    assert "By the protocol's own judge, exact_match" in text
    assert "0.0 %" in text


def test_files_are_written_and_mistakes_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", scored({"default": BASE, "var": MORE}))
    report = make_report([run], QUICK, FEW)
    paths = write_report(report, tmp_path / "out" / "deep")
    assert sorted(path.name for path in paths) == [
        *("changed.csv", "differences.csv", "failures.csv", "figures.csv"),
        *("report.html", "report.md"),
    ]
    assert all(path.stat().st_size for path in paths)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        write_report(report, tmp_path / "file" / "under")
    with pytest.raises(ValueError, match="given twice"):
        gather([run, run], CompareSettings())
    with pytest.raises(ValueError, match="is not a folder"):
        gather([tmp_path / "nothing"], CompareSettings())
    with pytest.raises(ValueError, match="flips is -1"):
        ReportSettings(flips=-1)
    with pytest.raises(ValueError, match="maps is 70; allowed: 0 to flips, 60"):
        ReportSettings(maps=70)


def test_records_of_a_method_that_the_run_does_not_name_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", scored({"default": BASE, "other": BASE}))
    with pytest.raises(ValueError, match=r"records of .other., which its run"):
        make_report([run], QUICK, FEW)


def test_several_runs_have_a_summary(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", scored({"default": BASE, "var": MORE}))
    two = write_run(tmp_path / "two", scored({"default": MORE, "var": BASE}))
    report = make_report([one, two], QUICK, FEW)
    text = report.files["report.md"]
    assert "| one | demo (fixed) | var | 100 | 62.0 % | +10.0 | better |" in text
    assert "| two | demo (fixed) | var | 100 | 52.0 % | −10.0 | worse |" in text
