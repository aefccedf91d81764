"""The Experiments tab without a browser: from the form's values to a result and its files."""

from __future__ import annotations

import csv
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from sinkscope.attention_extractor import RunOutOfMemoryError
from sinkscope.cli.sinks_data import read_data
from sinkscope.config import AppSettings, ImageLimits, Settings
from sinkscope.experiments import catalogue
from sinkscope.experiments.catalogue import Experiment
from sinkscope.experiments.compare import compare
from sinkscope.experiments.result import Findings, Result, Table
from sinkscope.experiments.run import run_experiment
from sinkscope.experiments.settings import DecomposeOutputSettings
from sinkscope.jobs.job import Job, Stopped
from sinkscope.jobs.runner import Runner
from sinkscope.models.loading import ModelHandle, load_model
from sinkscope.sinks.samples import PROMPT
from sinkscope.sinks.settings import SampleChoice
from sinkscope.web.experiments.request import MINE, ExperimentRequest, samples_of
from sinkscope.web.experiments.run import GONE, ExperimentsHandlers
from sinkscope.web.experiments.store import ExperimentResult
from sinkscope.web.page import build_app
from sinkscope.web.runs.inspector import html_component
from sinkscope.web.runs.job_values import UNFORESEEN
from sinkscope.web.runs.loaded_model import LoadedModel
from sinkscope.web.runs.results import LONGEST_SECONDS, MOST_RESULTS, ResultStore
from sinkscope.web.sinks.request import Picture
from tests.text_models import save_text_model
from tests.web.image_openers import opener
from tests.web.scripted import fake_handle
from tests.web.test_payload import unpack

pytestmark = pytest.mark.tiny

FEW = {"bootstrap": 100.0, "controls": 1.0, "answer_tokens": 3.0}
Make = Callable[..., ExperimentsHandlers]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    folder = save_text_model(tmp_path_factory.mktemp("text"), "qwen3")
    return load_model(str(folder), device="cpu", dtype="float32")


@pytest.fixture
def make(tmp_path: Path, uploads: Path, model: ModelHandle) -> Make:
    def build(engine: Any = None, handle: Any = model) -> ExperimentsHandlers:
        loaded = LoadedModel()
        if handle is not None:
            loaded.use(handle)
        limits = ImageLimits(max_megapixels=1.0)
        settings = Settings(images=limits, app=AppSettings(cache_dir=str(tmp_path), queue_size=2))
        made = ExperimentsHandlers(settings, loaded, Runner(2), engine)
        with gr.Blocks():
            made.component = html_component("experiments", None)
        return made

    return build


def request_for(name: str = "decompose-output", **changes: Any) -> ExperimentRequest:
    """Values as controls give them: every number a float, missing values an empty text."""
    given = {
        "experiment_settings": {"layer": 0.0},
        "study": {**FEW, "tau": "", "tokens": ""},
        "samples": 3.0,
    }
    return ExperimentRequest(name, **{**given, **changes})


def drain(handlers: ExperimentsHandlers, request: ExperimentRequest, who: str = "s") -> list[Any]:
    """All values; if an error ends them, the last value contains its text."""
    values: list[Any] = []
    try:
        values.extend(handlers.run(request, who))
    except gr.Error as error:
        assert values[-1:] == [] or values[-1]["message"] == error.message
        values = values or [{"phase": "error", "message": error.message}]
    return values


def local(url: str) -> Path:
    return Path(url.split("file=", 1)[1])


def opened(value: dict[str, Any]) -> dict[str, Any]:
    header, arrays = unpack(local(value["data"]["url"]).read_bytes())
    assert arrays == {}
    return header


