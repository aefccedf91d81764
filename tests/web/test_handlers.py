"""Values of the generator behind Generate, without a browser."""

from __future__ import annotations

import base64
import dataclasses
import errno
import gc
import gzip
import threading
import weakref
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from PIL import Image

import sinkscope.web.runs.store
from sinkscope.attention_extractor import RunOutOfMemoryError
from sinkscope.attention_processor import patch_map
from sinkscope.capture.run_times import Work
from sinkscope.config import AppSettings, GenerationSettings, ModelSettings, Settings
from sinkscope.web.explore.handlers import Handlers, RunFunctions
from sinkscope.web.runs.inspector import html_component
from sinkscope.web.runs.loaded_model import LoadedModel
from sinkscope.web.runs.request import Request, parse_indices
from sinkscope.web.runs.store import Run, RunStore
from tests.web.scripted import ScriptedEngine, fake_handle
from tests.web.synthetic import WORDS, make_trace
from tests.web.test_payload import expand, unpack


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def handlers(tmp_path: Path, uploads: Path, engine: ScriptedEngine) -> Handlers:
    loaded = LoadedModel()
    loaded.use(fake_handle())
    settings = Settings(app=AppSettings(cache_dir=str(tmp_path), queue_size=1))
    made = Handlers(settings, loaded, RunStore(tmp_path, 10**8), engine.engine())
    with gr.Blocks():
        made.component = html_component("inspector", None)
    return made


@pytest.fixture
def picture(tmp_path: Path, uploads: Path) -> str:
    path = tmp_path / "photo.png"
    Image.new("RGB", (60, 40), "teal").save(path)
    return str(path)


def test_deltas_join_to_the_answer_and_none_is_sent_twice(handlers: Handlers, picture: str) -> None:
    values = list(handlers.generate(Request(picture, "Hello", compare=True), "s"))
    assert values[-1]["phase"] == "ready"
    for variant in ("baseline", "var"):
        texts: list[str] = []
        for value in values[:-1]:
            assert value["phase"] == "streaming"
            assert value["from"].get(variant, 0) == len(texts)
            texts += [token["t"] for token in value["new"].get(variant, [])]
        assert tuple(texts) == WORDS


