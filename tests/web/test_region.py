"""The page's region test without a browser: its request, its stream, and its end."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from sinkscope.experiments.answers import prompt_and_answer
from sinkscope.experiments.boxes import Box
from sinkscope.experiments.region import region_test
from sinkscope.experiments.region_settings import RegionSettings
from sinkscope.models.loading import ModelHandle, load_model
from sinkscope.web.api.endpoints import with_clear_errors
from sinkscope.web.api.region import RegionApi, build_region_api
from sinkscope.web.explore import region
from sinkscope.web.explore.handlers import EXPIRED, Handlers
from sinkscope.web.explore.region import (
    REGION,
    STALE,
    LastTested,
    read_region_request,
    region_values,
)
from sinkscope.web.runs.loaded_model import LoadedModel
from sinkscope.web.runs.store import Run

pytestmark = pytest.mark.tiny


def asking(run: Run, **changes: Any) -> dict[str, Any]:
    box = {"row": 1, "column": 2, "rows": 2, "columns": 1, "image": 0, **changes.pop("box", {})}
    return {"ask": "7", "run": run.id, "how": "cut", "boxes": {"baseline": box}, **changes}


def values(handlers: Handlers, ask: dict[str, Any], last: LastTested | None = None) -> list[Any]:
    return list(region_values(handlers, last or LastTested(), ask, "me"))


@pytest.mark.parametrize("how", ["cut", "grey"])
def test_the_page_is_given_what_python_gives(
    handlers: Handlers, handle: ModelHandle, run: Run, how: str
) -> None:
    made = values(handlers, asking(run, how=how))
    assert {value["phase"] for value in made} == {"region"}
    assert {value["ask"] for value in made} == {"7"}
    assert [value.get("done", False) for value in made] == [False] * (len(made) - 1) + [True]
    asked = prompt_and_answer(handle, run.traces["baseline"])
    effect = region_test(handle, asked, Box(1, 2, 2, 1), RegionSettings(how))  # type: ignore[arg-type]
    assert made[-1]["found"] == {"baseline": effect.to_json()}
    json.dumps(made, allow_nan=False)


def test_another_box_of_the_same_answer_needs_no_other_pass_over_the_image(
    handlers: Handlers, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    real = region.prefix_of

    def counted(*given: Any) -> Any:
        passes.append(1)
        return real(*given)

    monkeypatch.setattr(region, "prefix_of", counted)
    last = LastTested()
    first = values(handlers, asking(run), last)[-1]["found"]
    values(handlers, asking(run, box={"row": 0}), last)
    assert len(passes) == 1
    assert values(handlers, asking(run), last)[-1]["found"] == first
    last.drop()
    assert values(handlers, asking(run), last)[-1]["found"] == first
    assert len(passes) == 2


def test_a_run_of_another_model_is_refused_in_words(
    handlers: Handlers, run: Run, tmp_path: Path
) -> None:
    from tests.tiny_model import save_model

    other = load_model(str(save_model(tmp_path / "m", seed=3)), device="cpu", dtype="float32")
    handlers.loaded.use(other)
    (*_, last) = values(handlers, asking(run))
    assert (
        last["error"].startswith("This run was made by ")
        and "Load the run's model" in last["error"]
    )


def test_without_a_model_or_a_run_it_says_so(handlers: Handlers, run: Run) -> None:
    assert values(handlers, {**asking(run), "run": "x" * 22})[-1]["error"] == EXPIRED
    handlers.loaded = LoadedModel()
    assert "No model is loaded" in values(handlers, asking(run))[-1]["error"]


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        ({"boxes": {}}, STALE),
        ({"boxes": {"var": {}}}, STALE),
        ({"boxes": []}, STALE),
        ({"boxes": {"baseline": {"row": "1"}}}, STALE),
        ({"box": {"row": True}}, STALE),
        ({"box": {"row": -1}}, STALE),
        ({"box": {"row": 4}}, "The box has rows 4 to 5; allowed: rows from 0 to 4"),
        ({"box": {"image": 1}}, "image is 1; allowed: 0 to 0"),
        ({"box": {"rows": 0}}, "The box has rows 1 to 0"),
        ({"how": "blur"}, "how is 'blur'; allowed: cut, grey"),
        ({"box": {"row": 0, "column": 0, "rows": 5, "columns": 6}}, "has no other place"),
    ],
)
def test_what_makes_no_sense_is_refused(
    handlers: Handlers, run: Run, ask: dict[str, Any], words: str
) -> None:
    assert words in values(handlers, asking(run, **ask))[-1]["error"]
    assert handlers.runner.under_way == ()


def test_questions_are_read_as_they_are_sent(run: Run) -> None:
    asked = read_region_request(asking(run), run)
    assert asked.boxes == {"baseline": Box(1, 2, 2, 1, 0)}
    assert asked.settings == RegionSettings("cut", 64)


def test_stop_ends_it_and_keeps_what_is_there(
    handlers: Handlers, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(region, "BOXES", 12)
    monkeypatch.setitem(region_test.__globals__["BATCH_TOKENS"], "cpu", 150)
    real, go = region.region_steps, threading.Event()

    def held(*given: Any, **hooks: Any) -> Iterator[Any]:
        for k, effect in enumerate(real(*given, **hooks)):
            if k == 1:
                go.wait(20)
            yield effect

    monkeypatch.setattr(region, "region_steps", held)
    made = []
    for value in region_values(handlers, LastTested(), asking(run), "me"):
        made.append(value)
        if not go.is_set() and value.get("found", {}).get("baseline"):
            handlers.runner.stop("another", REGION)
            assert not handlers.runner.under_way[0].stopped, "only its own browser stops a test"
            handlers.runner.stop("me", REGION)
            go.set()
    assert go.is_set(), "results must come while the test goes on"
    assert made[-1]["error"].startswith("Stopped after ")
    there = made[-1]["found"]["baseline"]
    assert 0 <= there["other_boxes"] < there["planned"] == 12
    assert not handlers.loaded.handle.lock.locked()  # type: ignore[union-attr]


def test_it_waits_in_the_line_and_can_be_stopped_there(handlers: Handlers, run: Run) -> None:
    busy, free = threading.Event(), threading.Event()

    def other(job: Any) -> None:
        busy.set()
        free.wait(20)

    before = handlers.runner.run(handlers.runner.job("them", "answer"), other)
    first = threading.Thread(target=lambda: list(before))
    first.start()
    assert busy.wait(20)
    test = region_values(handlers, LastTested(), asking(run), "me")
    assert next(test)["message"] == "Waiting: 1 run before this"
    handlers.runner.stop("me", REGION)
    assert "nothing was tested" in list(test)[-1]["error"]
    free.set()
    first.join()


def test_the_endpoint_gives_the_same_in_plain_values(handlers: Handlers, run: Run) -> None:
    api = RegionApi(handlers, LastTested())
    made = api.region(run.id, rows="1-2", columns="2", random_boxes=64.0)
    assert made == values(handlers, asking(run))[-1]["found"]["baseline"]
    grey = api.region(run.id, rows="1-2", columns="2", how="grey", random_boxes=3, seed=5)
    assert (grey["how"], grey["other_boxes"], grey["seed"]) == ("grey", 3, 5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"run": "x" * 22}, EXPIRED),
        ({"variant": "var"}, "variant is 'var'; allowed: baseline"),
        ({"rows": ""}, "rows is ''; allowed: one number or a range, such as 2-5"),
        ({"columns": "0, 2"}, "columns is '0, 2'; allowed: one number or a range"),
        ({"rows": "3-9"}, "The box has rows 3 to 9; allowed: rows from 0 to 4"),
        ({"image": 0.5}, "image is 0.5; allowed: a whole number"),
        ({"random_boxes": None}, "random_boxes is None; allowed: a whole number"),
        ({"random_boxes": 0}, "random_boxes is 0; allowed: a whole number from 1 to 10000"),
    ],
)
def test_mistakes_of_the_endpoint_are_sentences(
    handlers: Handlers, run: Run, given: dict[str, Any], words: str
) -> None:
    api = RegionApi(handlers, LastTested())
    with pytest.raises(gr.Error, match=re.escape(words)):
        with_clear_errors(api.region)(**{"run": run.id, "rows": "0", "columns": "0", **given})


def test_the_endpoint_is_documented(handlers: Handlers) -> None:
    with gr.Blocks() as page:
        build_region_api(handlers, LastTested())
    endpoint = page.get_api_info()["named_endpoints"]["/region"]
    names = {parameter["parameter_name"] for parameter in endpoint["parameters"]}
    text = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    row = re.search(r"^\| `/region` \| (.*?) \|", text, re.MULTILINE)
    assert row is not None and set(re.findall(r"`(\w+)`", row[1])) == names