@pytest.mark.usefixtures("no_system_temporary")
def test_from_the_form_to_files(make: Make) -> None:
    handlers = make()
    values = drain(handlers, request_for())
    assert {value["phase"] for value in values[:-1]} == {"running"}
    last = values[-1]
    assert last["phase"] == "ready", last
    header = opened(last)
    kept = handlers.store.get(last["run"])
    assert kept is not None and handlers.open_experiment({"run": last["run"]}) == last
    result = kept.result
    assert header["experiment"] == "decompose-output" and len(result.samples) == 3
    assert header["summary"] == list(result.findings.summary) and header["verdict"] is None
    # The page shows the same as the files and as the computed result.
    assert Result.open(local(header["files"][1]["url"])) == result
    for shown, table in zip(header["tables"], result.findings.tables, strict=True):
        lines = local(shown["csv"]["url"]).read_text().splitlines()
        rows = list(csv.reader(lines[1:]))
        assert tuple(rows[0]) == table.columns and len(rows) == 1 + len(table.rows)
        assert {len(row) for row in shown["rows"]} == {len(shown["columns"])}
    for figure in header["figures"]:
        with Image.open(local(figure["png"]["url"])) as image:
            assert list(image.size) == figure["size"]
        assert local(figure["pdf"]["url"]).read_bytes().startswith(b"%PDF")
        assert figure["title"] in figure["alt"]
    with zipfile.ZipFile(local(header["files"][0]["url"])) as archive:
        names = {Path(name).name for name in archive.namelist()}
    assert names == {
        "result.json",
        *(f"{table.name}.csv" for table in result.findings.tables),
        *(f"{f['name']}.{kind}" for f in header["figures"] for kind in ("png", "pdf")),
    }


def test_an_interval_stands_in_one_cell(make: Make) -> None:
    handlers = make()
    last = drain(handlers, request_for())[-1]
    shown = next(t for t in opened(last)["tables"] if t["name"] == "intervals")
    kept = handlers.store.get(last["run"])
    assert kept is not None
    table = next(t for t in kept.result.findings.tables if t.name == "intervals")
    assert shown["columns"] == ["part", "tokens", "norm", "spread", "count"]
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert (
        shown["rows"][0][2] == f"{row['norm']:.4g} [{row['norm_low']:.4g}, {row['norm_high']:.4g}]"
    )


def test_progress_has_two_parts_that_each_rise_to_their_end(make: Make) -> None:
    handlers, reports = make(), []

    def watching(*args: Any, on_progress: Any, **hooks: Any) -> Any:
        def tell(*said: Any) -> None:
            on_progress(*said)
            reports.append(job().at)

        return run_experiment(*args, on_progress=tell, **hooks)

    def job() -> Job:
        (one,) = handlers.runner.under_way
        return one

    handlers.engine = watching
    assert drain(handlers, request_for())[-1]["phase"] == "ready"
    looking = [at for at in reports if at.stage == "Looking for sinks"]
    others = [at for at in reports if at.stage != "Looking for sinks"]
    assert [(at.done, at.total) for at in looking] == [(1, 3), (2, 3), (3, 3)]
    assert [at.done for at in others] == list(range(1, len(others) + 1))
    assert {at.total for at in others} == {len(others)} and all(at.text for at in reports)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "nothing"}, "There is no experiment 'nothing'; allowed: scan, "),
        ({"name": None}, "There is no experiment None"),
        ({"source": "/etc"}, "source is '/etc'; allowed: Bundled, My own"),
        ({"source": MINE}, "There is no file. Upload some"),
        ({"source": MINE, "pictures": (Picture("a", Path("a")),) * 301}, "301 files were given"),
        ({"samples": 0.0}, "samples is 0; allowed: a whole number from 1 to 200"),
        ({"samples": 2.5}, "samples is 2.5"),
        ({"samples": None}, "samples is None"),
        ({"prompt": "x" * 20_001}, "more than 20000 characters"),
        ({"experiment_settings": {}}, "layer is None"),
        ({"experiment_settings": {"layer": None}}, "layer is None"),
        ({"experiment_settings": {"layer": -1.0}}, "layer is -1"),
        ({"study": {"tau": "much"}}, "tau is 'much'; allowed: nothing, or a number from 0 up"),
        ({"study": {"tau": "nan"}}, "tau is nan"),
        ({"study": {"auc": 2.0}}, "auc is 2.0; allowed: a number from 0.5 to 1"),
        ({"study": {"tokens": "sinks,nobody"}}, "tokens is 'nobody'; allowed: sinks, ordinary"),
        ({"study": {"dims": "1-"}}, "dims is '1-'; allowed: indices"),
    ],
)
def test_hostile_requests_are_one_sentence(make: Make, changes: dict[str, Any], words: str) -> None:
    handlers = make(engine=lambda *_, **__: pytest.fail("nothing shall run"))
    last = drain(handlers, request_for(**changes))[-1]
    assert last["phase"] == "error" and words in last["message"]
    assert handlers.runner.under_way == () and "\n" not in last["message"]