def test_what_a_run_took_is_learned(
    handlers: Handlers, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[tuple[Any, float, int]] = []

    def note(handle: Any, work: Work, seconds: float, token_times: list[float]) -> None:
        assert handle is handlers.loaded.handle and token_times == sorted(token_times)
        assert 0 < token_times[-1] - token_times[0] < seconds
        noted.append(((work.answers, work.same_text), work.new_tokens, len(token_times)))

    monkeypatch.setattr(handlers.run_times, "note", note)
    list(handlers.generate(Request(picture, "Hello"), "s"))
    list(handlers.generate(Request(picture, "Hello", compare=True), "s"))
    list(handlers.generate(Request(picture, "Hello", compare=True, same_text=True), "s"))
    count = len(WORDS)
    assert noted == [
        ((1, False), count, count),
        ((2, False), count, count),
        ((2, True), count, count),
    ]


def test_a_run_that_goes_on_from_an_earlier_ones_image_says_nothing(
    handlers: Handlers, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def note(*_: Any) -> None:
        raise AssertionError("noted")

    monkeypatch.setattr(handlers.run_times, "note", note)
    prepare = handlers._last.prepare
    monkeypatch.setattr(
        handlers._last, "prepare", lambda *asked: (prepare(*asked)[0], "an earlier prefix")
    )
    list(handlers.generate(Request(picture, "Hello", compare=True), "s"))


def test_a_full_disk_loses_no_answer(
    handlers: Handlers, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(run: Run, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sinkscope.web.runs.store, "save_run", full)
    value = list(handlers.generate(Request(picture, "Hello"), "s"))[-1]
    assert value["phase"] == "ready"
    assert value["facts"][-1] == "kept in memory only: No space left on device"
    assert handlers.open_run({"run": value["run"]})["phase"] == "ready"


def test_what_is_captured_is_the_settings_files_matter(picture: str) -> None:
    start = GenerationSettings(max_new_tokens=9, layers=(1, 3), heads=(0,), reduce_heads=True)
    page = AppSettings(prompt_rows=7, reference=False)
    asked = Request(picture, "Hello", values={"max_new_tokens": 12.0, "seed": 3.0})
    made = asked.settings(Settings(generation=start, app=page))
    assert made == dataclasses.replace(start, max_new_tokens=12, seed=3, prompt_rows=7)


def test_the_engine_gets_the_settings_files_layers(tmp_path: Path, picture: str) -> None:
    seen: list[GenerationSettings] = []
    scripted = ScriptedEngine()

    def generate(handle: Any, inputs: Any, settings: Any, **hooks: Any) -> Any:
        seen.append(settings)
        return scripted.generate(handle, inputs, settings, **hooks)

    loaded = LoadedModel()
    loaded.use(fake_handle())
    start = Settings(generation=GenerationSettings(layers=(1,)))
    made = Handlers(start, loaded, RunStore(tmp_path, 10**8), RunFunctions(generate))
    with gr.Blocks():
        made.component = html_component("inspector", None)
    list(made.generate(Request(picture, "Hello"), "s"))
    assert [settings.layers for settings in seen] == [(1,)]


class Prefix:
    """Stands for the keys and values of a prompt."""


def test_keys_and_values_are_freed_for_a_model_and_after_a_full_memory(
    tmp_path: Path, picture: str
) -> None:
    scripted, kept = ScriptedEngine(), []
    full = threading.Event()

    def compare(*arguments: Any, prefix: Any = None, **hooks: Any) -> Any:
        if full.is_set():
            raise RunOutOfMemoryError("The memory of the device is full.")
        pair = scripted.compare(*arguments, **hooks)
        pair.prefix = prefix or Prefix()
        kept.append(weakref.ref(pair.prefix))
        return pair

    loaded = LoadedModel(lambda settings, on_progress: fake_handle())
    loaded.use(fake_handle())
    made = Handlers(
        Settings(), loaded, RunStore(tmp_path, 10**8), RunFunctions(scripted.generate, compare)
    )
    with gr.Blocks():
        made.component = html_component("inspector", None)
    asked = Request(picture, "Hello", compare=True)

    def run() -> None:
        list(made.generate(asked, "s"))
        gc.collect()

    run()
    run()
    assert kept[0]() is not None and kept[1]() is kept[0]()
    list(made.generate(Request(picture, "Another"), "s"))  # a plain run
    gc.collect()
    assert kept[0]() is None
    run()
    assert kept[2]() is not None
    full.set()
    with pytest.raises(gr.Error, match="is full") as error:
        run()
    assert kept[2]() is None, error
    full.clear()
    run()
    assert kept[3]() is not None
    seen, _ = loaded.wait(-1, 0)
    assert loaded.load(ModelSettings("another"))
    while loaded.state.phase == "loading":
        seen, _ = loaded.wait(seen, 10)
    gc.collect()
    assert kept[3]() is None


def test_the_work_of_streaming_is_linear(handlers: Handlers, picture: str) -> None:
    values = list(handlers.generate(Request(picture, "thousand"), "s"))
    sent = sum(len(t) for v in values if v["phase"] == "streaming" for t in v["new"].values())
    assert sent == 1000


def test_a_finished_run_is_in_the_store(handlers: Handlers, picture: str) -> None:
    value = list(handlers.generate(Request(picture, "Hello"), "s"))[-1]
    run = handlers.store.get(value["run"])
    assert run is not None
    assert tuple(token.text for token in run.traces["baseline"].tokens) == WORDS
    assert handlers.open_run({"run": value["run"]})["phase"] == "ready"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": None}, "no image"),
        ({"prompt": "  "}, "prompt is empty"),
        ({"prompt": None}, "prompt is empty"),
        ({"values": {"max_new_tokens": float("inf")}}, "max_new_tokens is inf"),
        ({"values": {"top_k": float("nan")}}, "top_k is nan"),
        ({"values": {"seed": None}}, "seed is None"),
        (
            {"compare": True, "values": {"var_layers": "0-1000," * 40_000}},
            "var_layers is a list of 28",
        ),
        ({"values": {"max_new_tokens": 0}}, "max_new_tokens is 0"),
        ({"values": {"temperature": float("nan")}}, "temperature"),
        ({"values": {"seed": 1.5}}, "seed is 1.5"),
        ({"compare": True, "values": {"var_layers": "2-x"}}, "var_layers is '2-x'"),
        ({"compare": True, "values": {"keep": 7.0}}, "keep is 7.0"),
        ({"compare": True, "values": {"dialect": "mine"}}, "dialect is 'mine'"),
        ({"values": {"max_new_tokens": 10**400}}, "max_new_tokens is a whole number of about 400"),
        ({"values": {"colour": 1}}, "no setting 'colour'; allowed: dims, tau, keep"),
        ({"prompt": "full"}, "memory of the device is full"),
        ({"prompt": "broken"}, "went wrong inside"),
    ],
)
def test_mistakes(handlers: Handlers, picture: str, changes: dict[str, Any], words: str) -> None:
    request = Request(**{"image": picture, "prompt": "Hello", **changes})
    given = []
    with pytest.raises(gr.Error) as error:
        for value in handlers.generate(request, "s"):
            given.append(value)
    assert given[-1]["phase"] == "error"
    assert words in given[-1]["message"] and words in str(error.value)
    assert "/home" not in given[-1]["message"]
    # and the next run works
    assert list(handlers.generate(Request(picture, "Hello"), "s"))[-1]["phase"] == "ready"


def test_no_model_and_no_sink_dimensions(handlers: Handlers, picture: str) -> None:
    handlers.loaded = LoadedModel()
    with pytest.raises(gr.Error, match="No model is loaded"):
        list(handlers.generate(Request(picture, "Hello"), "s"))
    handlers.loaded.use(fake_handle(profile=False))
    with pytest.raises(gr.Error, match="sink dimensions"):
        list(handlers.generate(Request(picture, "Hello", compare=True), "s"))
    assert list(handlers.generate(Request(picture, "Hello"), "s"))[-1]["phase"] == "ready"


def test_closing_the_generator_stops_the_model(
    handlers: Handlers, engine: ScriptedEngine, picture: str
) -> None:
    engine.hold()
    running = handlers.generate(Request(picture, "endless"), "s")
    next(running)
    assert engine.begun.wait(10)
    running.close()
    assert engine.ended.is_set()
    engine.release()
    assert list(handlers.generate(Request(picture, "Hello"), "s"))[-1]["phase"] == "ready"


def test_stop_is_for_the_own_session_only(
    handlers: Handlers, engine: ScriptedEngine, picture: str
) -> None:
    engine.hold()
    running = handlers.generate(Request(picture, "endless"), "mine")
    next(running)
    assert engine.begun.wait(10)
    handlers.stop("another")
    engine.let(2)
    while not any(v["new"].get("baseline") for v in [next(running)]):
        pass
    assert not engine.ended.is_set()
    handlers.stop("mine")
    last = list(running)[-1]
    assert last["phase"] == "stopped"


def test_the_time_limit_ends_a_run_and_keeps_its_tokens(
    tmp_path: Path, uploads: Path, engine: ScriptedEngine, picture: str
) -> None:
    loaded = LoadedModel()
    loaded.use(fake_handle())
    settings = Settings(app=AppSettings(cache_dir=str(tmp_path), job_minutes=10))
    handlers = Handlers(settings, loaded, RunStore(tmp_path, 10**8), engine.engine())
    with gr.Blocks():
        handlers.component = html_component("inspector", None)
    engine.hold()
    running = handlers.generate(Request(picture, "endless"), "s")
    next(running)
    engine.let(2)
    seen = 0
    while seen < 2:
        seen += len(next(running)["new"]["baseline"])
    (job,) = handlers.runner.under_way
    assert job.stop_event.deadline is not None and not job.stopped
    job.stop_event.deadline = 0.0  # long over
    last = list(running)[-1]
    assert last["phase"] == "stopped"
    assert last["message"] == "Stopped at the time limit of 10 minutes"
    run = handlers.store.get(last["run"])
    assert run is not None and len(run.first.tokens) == 2
    engine.release()
    assert list(handlers.generate(Request(picture, "Hello"), "s"))[-1]["phase"] == "ready"


def test_the_line_shows_places_and_refuses_a_burst(
    handlers: Handlers, engine: ScriptedEngine, picture: str
) -> None:
    engine.hold()
    first = handlers.generate(Request(picture, "endless"), "a")
    next(first)
    second = handlers.generate(Request(picture, "Hello"), "b")
    value = next(second)
    assert (value["phase"], value["position"]) == ("queued", 1)
    with pytest.raises(gr.Error, match="waiting"):
        list(handlers.generate(Request(picture, "Hello"), "c"))
    first.close()
    engine.release()
    assert list(second)[-1]["phase"] == "ready"


def test_a_stopped_wait_makes_no_run(
    handlers: Handlers, engine: ScriptedEngine, picture: str
) -> None:
    engine.hold()
    first = handlers.generate(Request(picture, "endless"), "a")
    next(first)
    second = handlers.generate(Request(picture, "Hello"), "b")
    next(second)
    handlers.stop("b")
    assert "nothing was generated" in list(second)[-1]["message"]
    first.close()


def test_missed_tokens_can_be_asked_for(
    handlers: Handlers, engine: ScriptedEngine, picture: str
) -> None:
    engine.hold()
    running = handlers.generate(Request(picture, "Hello"), "s")
    run_id = next(running)["run"]
    engine.let(4)
    seen = 0
    while seen < 4:
        seen += len(next(running)["new"]["baseline"])
    ask = {"run": run_id, "variant": "baseline", "from": 1}
    assert [t["t"] for t in handlers.tokens_since(ask)["tokens"]] == list(WORDS[1:4])
    for bad in ({"run": "x"}, {**ask, "from": -1}, {**ask, "variant": "other"}, None, [], "text"):
        assert "error" in handlers.tokens_since(bad)
    running.close()
    assert "error" in handlers.tokens_since(ask)


def test_single_heads_of_a_large_run(handlers: Handlers) -> None:
    trace = make_trace()
    run = Run({"baseline": trace})
    handlers.store.put(run)
    ask = {
        "run": run.id,
        "variant": "baseline",
        "start": 2,
        "stop": 4,
        "whole": True,
        "combine": "max",
        "layers": [1, 3],
        "heads": [0, 5],
    }
    _, arrays = unpack(base64.b64decode(handlers.token_maps(ask)["data"]))
    got = expand(arrays["full"], arrays["full.scale"])
    np.testing.assert_allclose(got, trace.attention[2:4].float().mean(0), atol=2e-3)
    _, arrays = unpack(base64.b64decode(handlers.token_maps({**ask, "whole": False})["data"]))
    expected = patch_map(trace, [2, 3], [1, 2, 3], [0, 1, 2, 3, 4, 5], "max").values.ravel()
    np.testing.assert_array_equal(arrays["map"], expected)
    of_prompt = handlers.token_maps({**ask, "prompt": True})
    _, arrays = unpack(base64.b64decode(of_prompt["data"]))
    assert trace.prompt_rows is not None
    rows = trace.prompt_rows.attention[2:4].float().mean(0)
    got = expand(arrays["full"], arrays["full.scale"])
    np.testing.assert_allclose(got, rows, atol=5e-3 * float(rows.max()))
    bare = Run({"baseline": dataclasses.replace(trace, prompt_rows=None)})
    handlers.store.put(bare)
    assert "error" in handlers.token_maps({**ask, "run": bare.id, "prompt": True})
    wrong: list[Any] = [
        None,
        3,
        {},
        {**ask, "run": "../x"},
        {**ask, "start": -1},
        {**ask, "stop": 999},
    ]
    wrong += [
        {**ask, "variant": "no"},
        {**ask, "start": "a"},
        {**ask, "whole": False, "layers": []},
    ]
    for bad in wrong:
        assert set(handlers.token_maps(bad)) == {"error"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("", None),
        (" ", None),
        ("3", (3,)),
        ("2-5, 7", (2, 3, 4, 5, 7)),
        ("2–3,3", (2, 3)),
    ],
)
def test_index_lists(text: str | None, expected: tuple[int, ...] | None) -> None:
    assert parse_indices("layers", text) == expected


