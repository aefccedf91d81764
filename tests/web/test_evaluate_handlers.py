"""Values of the generators behind Run and Go on in the Evaluate tab, with scripted answers."""

from __future__ import annotations

import csv
import io
import json
import threading
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from sinkscope.config import AppSettings, Settings
from sinkscope.evaluation.run_folder import read_run
from sinkscope.evaluation.runner import evaluate
from sinkscope.evaluation.tasks.demo import TASK
from sinkscope.evaluation.work import Work
from sinkscope.jobs.runner import Runner
from sinkscope.models.loading import ModelHandle
from sinkscope.web.evaluate.files import MEDIA
from sinkscope.web.evaluate.open import form_values, updates
from sinkscope.web.evaluate.request import EvaluateRequest
from sinkscope.web.evaluate.run import EvaluateHandlers
from sinkscope.web.evaluate.store import GONE, LONGEST_SECONDS, MOST_RUNS, EvaluateStore
from sinkscope.web.runs.inspector import html_component
from sinkscope.web.runs.job_values import UNFORESEEN
from sinkscope.web.runs.loaded_model import LoadedModel
from tests.evaluation.scripted import Scripted
from tests.sinks.planted import Plant, planted
from tests.web.test_payload import unpack

pytestmark = pytest.mark.tiny

DIMS = (7, 30)
ASKED = EvaluateRequest(questions=14, dims="7, 30", tau=5.0)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    plant = Plant(DIMS, seed=2, layers=5)
    return planted(tmp_path_factory.mktemp("planted"), plant)


def answers(work: Work) -> Sequence[str]:
    """The first method can answer "what", the second also "where", the third nothing."""
    pixels = [picture().tobytes() for picture in work.pictures]
    for question in TASK.read(None):
        if question.text == work.prompt and question.pictures[0]().tobytes() in pixels:
            right = question.truth
            known = question.category
            break
    return (
        right if known == "what" else "wrong",
        right if known in ("what", "where") else "wrong",
        "wrong",
    )


Make = Callable[..., EvaluateHandlers]


@pytest.fixture
def make(tmp_path: Path, model: ModelHandle, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))

    def build(
        script: Callable[[Work], Any] = answers, handle: Any = model, answer: Any = None
    ) -> EvaluateHandlers:
        loaded = LoadedModel()
        if handle is not None:
            loaded.use(handle)
        settings = Settings(app=AppSettings(cache_dir=str(tmp_path / "cache"), queue_size=2))
        scripted = partial(evaluate, engine=Scripted(script))
        made = EvaluateHandlers(settings, loaded, Runner(2), answer or scripted)
        with gr.Blocks():
            made.component = html_component("evaluate", None)
        return made

    return build


def drain(values: Any) -> list[Any]:
    """All values; the error that ends them is left out, because the last value contains it."""
    made: list[Any] = []
    try:
        made.extend(values)
    except gr.Error as error:
        assert made[-1]["message"] == error.message
    return made


def opened(value: dict[str, Any]) -> dict[str, Any]:
    return dict(unpack(Path(value["data"]["url"].split("file=", 1)[1]).read_bytes())[0])


