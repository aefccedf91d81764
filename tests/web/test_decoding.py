"""Whether tokens are chosen by the page's settings or the checkpoint's: control and texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from sinkscope.config import GenerationSettings, Settings
from sinkscope.models.generation_file import GenerationFile
from sinkscope.web.explore.events import generating
from sinkscope.web.explore.form import build_form
from sinkscope.web.explore.handlers import Handlers, RunFunctions
from sinkscope.web.explore.model_events import checkpoint_notice, choosing_decoding
from sinkscope.web.runs.inspector import facts_of, html_component
from sinkscope.web.runs.loaded_model import LoadedModel
from sinkscope.web.runs.pairs import pair_of
from sinkscope.web.runs.standalone import build_standalone
from sinkscope.web.runs.store import Run, RunStore
from tests.web.conftest import Site
from tests.web.scripted import ScriptedEngine, fake_handle
from tests.web.synthetic import make_trace
from tests.web.test_browser_states import ready

WORDS = "sampling (temperature 1e-06, top k 50), repetition penalty 1.05"
FOLLOWED = {
    "used": {"do_sample": True, "temperature": 1e-6, "top_k": 50, "repetition_penalty": 1.05},
    "checkpoint": {"do_sample": True, "temperature": 1e-6, "top_k": 50, "repetition_penalty": 1.05},
    "words": WORDS,
}


def handle_with(file: GenerationFile | None = None, **own: Any) -> Any:
    handle = fake_handle()
    handle.model.generation_config = SimpleNamespace(**own)
    handle.generation_file = file or GenerationFile()
    return handle


def test_the_line_about_the_checkpoint() -> None:
    assert checkpoint_notice(None, "ours")["text"] == ""
    said = checkpoint_notice(fake_handle(), "ours")
    assert said["text"] == f"This checkpoint's own generation_config.json: {WORDS}."
    assert said["kind"] == "quiet"
    greedy = checkpoint_notice(handle_with(), "checkpoint")
    assert greedy["text"].endswith(": greedy decoding.") and greedy["kind"] == "quiet"


def test_what_cannot_be_followed_is_said_before_it_is_tried() -> None:
    many = {"num_beams": 4, "guidance_scale": 2.0, "use_mtp": True, "temperature": "hot"}
    handle = handle_with(GenerationFile(notes=("A note.",)), do_sample=True, **many)
    said = checkpoint_notice(handle, "checkpoint")
    assert said["kind"] == "warn"
    assert "It cannot be followed: temperature is 'hot'; allowed" in said["text"]
    assert said["text"].endswith("And 2 more. A note.")
    assert checkpoint_notice(handle, "ours")["kind"] == "quiet"
    damaged = checkpoint_notice(handle_with(GenerationFile("It is not JSON.")), "ours")
    assert damaged["text"].endswith("greedy decoding. It cannot be followed: It is not JSON.")


def test_controls_that_have_no_effect_cannot_be_moved() -> None:
    loaded = LoadedModel()
    loaded.use(fake_handle())
    for chosen, free in (("ours", True), ("checkpoint", False)):
        said, *controls = choosing_decoding(loaded)(chosen)
        assert said["text"] and [c["interactive"] for c in controls] == [free] * 4
        with gr.Blocks():
            form = build_form(GenerationSettings(decoding=chosen), [])  # type: ignore[arg-type]
        assert [c.interactive for c in form.replaced] == [free] * 4
        labels = [c.label for c in form.replaced]
        assert labels == ["temperature", "top p", "top k", "repetition penalty"]
        assert form.decoding.value == chosen


@pytest.mark.usefixtures("uploads")
def test_the_page_does_not_read_what_it_shows_as_unused(tmp_path: Path) -> None:
    seen: list[GenerationSettings] = []
    scripted = ScriptedEngine()

    def generate(handle: Any, inputs: Any, settings: Any, **hooks: Any) -> Any:
        seen.append(settings)
        return scripted.generate(handle, inputs, settings, **hooks)

    loaded = LoadedModel()
    loaded.use(fake_handle())
    handlers = Handlers(Settings(), loaded, RunStore(tmp_path, 10**8), RunFunctions(generate))
    with gr.Blocks():
        handlers.component = html_component("inspector", None)
    picture = tmp_path / "photo.png"
    Image.new("RGB", (60, 40)).save(picture)
    press: Callable[..., Any] = generating(handlers)
    moved = {"temperature": 0.7, "top_p": 0.5, "top_k": 3, "repetition_penalty": 1.5, "seed": 4}
    for decoding in ("ours", "checkpoint"):
        request = SimpleNamespace(session_hash="s")
        own = {"image": str(picture), "prompt": "Hello", "compare": False, "same_text": False}
        list(press(request, **own, dims_of="", **moved, decoding=decoding))
    ours, followed = seen
    assert (ours.temperature, ours.top_k, ours.decoding) == (0.7, 3, "ours")
    expected = GenerationSettings(decoding="checkpoint", seed=4, prompt_rows=128, reference=True)
    assert followed == expected


def followed_trace() -> Any:
    made = make_trace()
    settings = {**made.settings, "temperature": 0.0, "decoding": "checkpoint"}
    return dataclasses.replace(made, settings=settings, extra={"decoding": FOLLOWED})


def test_a_saved_page_and_a_pair_say_what_chose_the_tokens() -> None:
    followed = Run({"baseline": followed_trace()})
    page = build_standalone(followed).decode()
    assert f"as the checkpoint says: {WORDS}" in page
    assert "temperature 0.0" not in page
    assert "decoded as the checkpoint says" in facts_of(followed)
    ours = dataclasses.replace(make_trace(), extra={"decoding": {**FOLLOWED, "used": {}}})
    page = build_standalone(Run({"baseline": ours})).decode()
    assert "Not used: the checkpoint&#x27;s own generation_config.json, sampling" in page
    pair = pair_of((followed, "baseline"), (Run({"baseline": ours}), "baseline"))
    assert ["decoding", f"as the checkpoint says: {WORDS}", "–"] in pair.about["settings"]
    assert ["temperature", "–", "0.0"] in pair.about["settings"]


@pytest.mark.parametrize(
    "reported",
    ["x", [1], {"used": 3, "checkpoint": [], "refused": 4}, {"used": {"top_k": [None]}}, {}],
)
def test_whatever_a_file_says_of_its_decoding_a_page_is_made(reported: Any) -> None:
    trace = dataclasses.replace(make_trace(), extra={"decoding": reported})
    build_standalone(Run({"baseline": trace}))
    trace = dataclasses.replace(trace, settings={"decoding": "checkpoint"})
    build_standalone(Run({"baseline": trace}))


@pytest.mark.browser
def test_the_switch_on_the_page(site: Site, open_page: Callable[..., Any]) -> None:
    page = open_page(site.url)
    ready(page)
    page.click("#generation-settings .label-wrap")
    page.wait_for_selector("#checkpoint-says .notice:not([hidden])")
    assert WORDS in page.inner_text("#checkpoint-says")
    sliders = page.locator("#generation-settings input[type=range]")
    found = "[...document.querySelectorAll('#generation-settings input[type=range]')]"
    enabled = f"{found}.map(e => !e.disabled)"
    assert page.evaluate(enabled) == [True] * sliders.count()
    page.check("#decoding input[value=checkpoint]")
    page.wait_for_function(f"{enabled}.filter(Boolean).length === 1")  # the length stays
    page.check("#decoding input[value=ours]")
    page.wait_for_function(f"{enabled}.every(Boolean)")
