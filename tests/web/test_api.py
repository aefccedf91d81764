"""The API behind the page, as `gradio_client` and a notebook use it."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sinkscope.attention_processor import patch_map
from sinkscope.capture.trace import GenerationTrace
from sinkscope.jobs.job import Stopped
from sinkscope.methods.explain import explain_map
from sinkscope.models.profiles import SinkProfile
from sinkscope.web.api import region as region_endpoint
from sinkscope.web.explore.region import LastTested
from sinkscope.web.runs.loaded_model import LoadedModel
from sinkscope.web.runs.store import Run, new_id
from tests.web.conftest import Site, start_site
from tests.web.scripted import ScriptedEngine, fake_handle
from tests.web.synthetic import WORDS, make_pair

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "api.md"
NOTEBOOK = ROOT / "docs" / "notebooks" / "api.ipynb"


@pytest.fixture(scope="module")
def api_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """An app that can load models: each load returns the scripted one."""
    engine = ScriptedEngine()
    folder = tmp_path_factory.mktemp("cache")
    loaded = LoadedModel(lambda settings, on_progress: handle_named(settings.model))
    site = start_site(
        folder,
        engine,
        handle=fake_handle(),
        loaded=loaded,
        example=Run(make_pair(), kind="example"),
    )
    yield site
    site.app.blocks.close(verbose=False)


def handle_named(name: str) -> Any:
    if name == "missing":
        raise ValueError("There is no model called missing.")
    return fake_handle()


@pytest.fixture(scope="module")
def client(api_site: Site) -> Iterator[Any]:
    from gradio_client import Client

    made = Client(api_site.url, verbose=False)
    yield made
    made.close()


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from gradio_client import handle_file

    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.new("RGB", (60, 40), "teal").save(path)
    return handle_file(str(path))


@pytest.fixture(scope="module")
def compared(client: Any, photo: Any) -> dict[str, Any]:
    made: dict[str, Any] = client.predict(image=photo, prompt="Hello", api_name="/compare")
    return made


def test_names_are_documented(client: Any) -> None:
    api = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in ("/load", "/generate", "/compare", "/map", "/export", "/stop"):
        assert f"| `{name}` |" in text
        row = re.search(rf"^\| `{name}` \| (.*?) \|", text, re.MULTILINE)
        assert row is not None
        said = set(re.findall(r"`(\w+)`", row[1]))
        if "those" in row[1]:
            other = "/generate" if name == "/compare" else "/map"
            more = re.search(rf"^\| `{other}` \| (.*?) \|", text, re.MULTILINE)
            assert more is not None
            said |= set(re.findall(r"`(\w+)`", more[1])) - (
                {"variant"} if other == "/map" else set()
            )
        asked = {parameter["parameter_name"] for parameter in api[name]["parameters"]}
        assert asked == said, name
    hidden = {"/model_state", "/load_model", "/export_view", "/answer", "/generate_1"}
    hidden |= {"/stop_1", "/stop_answer"}
    assert not hidden & set(api)  # functions that only the page calls


def test_stop_ends_a_region_test_of_its_own_client_alone(
    client: Any, api_site: Site, compared: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradio_client import Client

    begun = threading.Event()

    def endless(*given: Any, stop: threading.Event, **hooks: Any) -> Any:
        begun.set()
        assert stop.wait(30), "nobody stopped it"
        raise Stopped(3, 64, "boxes")

    monkeypatch.setattr(region_endpoint, "region_test", endless)
    monkeypatch.setattr(LastTested, "of", lambda *given: (None, None))
    job = client.submit(run=compared["run"], rows="0", columns="0", api_name="/region")
    assert begun.wait(30)
    other = Client(api_site.url, verbose=False)
    other.predict(api_name="/stop")
    other.close()
    (running,) = api_site.app.handlers.runner.under_way
    assert not running.stopped
    client.predict(api_name="/stop")
    with pytest.raises(Exception, match=r"Stopped before there was a result\."):
        job.result(timeout=30)
    assert api_site.app.handlers.runner.under_way == ()


def test_a_run_in_plain_values(client: Any, photo: Any, api_site: Site) -> None:
    made = client.predict(image=photo, prompt="Hello", max_new_tokens=5, api_name="/generate")
    run = api_site.app.handlers.store.get(made["run"])
    assert run is not None
    answer = made["baseline"]
    assert [token["text"] for token in answer["tokens"]] == list(WORDS)
    mean = float(run.first.shares[3, :, :, 1].mean())
    assert answer["tokens"][3]["image_share"] == pytest.approx(mean, rel=1e-4)
    assert made["model"]["id"] == "synthetic" and made["images"][0]["columns"] == 12
    assert "var" not in made


@pytest.mark.parametrize("endpoint", ["/generate", "/compare"])
def test_a_question_about_several_images(
    endpoint: str, client: Any, photo: Any, api_site: Site, tmp_path: Path
) -> None:
    """In their order, whichever places are used; each has its own size, grid and map."""
    from gradio_client import handle_file

    wide, tall = tmp_path / "wide.png", tmp_path / "tall.png"
    Image.new("RGB", (90, 30), "white").save(wide)
    Image.new("RGB", (20, 50), "black").save(tall)
    more = {"image_2": handle_file(str(wide)), "image_4": handle_file(str(tall))}
    made = client.predict(image=photo, prompt="Which?", **more, api_name=endpoint)
    sizes = [(one["width"], one["height"]) for one in made["images"]]
    assert sizes == [(60, 40), (90, 30), (20, 50)]
    run = api_site.app.handlers.store.get(made["run"])
    assert run is not None
    for trace in run.traces.values():
        assert [image.size for image in trace.images] == sizes
    for index, image in enumerate(made["images"]):
        ask = {"run": made["run"], "tokens": "2", "image": index, "api_name": "/map"}
        heat, _ = client.predict(**ask)
        assert (heat["rows"], heat["columns"]) == (image["rows"], image["columns"])
        expected = patch_map(run.first, [2], image=index)
        np.testing.assert_allclose(heat["values"], expected.values, rtol=1e-6)
    with pytest.raises(Exception, match="image is 3"):
        client.predict(run=made["run"], image=3, api_name="/map")


def test_decoding_is_that_of_the_checkpoint_where_it_is_asked_for(
    client: Any, photo: Any, api_site: Site
) -> None:
    asked: list[Any] = []
    engine = api_site.app.handlers.engine

    def watched(handle: Any, inputs: Any, settings: Any, **more: Any) -> Any:
        asked.append(settings.decoding)
        return engine.generate(handle, inputs, settings, **more)

    api_site.app.handlers.engine = dataclasses.replace(engine, generate=watched)
    try:
        for given in ({}, {"decoding": "checkpoint"}):
            made = client.predict(image=photo, prompt="Hello", api_name="/generate", **given)
    finally:
        api_site.app.handlers.engine = engine
    assert asked == ["ours", "checkpoint"]
    assert made["decoding"]["words"] == "greedy decoding"
    loaded = client.predict(model="demo", api_name="/load")["decoding"]
    assert loaded["checkpoint"]["repetition_penalty"] == 1.05
    assert loaded["words"].startswith("sampling (temperature 1e-06, top k 50)")


def test_compare_takes_the_profiles_tau(client: Any, photo: Any, api_site: Site) -> None:
    asked: list[Any] = []
    engine = api_site.app.handlers.engine
    real = engine.compare

    def watched(handle: Any, inputs: Any, settings: Any, var: Any, *rest: Any, **more: Any) -> Any:
        asked.append(var)
        return real(handle, inputs, settings, var, *rest, **more)

    profile = SinkProfile("fake", "none", 64, 6, (1, 2), 3.25, "made up", "low")
    before = api_site.app.loaded.handle
    api_site.app.loaded.use(dataclasses_replace(before, profile=profile))
    api_site.app.handlers.engine = dataclasses.replace(engine, compare=watched)
    try:
        for given in ({}, {"tau": 4.5}, {"dims": "3, 4"}):
            client.predict(image=photo, prompt="Hello", api_name="/compare", **given)
    finally:
        api_site.app.handlers.engine = engine
        api_site.app.loaded.use(before)
    assert [(var.dims, var.tau) for var in asked] == [
        ((1, 2), 3.25),
        ((1, 2), 4.5),
        ((3, 4), 3.25),
    ]


def dataclasses_replace(handle: Any, **changes: Any) -> Any:
    """A fake handle with other attributes."""
    return type(handle)(**{**vars(handle), **changes})


def test_a_comparison(compared: dict[str, Any]) -> None:
    assert compared["first_difference"] is None and len(compared["log_probability_change"]) == len(
        WORDS
    )
    assert compared["var"]["applied"] == ["VAR(tau=6, keep=0.6)"]


@pytest.mark.usefixtures("no_system_temporary")
def test_a_map(client: Any, compared: dict[str, Any], api_site: Site) -> None:
    run = api_site.app.handlers.store.get(compared["run"])
    assert run is not None
    heat, overlay = client.predict(
        run=compared["run"], tokens="2-3", variant="var", layers="2-4", heads="1", api_name="/map"
    )
    expected = patch_map(run.traces["var"], [2, 3], [2, 3, 4], [1])
    np.testing.assert_allclose(heat["values"], expected.values, rtol=1e-6)
    assert (heat["unit"], heat["normalisation"]) == ("attention mass", "none")
    assert heat["sinks"] == [[0, 7], [6, 10]] and heat["tokens"][1]["text"] == " a"
    with Image.open(overlay) as picture:
        assert picture.format == "PNG" and picture.width == 1200


def test_maps_of_a_method(client: Any, compared: dict[str, Any], api_site: Site) -> None:
    run = api_site.app.handlers.store.get(compared["run"])
    assert run is not None
    ask = {"run": compared["run"], "tokens": "3", "layers": "2-4", "api_name": "/map"}
    heat, _ = client.predict(**ask, method="relative")
    expected = explain_map(run.traces["baseline"], 3, "relative", [2, 3, 4])
    np.testing.assert_allclose(heat["values"], expected.values, rtol=1e-6)
    assert heat["unit"] == "times the generic prompt" and heat["methods"]["relative"] is None
    old, _ = client.predict(**ask, scale="relative")  # an old value: it used to be a scale
    assert old["values"] == heat["values"] and old["limits"] == heat["limits"]
    left, _ = client.predict(**ask, method="without_sinks")
    cells = [(r, c) for r in range(8) for c in range(12) if left["values"][r][c] is None]
    assert [list(cell) for cell in cells] == left["sinks"]


@pytest.mark.parametrize("kind", ["pdf", "gif", "mp4", "csv", "html", "trace"])
def test_exports(
    kind: str, client: Any, compared: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sinkscope.drawing.view_figure.PANEL_PIXELS", 120)
    tokens = "0-2" if kind in ("gif", "mp4") else "1"
    files = client.predict(
        run=compared["run"], kind=kind, tokens=tokens, width=320, api_name="/export"
    )
    begins = {
        "pdf": b"%PDF", "gif": b"GIF89a", "mp4": b"\x00\x00\x00", "csv": b"answer,",
        "html": b"<!doctype html>", "trace": b"",
    }[kind]  # fmt: skip
    assert len(files) == (2 if kind == "trace" else 1)
    for file in files:
        assert Path(file).read_bytes().startswith(begins)
    if kind == "trace":
        assert GenerationTrace.open(files[1]).applied == ("VAR(tau=6, keep=0.6)",)


def test_a_figure_with_tokens_of_its_own_on_each_side(
    client: Any, compared: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def write_files(run: Any, wanted: Any, folder: Path, **rest: Any) -> list[Path]:
        seen.append(wanted)
        (folder / "a.csv").write_text("x")
        return [folder / "a.csv"]

    monkeypatch.setattr("sinkscope.web.api.endpoints.make_files", write_files)
    client.predict(run=compared["run"], tokens="3", own_tokens="5-6", api_name="/export")
    client.predict(run=compared["run"], tokens="3", api_name="/export")
    assert [(one.first, one.last, one.second_tokens) for one in seen] == [
        (3, 3, (5, 6)),
        (3, 3, None),
    ]


@pytest.mark.parametrize(
    ("endpoint", "given", "words"),
    [
        ("/generate", {"prompt": ""}, "prompt is empty"),
        ("/generate", {"image": None}, "There is no image"),
        ("/generate", {"max_new_tokens": 1.5}, "max_new_tokens is 1.5; allowed: a whole number"),
        ("/generate", {"top_k": 10**18}, f"top_k is {10**18}; allowed: a whole number from 0 to"),
        ("/compare", {"seed": 2**63}, f"seed is {2**63}; allowed: a whole number from 0 to"),
        ("/compare", {"var_layers": "a"}, "var_layers is 'a'; allowed: indices such as"),
        ("/map", {"image": 10**18}, f"image is {10**18}; allowed: a whole number from 0 to"),
        ("/generate", {"decoding": "mine"}, "decoding is 'mine'; allowed: ours, checkpoint"),
        (
            "/generate",
            {"decoding": "checkpoint", "top_k": 4},
            "top_k is 4 and decoding 'checkpoint'",
        ),
        ("/compare", {"tau": -1.0}, "tau is -1.0"),
        ("/compare", {"dialect": "loud"}, "dialect is 'loud'"),
        ("/map", {"tokens": "999"}, "token is"),
        ("/map", {"tokens": "two"}, "tokens is 'two'"),
        ("/map", {"variant": "b"}, "variant is 'b'; allowed: baseline, var"),
        ("/map", {"scale": "loud"}, "scale is 'loud'; allowed: percentile"),
        ("/map", {"method": "guess"}, "method is 'guess'; allowed: attention, relative"),
        ("/map", {"run": new_id()}, "no longer on the server"),
        ("/map", {"run": "../../etc"}, "no longer on the server"),
        ("/export", {"kind": "exe"}, "kind is 'exe'; allowed: pdf"),
        ("/export", {"kind": "gif", "window": 99}, "window is 99; allowed: 1 to 27"),
        ("/export", {"kind": "gif", "tokens": "1, 5"}, "allowed: one index, or a range"),
        ("/export", {"own_tokens": "1, 5"}, "own_tokens is '1, 5'; allowed: one index, or a range"),
        ("/export", {"own_tokens": "99"}, "second_tokens is [99]; "),
        ("/export", {"kind": "gif", "width": 10**6}, "width is 1000000; allowed: 320 to 1920"),
        ("/load", {"model": "missing"}, "There is no model called missing"),
    ],
)
def test_mistakes_are_sentences(
    endpoint: str, given: dict[str, Any], words: str, client: Any, photo: Any, compared: Any
) -> None:
    asked: dict[str, Any] = {}
    if endpoint in ("/generate", "/compare"):
        asked = {"image": photo, "prompt": "Hello"}
    elif endpoint != "/load":
        asked = {"run": compared["run"]}
    with pytest.raises(Exception, match=re.escape(words)) as refused:
        client.predict(**{**asked, **given}, api_name=endpoint)
    assert "Traceback" not in str(refused.value)


def test_nothing_of_the_machine_is_in_an_error(client: Any, photo: Any) -> None:
    with pytest.raises(Exception, match="Something went wrong inside SinkScope") as refused:
        client.predict(image=photo, prompt="broken", api_name="/generate")
    assert "secret" not in str(refused.value)


def cells() -> list[str]:
    return re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)


def test_the_documents_cells_run(
    api_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sinkscope.drawing.view_figure.PANEL_PIXELS", 120)
    script = tmp_path / "cells.py"
    code = "\n".join(cells()).replace("http://127.0.0.1:7860", api_site.url)
    script.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "fake 6 layers of 8 heads on cpu" in done.stdout
    assert "(8, 12) attention mass normalisation: none" in done.stdout
    assert "allowed: 0 to 26" in done.stdout


def test_the_notebook_has_the_documents_cells() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    code = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    assert code == [cell.rstrip("\n") for cell in cells()]
    assert all(c.get("outputs", []) == [] for c in notebook["cells"])