def test_from_run_to_questions(make: Make, tmp_path: Path) -> None:
    handlers = make()
    values = drain(handlers.run(ASKED, "s"))
    last = values[-1]
    assert last["phase"] == "ready" and last["message"] == "Done", last
    assert {value["phase"] for value in values[:-1]} == {"running"}
    header = opened(last)
    assert header["complete"] and header["methods"] == ["default", "var", "var-random"]
    assert header["title"].startswith("var, var-random against default on 14 questions of drawn")
    assert header["settings"] == (
        "VAR: keep 0.6, tau 5, sink dimensions 7, 30; seed of the control 0"
    )
    kinds = [one["type"] for one in header["asked"]]
    right = [kinds.count("what"), kinds.count("what") + kinds.count("where"), 0]
    assert min(right[:2]) > 1
    assert [one["value"] for one in header["scores"]] == pytest.approx([r / 14 for r in right])
    assert header["scores"][2]["text"] == "0.0 %"
    first = header["differences"][0]
    assert (first["method"], first["against"]) == ("var", "default")
    where = kinds.count("where")
    assert (first["fixed"], first["broken"], first["same"]) == (where, 0, 14 - where)
    # The report's own words, including what such a sample can show when nothing is found.
    assert len(header["said"]) == 3
    none = [one["text"] for one in header["said"] if one["kind"] == "none"]
    assert all(text.startswith(("No difference shown", "So the gain")) for text in none)
    assert all("Such a sample shows" in text for text in none if text.startswith("No diff"))
    assert any("independent groups of questions" in text for text in header["warnings"])
    types = {one["type"]: one for one in header["types"]}
    assert set(types) == set(kinds) and types["where"]["questions"] == where
    assert [one["text"] for one in types["where"]["scores"]] == ["0.0 %", "100.0 %", "0.0 %"]
    asked = {one["id"]: one for one in header["asked"]}
    for question, _ in zip(TASK.read(None), range(14), strict=False):
        one = asked[question.id]
        assert (one["text"], one["truth"]) == (question.text, question.truth)
        assert [a["score"] for a in one["answers"]] == [
            float(a["text"] == question.truth) for a in one["answers"]
        ]
    assert len({one["picture"] for one in header["asked"]}) == len(
        {question.cluster for question, _ in zip(TASK.read(None), range(14), strict=False)}
    )
    # Only the app's cache folder is written to (and Gradio's, for served files).
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "gradio"]
    run = read_run(handlers.store.find(last["run"]))
    var = {one.name: one.var for one in run.config.methods}
    assert var["default"] is None and var["var"]["dims"] == DIMS and var["var"]["tau"] == 5.0
    assert var["var-random"]["control"] == "random" and run.config.run.limit == 14
    # By its id it opens again, with the same numbers; nothing else opens.
    again = handlers.open_evaluation({"run": last["run"]})
    assert again["phase"] == "ready" and opened(again)["scores"] == header["scores"]


def test_scores_come_while_it_runs_and_no_verdict_before_the_end(make: Make) -> None:
    values = drain(make().run(ASKED, "s"))
    shown = [value["live"] for value in values if "live" in value]
    assert shown and 0 < shown[0]["questions"] <= 14
    assert [one["method"] for one in shown[0]["scores"]] == ["default", "var", "var-random"]
    assert shown[0]["confidence"] == "95 % interval"
    json.dumps(values, allow_nan=False)  # goes to a browser
    facts = [fact for value in values for fact in value["facts"]]
    assert any(fact.endswith("of 14 questions") for fact in facts)


def test_stop_keeps_the_answers_and_go_on_asks_the_rest(make: Make) -> None:
    arrived, stop_sent = threading.Event(), threading.Event()
    asked: list[str] = []

    def slowly(work: Work) -> Sequence[str]:
        asked.append(work.prompt)
        if len(asked) == 3:
            arrived.set()
            assert stop_sent.wait(20)
        return answers(work)

    handlers = make(slowly)

    def stop() -> None:
        assert arrived.wait(20)
        handlers.stop("another")  # not its own run
        handlers.stop("s")
        stop_sent.set()

    helper = threading.Thread(target=stop)
    helper.start()
    last = drain(handlers.run(EvaluateRequest(questions=28, dims="7, 30", dims_tau=5.0), "s"))[-1]
    helper.join()
    header = opened(last)
    assert last["phase"] == "stopped" and last["message"].startswith("Stopped after ")
    done = len(header["asked"])
    assert 3 <= done < 28 and not header["complete"]
    assert header["state"].startswith("THE RUN IS NOT COMPLETE.")
    assert f"{done} of 28 questions" in header["state"] and "on 28 questions" in header["title"]
    assert handlers.open_evaluation({"run": last["run"]})["phase"] == "stopped"

    before = len(asked)
    end = drain(handlers.go_on(last["run"], "another browser with the id"))[-1]
    assert end["phase"] == "ready" and end["run"] == last["run"]
    assert len(opened(end)["asked"]) == 28
    assert len(asked) - before < 28  # answered questions are not asked again


