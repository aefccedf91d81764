"""A run seen from outside: progress, stopping, its samples and settings, its files."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image

from sinkscope.experiments.compare import compare
from sinkscope.experiments.figures import draw
from sinkscope.experiments.neurons import NoNeuronsError
from sinkscope.experiments.result import Chart, Findings, Result, Series, Table, Verdict
from sinkscope.experiments.run import run_experiment
from sinkscope.experiments.samples import TextSample, have_images
from sinkscope.experiments.saving import csv_text, save_result
from sinkscope.experiments.settings import (
    AblateMLPSettings,
    CutEdgesSettings,
    LowerAttentionSettings,
    ScanSettings,
    StudySettings,
)
from sinkscope.jobs.job import Stopped
from sinkscope.models.loading import ModelHandle, load_model
from sinkscope.sinks.samples import Sample
from tests.text_models import TEXT, save_text_model


@pytest.fixture(scope="module")
def handle(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    folder = save_text_model(tmp_path_factory.mktemp("text"), "qwen3")
    return load_model(str(folder), device="cpu", dtype="float32")


SAMPLES = tuple(TextSample(str(i), f"{TEXT} {word}") for i, word in enumerate(("yes", "no", "a")))
FEW = StudySettings(bootstrap=100, controls=1, answer_tokens=3)


@pytest.mark.tiny
def test_progress_rises_to_its_end(handle: ModelHandle) -> None:
    reports: list[tuple[int, int, str]] = []
    settings = AblateMLPSettings(layer=0, top=1, min_share=0.0)
    run_experiment(
        handle, "ablate-mlp", SAMPLES, settings, FEW, on_progress=lambda *one: reports.append(one)
    )
    assert [done for done, _, _ in reports] == list(range(1, len(reports) + 1))
    assert (
        reports[-1][0] == reports[-1][1] == 12
    )  # sinks, neurons, what they hold, arms: three samples each
    assert all(text for _, _, text in reports)


@pytest.mark.tiny
def test_stop_ends_a_run_and_leaves_the_model_as_it_was(handle: ModelHandle) -> None:
    stop = threading.Event()
    tensors = handle.prepare([], TEXT).tensors
    before = handle.model(**tensors).logits

    def tell(done: int, total: int, text: str) -> None:
        if done == 4:
            stop.set()

    with pytest.raises(Stopped) as stopped:
        run_experiment(handle, "scan", SAMPLES, ScanSettings(), FEW, on_progress=tell, stop=stop)
    assert stopped.value.done == 4
    assert torch.equal(handle.model(**tensors).logits, before)
    assert not handle.lock.locked()


@pytest.mark.tiny
def test_answers_are_the_models_own_or_those_given(handle: ModelHandle) -> None:
    """Measurements of an answer depend on the answer, and not on the order of the samples."""
    settings = CutEdgesSettings(queries="later")

    def tokens(samples: tuple[TextSample, ...], **more: str) -> list[tuple[str, str]]:
        asked = StudySettings(bootstrap=100, controls=1, answer_tokens=3, **more)  # type: ignore[arg-type]
        found = run_experiment(handle, "cut-edges", samples, settings, asked).findings
        return [(str(row[0]), str(row[2])) for row in found.tables[1].rows]

    own = tokens(SAMPLES)
    assert own and sorted(own) == sorted(tokens(SAMPLES[::-1]))
    given = tuple(TextSample(s.id, s.prompt, " no star") for s in SAMPLES)
    assert {text for _, text in tokens(given)} <= {" no", " st", " ", "st", "ar", " star", "n", "o"}
    assert tokens(given, answers="own") == own


@pytest.mark.tiny
def test_random_choices_follow_from_the_seed(handle: ModelHandle) -> None:
    def run(seed: int) -> object:
        asked = StudySettings(bootstrap=100, controls=1, answer_tokens=3, seed=seed)
        settings = LowerAttentionSettings()
        return run_experiment(handle, "lower-attention", SAMPLES, settings, asked).findings

    assert run(1) == run(1)
    assert run(1) != run(2)


@pytest.mark.tiny
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ablate-mlp", AblateMLPSettings(layer=3)),
        ("lower-attention", LowerAttentionSettings(layers=(0, 3))),
    ],
)
def test_a_layer_that_there_is_not_is_refused_before_any_pass(
    handle: ModelHandle, name: str, settings: object
) -> None:
    reports: list[int] = []
    with pytest.raises(ValueError, match=r"3; .* has layers 0 to 2"):
        run_experiment(
            handle, name, SAMPLES, settings, FEW, on_progress=lambda done, *_: reports.append(done)
        )
    assert not reports


@pytest.mark.tiny
def test_where_no_few_neurons_hold_the_energy_the_layers_that_have_some_are_named(
    tmp_path: Path,
) -> None:
    folder = save_text_model(tmp_path, "qwen3", seed=1)
    loud = load_model(str(folder), device="cpu", dtype="float32")
    mlp = loud.stack.layers[1].mlp
    with torch.no_grad():  # one neuron of layer 1 has all of its energy
        mlp.gate_proj.weight[5] *= 100
        mlp.up_proj.weight[5] *= 100
    with pytest.raises(NoNeuronsError, match=r"in layer 0 .* have such a set: 1\."):
        run_experiment(loud, "ablate-mlp", SAMPLES, AblateMLPSettings(layer=0, min_share=0.9), FEW)


@pytest.mark.tiny
def test_what_does_not_fit_is_refused(handle: ModelHandle) -> None:
    with pytest.raises(ValueError, match="There is no experiment 'scann'; allowed: scan, "):
        run_experiment(handle, "scann", SAMPLES, ScanSettings())
    with pytest.raises(ValueError, match="settings is a CutEdgesSettings; scan takes ScanSettings"):
        run_experiment(handle, "scan", SAMPLES, CutEdgesSettings())
    with pytest.raises(ValueError, match="There is no sample"):
        run_experiment(handle, "scan", (), ScanSettings())
    picture = Sample("p", (Image.new("RGB", (56, 56)),))
    with pytest.raises(ValueError, match="is a text model and sees no images"):
        run_experiment(handle, "scan", (picture, picture), ScanSettings())
    with pytest.raises(ValueError, match="one kind at a time"):
        have_images((picture, SAMPLES[0]))


def result_with(value: float | None, name: str = "demo") -> Result:
    table = Table("t", "A table", ("tokens", "x"), (("sinks", value), ("a,b", 1.0)))
    chart = Chart("c", "A chart", "lines", (0, 1), (Series("sinks", (value, 2.0), role="sinks"),))
    findings = Findings(("Found.",), (table,), (chart,), Verdict(True, None, ("A: yes.",), ("t",)))
    model = {"id": name, "revision": "r", "dtype": "float32"}
    settings = {"experiment": {"layer": 1}}
    return Result("scan", "Why?", settings, model, ("1",), "here", {"sinks": 1}, findings)


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    result = result_with(None)
    result.save(tmp_path / "result.json")
    again = Result.open(tmp_path)
    assert again == Result.open(tmp_path / "result.json") == result
    assert again.findings.verdict is not None and again.findings.verdict.word == "open"
    for damage in ({"findings": None}, {"model": 3, "findings": {}}):
        values = {**json.loads((tmp_path / "result.json").read_text()), **damage}
        (tmp_path / "broken.json").write_text(json.dumps(values))
        with pytest.raises(ValueError, match="is damaged"):
            Result.open(tmp_path / "broken.json")


@pytest.mark.parametrize("part", ["tables", "charts"])
@pytest.mark.parametrize("name", ["../outside", "/tmp/x", "", 3])
def test_a_result_from_elsewhere_names_no_file_outside_its_folder(
    tmp_path: Path, part: str, name: object
) -> None:
    values = json.loads(json.dumps(result_with(1.0).as_dict()))
    values["findings"][part][0]["name"] = name
    (tmp_path / "result.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="is damaged"):
        Result.open(tmp_path)


def test_a_table_as_csv_keeps_every_digit_and_quotes_what_needs_it() -> None:
    text = csv_text(result_with(1 / 3).findings.tables[0], "about")
    assert text.splitlines() == [
        "# A table; about",
        "tokens,x",
        "sinks,0.3333333333333333",
        '"a,b",1.0',
    ]
    assert csv_text(result_with(None).findings.tables[0], "").splitlines()[2] == "sinks,"


def test_figures_without_a_number_are_left_out(tmp_path: Path) -> None:
    empty = Chart("c", "Empty", "lines", (0, 1), (Series("last", (None, None)),))
    with pytest.raises(ValueError, match="no value is a number"):
        draw(empty)
    written = [path.name for path in save_result(tmp_path, result_with(1.0))]
    assert written == ["result.json", "t.csv", "c.png", "c.pdf"]


def test_two_results_side_by_side_keep_what_only_one_has() -> None:
    both = compare(result_with(1.0, "one"), result_with(None, "two"))
    (table,) = both.findings.tables
    assert table.columns == ("tokens", "x A", "x B", "x B-A")
    assert table.rows == (("sinks", 1.0, None, None), ("a,b", 1.0, 1.0, 0.0))
    (chart,) = both.findings.charts
    assert [series.name for series in chart.series] == ["A: sinks", "B: sinks"]
    assert "A (one) is scan" in both.findings.notes[0]
    draw(chart)
    with pytest.raises(ValueError, match="A comparison is given; allowed: two results of one run"):
        compare(result_with(1.0), both)
    # For the same model, differing settings distinguish them.
    other = dataclasses.replace(result_with(2.0), settings={"experiment": {"layer": 3}})
    (table,) = compare(result_with(1.0), other).findings.tables
    assert table.title == "A table: A (layer 1) and B (layer 3)"
    noted = dataclasses.replace(other.findings, notes=("Left out.",))
    both = compare(result_with(1.0), dataclasses.replace(other, findings=noted))
    assert both.findings.notes[2:] == ("B (layer 3): Left out.",)