@pytest.mark.parametrize("text", ["x", "5-2", "-1", "1-", "1.5", "1e3", "0-99999", "9" * 30])
def test_bad_index_lists(text: str) -> None:
    with pytest.raises(ValueError, match="layers is"):
        parse_indices("layers", text)


def test_a_failed_load_leaves_the_old_model(engine: ScriptedEngine) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def load(settings: ModelSettings, on_progress: Any) -> Any:
        on_progress("Reading", 0.5)
        begun.set()
        go_on.wait(10)
        raise ValueError("There is no such model.")

    old = fake_handle()
    loaded = LoadedModel(load)
    loaded.use(old)
    assert loaded.load(ModelSettings("missing"))
    assert begun.wait(10)
    assert loaded.state.phase == "loading" and loaded.state.fraction == 0.5
    assert not loaded.load(ModelSettings("another"))
    assert loaded.handle is old
    seen, _ = loaded.wait(-1, 0)
    go_on.set()
    _, state = loaded.wait(seen, 10)
    assert (state.phase, state.message) == ("failed", "There is no such model.")
    assert loaded.handle is old


def test_gzip_of_equal_runs_is_equal() -> None:
    from sinkscope.web.runs.payload import build_payload

    run = Run({"baseline": make_trace()})
    assert gzip.decompress(build_payload(run)) == gzip.decompress(build_payload(run))
    assert build_payload(run) == build_payload(run)  # so that one run is one file in the cache