def test_questions_that_fail_are_named(make: Make) -> None:
    def failing(work: Work) -> Any:
        return ValueError("Memory is full.") if work.prompt.startswith("Desc") else answers(work)

    last = drain(make(failing).run(ASKED, "s"))[-1]
    header = opened(last)
    assert last["message"] == "Not complete" and not header["complete"]
    assert header["failures"] and header["failures"][0].endswith("Memory is full.")
    errors = [one for one in header["asked"] if one["answers"][0]["error"]]
    assert {one["type"] for one in errors} == {"describe"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ()}, "methods is empty; allowed: one or more of default, var, var-random."),
        ({"methods": ("default", "x")}, "methods has 'x'; allowed: default, var, var-random."),
        ({"types": ("list",)}, "types has 'list'; allowed: describe, what,"),
        ({"questions": 0}, "questions is 0; allowed:"),
        ({"questions": 1001}, "questions is 1001; allowed:"),
        ({"questions": 2.5}, "questions is 2.5; allowed: a whole number"),
        ({"keep": 1.5}, "keep is 1.5; allowed:"),
        ({"tau": "much"}, "tau is 'much'; allowed: nothing, or a number from 0 up"),
        ({"tau": "nan"}, "tau is nan; allowed:"),
        ({"seed": -1}, "seed is -1; allowed:"),
        ({"dims": "7, x"}, "dims is '7, x'; allowed:"),
        ({"dims": "7", "dims_of": "another"}, "were found on another, but"),
        ({"dims": ""}, "are not known, so var cannot run: find them in the Sinks tab"),
    ],
)
def test_what_cannot_be_asked_is_said(make: Make, changes: dict[str, Any], words: str) -> None:
    handlers = make()
    request = EvaluateRequest(**{"questions": 7, "dims": "7, 30", **changes})
    last = drain(handlers.run(request, "s"))[-1]
    assert last["phase"] == "error" and words in last["message"]
    folder = handlers.settings.app.cache / "page_evaluations"
    assert list(folder.iterdir()) == []  # nothing was begun


def test_a_model_without_profile_is_asked_plainly(make: Make) -> None:
    request = EvaluateRequest(methods=("default",), types=("what",), questions=7)
    last = drain(make(lambda work: ("a red circle.",)).run(request, "s"))[-1]
    header = opened(last)
    assert last["phase"] == "ready" and header["differences"] == []
    assert {one["type"] for one in header["asked"]} == {"what"}
    assert header["said"][0]["text"] == "default is the only method, so nothing is compared."


def test_no_model_and_a_fault(make: Make) -> None:
    last = drain(make(handle=None).run(ASKED, "s"))[-1]
    assert last["message"] == "No model is loaded. Choose one under Model and press Load."

    def broken(*args: Any, **hooks: Any) -> Any:
        raise RuntimeError("secret path /home/someone/thing.py")

    assert drain(make(answer=broken).run(ASKED, "s"))[-1]["message"] == UNFORESEEN


@pytest.mark.parametrize(
    "ask", [None, [], "x", {}, {"run": None}, {"run": 5}, {"run": "../../etc"}, {"run": ["x"]}]
)
def test_questions_about_nothing(make: Make, ask: Any) -> None:
    handlers = make()
    assert handlers.open_evaluation(ask) == {"error": GONE}
    assert "error" in handlers.evaluation_file(ask)
    run = ask.get("run") if isinstance(ask, dict) else ask
    assert drain(handlers.go_on(run, "s"))[-1]["message"] == GONE
    with pytest.raises(ValueError, match="no longer on the server"):
        form_values(handlers, ask, "")