def test_what_only_the_model_knows_is_refused_by_it(make: Make) -> None:
    for changes, words in (
        ({"experiment_settings": {"layer": 99.0}}, "layer is 99; "),
        ({"study": {**FEW, "tokens": "sinks,ordinary"}}, "which are vision tokens, but"),
        ({"samples": 1.0}, "needs 2 or more"),
        ({"name": "vision-or-text", "experiment_settings": {}}, ""),
    ):
        last = drain(make(), request_for(**changes))[-1]
        assert last["phase"] == "error" and words in last["message"], last
        assert last["message"] != UNFORESEEN


def test_a_text_model_reads_one_uploaded_text_file(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "0a1b.txt"
    path.write_text("one two three four five six\n\nseven eight nine ten eleven\n")
    mine = {"source": MINE, "pictures": (Picture("../my prompts.txt", path),)}
    handlers = make()
    last = drain(handlers, request_for(**mine))[-1]
    kept = handlers.store.get(last["run"])
    assert kept is not None and kept.result.source == "my prompts.txt"
    assert kept.result.samples == ("line 1", "line 3")
    assert any("my prompts.txt has 2 prompts; 3" in note for note in opened(last)["notes"])
    path.write_bytes(b"\xff\xfe\x00")
    message = drain(handlers, request_for(**mine))[-1]["message"]
    assert message.startswith("The prompts my prompts.txt are not UTF-8") and "/" not in message
    for names in (("a.png",), ("a.txt", "b.txt")):
        mine["pictures"] = tuple(Picture(name, path) for name in names)
        message = drain(handlers, request_for(**mine))[-1]["message"]
        assert "is a text model and sees no images" in message and "one text file" in message
    mine["pictures"] = (Picture("a.txt", Path("/etc/hostname")),)  # no upload
    assert "was not uploaded here" in drain(handlers, request_for(**mine))[-1]["message"]


def test_samples_with_images(make: Make, tmp_path: Path) -> None:
    """Bundled scenes are those of the command line; photos are asked the form's prompt."""
    sees, job = SimpleNamespace(family=SimpleNamespace(sees_images=True)), Job()
    limits = ImageLimits()
    bundled = samples_of(request_for(samples=6.0), sees, limits, job, opener())  # type: ignore[arg-type]
    same = read_data(SampleChoice("demo", 6), 0)
    assert [s.fingerprint() for s in bundled.samples] == [s.fingerprint() for s in same.samples]
    assert [s.answer for s in bundled.samples] == [s.answer for s in same.samples]
    assert bundled.source == same.source
    for number, colour in enumerate(("red", "green")):
        Image.new("RGB", (56, 56), colour).save(tmp_path / f"{number}.png")
    photos = tuple(Picture(f"{n}.png", tmp_path / f"{n}.png") for n in range(2))
    for prompt, question in (("", PROMPT), (" What? ", "What?")):
        request = request_for(source=MINE, pictures=photos, prompt=prompt)
        found = samples_of(request, sees, limits, job, opener())  # type: ignore[arg-type]
        assert {sample.prompt for sample in found.samples} == {question}
        assert found.source == "the upload"
        assert "2 usable samples; 3 were asked for" in " ".join(found.notes)


def test_stop_keeps_nothing_and_says_how_far_it_was(make: Make) -> None:
    handlers = make()

    def stopping(*args: Any, on_progress: Any, **hooks: Any) -> Any:
        def tell(done: int, total: int, text: str) -> None:
            if done == 4:
                handlers.stop("another")  # not its own
                assert not hooks["stop"].is_set()
                handlers.stop("s")
            on_progress(done, total, text)

        return run_experiment(*args, on_progress=tell, **hooks)

    handlers.engine = stopping
    values = drain(handlers, request_for())
    last = values[-1]
    assert last["phase"] == "stopped" and "data" not in last
    assert last["message"].startswith("Stopped after 4 of 6 steps")
    assert handlers.open_experiment({"run": last["run"]}) == {"error": GONE}
    assert handlers.runner.under_way == ()
    with handlers.runner.line.place():  # another user's answer is being generated
        run = handlers.run(request_for(), "s")
        assert next(run)["position"] == 1
        handlers.stop("s")
        assert next(run)["message"] == "Stopped while it was waiting; nothing was measured."
        assert list(run) == []


def test_a_closed_page_ends_the_run(make: Make) -> None:
    begun, ended = threading.Event(), threading.Event()

    def endless(*args: Any, stop: threading.Event, **hooks: Any) -> Any:
        begun.set()
        assert stop.wait(30)
        ended.set()
        raise Stopped(0, 8)

    handlers = make(endless)
    run = handlers.run(request_for(), "s")
    next(run)
    assert begun.wait(30)
    run.close()
    assert ended.is_set() and handlers.runner.under_way == ()


def test_no_model_no_memory_and_a_fault(make: Make) -> None:
    last = drain(make(handle=None), request_for())[-1]
    assert last["message"] == "No model is loaded. Choose one under Model and press Load."

    def full(*args: Any, **hooks: Any) -> Any:
        raise RunOutOfMemoryError("Memory is full.")

    def broken(*args: Any, **hooks: Any) -> Any:
        raise RuntimeError("secret path /home/someone/thing.py")

    assert drain(make(full), request_for())[-1]["message"] == "Memory is full."
    assert drain(make(broken), request_for())[-1]["message"] == UNFORESEEN


@pytest.mark.parametrize("ask", [None, [], "x", {}, {"run": None}, {"run": 5}, {"run": ["x"]}])
def test_questions_about_nothing(make: Make, ask: Any) -> None:
    assert make().open_experiment(ask) == {"error": GONE}


def test_two_finished_runs_side_by_side_are_what_the_command_line_makes_of_them(
    make: Make,
) -> None:
    handlers = make()
    one, other = (
        drain(handlers, request_for(experiment_settings={"layer": layer}))[-1]
        for layer in (0.0, 1.0)
    )
    value = handlers.compare_experiments({"a": one["run"], "b": other["run"]})
    assert value["phase"] == "ready" and value["run"] not in (one["run"], other["run"])
    header = opened(value)
    results = [handlers.store.get(v["run"]).result for v in (one, other)]  # type: ignore[union-attr]
    both = compare(*results)
    assert header["compared"] and header["verdict"] is None
    assert header["summary"] == [*both.findings.notes[:2], *both.findings.summary]
    assert header["notes"] == list(both.findings.notes[2:])
    assert [t["title"] for t in header["tables"]] == [t.title for t in both.findings.tables]
    assert header["tables"][0]["title"].endswith("A (layer 0) and B (layer 1)")
    assert "layer 0's output / Norm of the parts of layer 1's" in header["figures"][0]["title"]
    assert "norm_Y B-A" in header["tables"][0]["columns"]
    assert {"A, settings", "B, settings"} <= {name for name, _ in header["facts"]}
    assert Result.open(local(header["files"][1]["url"])) == both
    assert header["figures"]
    # It is there after a reload, and is not made twice; the other way round it is another one.
    assert handlers.open_experiment({"run": value["run"]}) == value
    assert handlers.compare_experiments({"a": one["run"], "b": other["run"]}) is value
    assert handlers.runner.under_way == ()


@pytest.mark.parametrize("deleted", ["one", "other", "both"])
def test_a_comparison_goes_with_a_result_that_it_shows(make: Make, deleted: str) -> None:
    handlers = make()
    one, other = (
        drain(handlers, request_for(experiment_settings={"layer": layer}))[-1]
        for layer in (0.0, 1.0)
    )
    both = handlers.compare_experiments({"a": one["run"], "b": other["run"]})
    with_itself = handlers.compare_experiments({"a": other["run"], "b": other["run"]})
    values = {"one": one, "other": other, "both": both}
    handlers.forget_experiment({"run": values[deleted]["run"]})
    gone = {deleted, "both"}
    for name, value in values.items():
        answer = handlers.open_experiment({"run": value["run"]})
        assert answer == ({"error": GONE} if name in gone else value)
        assert local(value["data"]["url"]).exists() != (name in gone)
    kept = handlers.open_experiment({"run": with_itself["run"]})
    assert kept == ({"error": GONE} if deleted == "other" else with_itself)


def test_what_cannot_be_set_side_by_side_is_said(make: Make) -> None:
    handlers = make()
    one = drain(handlers, request_for())[-1]["run"]
    scan = drain(handlers, request_for("scan", experiment_settings={"print": ["hidden"]}))[-1][
        "run"
    ]
    for ask in (None, {}, {"a": one}, {"a": one, "b": "x" * 22}, {"a": [one], "b": one}):
        assert handlers.compare_experiments(ask) == {"error": GONE}
    said = handlers.compare_experiments({"a": one, "b": scan})["error"]
    assert said.startswith("The results are of different experiments, decompose-output and scan")
    both = handlers.compare_experiments({"a": one, "b": one})["run"]
    said = handlers.compare_experiments({"a": one, "b": both})["error"]
    assert said == "A comparison is given; allowed: two results of one run each."


def test_results_are_few_and_not_for_long() -> None:
    now = [1000.0]
    store: ResultStore[ExperimentResult] = ResultStore(clock=lambda: now[0])
    for number in range(MOST_RESULTS + 1):
        store.put(ExperimentResult(str(number), None, {}))  # type: ignore[arg-type]
    assert store.get("0") is None and store.get("1") is not None
    now[0] += LONGEST_SECONDS + 1
    assert store.get(str(MOST_RESULTS)) is None


def test_a_new_row_is_in_the_tab_by_itself(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A made-up experiment: its question, its options, a run."""

    def run(study: Any, settings: Any) -> Findings:
        lengths = tuple((case.sample.id, case.length) for case in study.cases)
        return Findings(("Counted.",), (Table("lengths", "Lengths", ("sample", "n"), lengths),))

    module = ModuleType("sinkscope.experiments.made_up")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    row = Experiment("made-up", "How long are they?", DecomposeOutputSettings, "made_up")
    monkeypatch.setattr(catalogue, "EXPERIMENTS", (*catalogue.EXPERIMENTS, row))

    app = build_app(Settings(app=AppSettings(cache_dir=str(tmp_path))), fake_handle(), examples=[])
    props = {
        c["props"].get("elem_id"): c["props"] for c in app.blocks.get_config_file()["components"]
    }
    assert ("made-up", "made-up") in [tuple(c) for c in props["experiments-name"]["choices"]]
    assert "set-made-up-layer" in props
    listed = props["experiments"]["value"]["listed"]
    assert listed[-1] == {"name": "made-up", "question": "How long are they?"}

    header = opened(drain(make(), request_for("made-up"))[-1])
    assert header["summary"] == ["Counted."] and header["question"] == "How long are they?"
    assert len(header["tables"][0]["rows"]) == 3 and header["figures"] == []