@pytest.mark.usefixtures("no_system_temporary")
def test_files_say_nothing_of_the_machine(make: Make) -> None:
    handlers = make()
    run = drain(handlers.run(ASKED, "s"))[-1]["run"]
    made = {}
    for what in MEDIA:
        file = handlers.evaluation_file({"run": run, "what": what})
        made[what] = Path(file["url"].split("file=", 1)[1]).read_bytes()
        assert file["name"].startswith("evaluation-")
    assert b"No difference shown" in made["report.html"] and b"<h2>demo</h2>" in made["report.html"]
    rows = list(csv.DictReader(io.StringIO(made["differences.csv"].decode())))
    assert {row["method"] for row in rows} == {"var", "var-random"}
    records = [json.loads(line) for line in made["records.jsonl"].splitlines()]
    assert len(records) == 42 and {row["method"] for row in records} >= {"var-random"}
    with zipfile.ZipFile(io.BytesIO(made["all.zip"])) as packed:
        names = set(packed.namelist())
        assert {"run.toml", "records.jsonl", "report.html", "changed.csv"} <= names
        session = json.loads(packed.read("provenance.json"))["sessions"][0]
        assert "libraries" in session and "command" not in session and "name" not in session
    assert "allowed: report.html" in handlers.evaluation_file({"run": run, "what": "x"})["error"]
    assert "error" in handlers.evaluation_file({"run": run, "what": ["../x"]})


def test_a_question_is_put_into_the_form_as_it_was_asked(make: Make) -> None:
    handlers = make()
    request = EvaluateRequest(questions=14, dims="7, 30", tau="5", keep=0.0, seed=3)  # type: ignore[arg-type]
    run = drain(handlers.run(request, "s"))[-1]["run"]
    question = next(one for one in TASK.read(None) if one.category == "where")
    ask = {"run": run, "question": question.id, "method": "var-random"}
    values = form_values(handlers, ask, "")
    assert values["prompt"] == question.text and values["compare"] is True
    asked = np.asarray(question.pictures[0]().convert("RGB"))
    np.testing.assert_array_equal(np.asarray(Image.open(values["image"])), asked)
    assert (values["tau"], values["keep"], values["control"]) == (5.0, 0.0, "random")
    assert (values["seed"], values["max_new_tokens"], values["decoding"]) == (3, 64, "ours")
    assert values["temperature"] == 0.0
    assert values["dims"] == "7, 30" and handlers.loaded.handle is not None
    assert values["dims_of"] == handlers.loaded.handle.info.id
    plain = form_values(handlers, {**ask, "method": "default"}, "")
    assert plain["compare"] is False and "keep" not in plain
    assert updates(plain, ["prompt", "keep"])[0] == question.text
    for wrong, words in (
        ({"question": "scene-900-what"}, "not one of the run"),
        ({"question": None}, "not one of the run"),
        ({"method": "x"}, "allowed: default, var, var-random"),
    ):
        with pytest.raises(ValueError, match=words):
            form_values(handlers, {**ask, **wrong}, "")


def test_another_model_is_named(make: Make, tmp_path: Path) -> None:
    handlers = make()
    run = drain(handlers.run(ASKED, "s"))[-1]["run"]
    question = next(TASK.read(None))
    handlers.loaded.use(planted(tmp_path / "other", Plant((3,), seed=9, layers=4)))
    ask = {"run": run, "question": question.id, "method": "var"}
    with pytest.raises(ValueError, match="load the run's model"):
        form_values(handlers, ask, "")


def test_runs_are_few_and_not_for_ever(tmp_path: Path) -> None:
    import os

    now = [10.0 * LONGEST_SECONDS]
    store = EvaluateStore(tmp_path / "runs", clock=lambda: now[0])
    ids = [store.new() for _ in range(MOST_RUNS + 2)]
    for place, run_id in enumerate(ids):
        store.folder_of(run_id).mkdir(parents=True)
        (store.folder_of(run_id) / "records.jsonl").touch()
        os.utime(store.folder_of(run_id).parent, (now[0] - place, now[0] - place))
    with store.writing(ids[-1]), pytest.raises(ValueError, match="under way already"):  # noqa: SIM117
        with store.writing(ids[-1]):
            pass
    with store.writing(ids[-1]):  # the oldest, but it is being written
        store.new()
        assert store.find(ids[-1]) and store.find(ids[0])
        with pytest.raises(ValueError, match="no longer on the server"):
            store.find(ids[-2])
    now[0] += LONGEST_SECONDS + 1
    store.new()
    assert list((tmp_path / "runs").iterdir()) == []
