"""The whole workflow with the bundled model, through the same code that `python app.py` runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sinkscope.config import AppSettings, GenerationSettings, Settings
from sinkscope.models.source import DEMO
from sinkscope.web.launch import launch
from sinkscope.web.page import App, build_app
from sinkscope.web.runs.example import load_example, make_example, read_examples
from sinkscope.web.runs.store import RunStore
from tests.web.conftest import free_port
from tests.web.test_browser_access import ALL, serious
from tests.web.test_browser_story import ask, finished, photo_file, upload
from tests.web.test_browser_view import drawn

__all__ = ["photo_file"]

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[App, str]]:
    if not (DEMO / "config.json").is_file():
        pytest.skip("the bundled model is not there; make it with: sinkscope demo train")
    page = AppSettings(port=free_port(), cache_dir=str(tmp_path_factory.mktemp("cache")))
    app = build_app(Settings(generation=GenerationSettings(max_new_tokens=12), app=page))
    yield app, launch(app, wait=False)
    app.blocks.close(verbose=False)


def test_photo_to_heatmap_with_the_bundled_model(
    bundled: tuple[App, str], open_page: Any, photo_file: Path
) -> None:
    app, url = bundled
    page = open_page(url)  # the page opens before the model is loaded
    page.wait_for_selector("[data-testid=model-status][data-phase=ready]", timeout=120_000)
    assert "6 layers × 8 heads" in page.inner_text("[data-testid=model-status]")
    upload(page, photo_file)
    page.check("#compare input")
    ask(page, "Describe the image.")
    run = app.handlers.store.get(finished(page))
    assert run is not None
    baseline = run.traces["baseline"]
    assert page.locator("[data-testid=strip-baseline] .token").count() == len(baseline.tokens)
    page.click("[data-testid=token-baseline-0]")
    first = drawn(page)
    page.click("[data-testid=strongest]")
    assert drawn(page) != first

    # The prompt's own words and the generic prompt are part of the run, also after a restart.
    page.click("[data-testid=reset]")
    page.locator("[data-testid=strip-prompt] .token", has_text="image").click()
    assert "the row of the token itself" in page.inner_text("[data-testid=selection]")
    page.select_option("[data-testid=method]", "relative")
    assert "generic prompt" in page.inner_text("[data-testid=panel-var] .words")
    folder = Path(app.settings.app.cache_dir) / "runs"
    again = RunStore(folder, 10**9).get(run.id)
    assert again is not None
    for name, trace in run.traces.items():
        for part in ("prompt_rows", "reference"):
            kept, was = getattr(again.traces[name], part), getattr(trace, part)
            assert torch.equal(kept.attention, was.attention)


def test_examples_fill_the_form(bundled: tuple[App, str], open_page: Any) -> None:
    offered = read_examples()
    if not offered:
        pytest.skip("there are no example pictures")
    page = open_page(bundled[1])
    page.wait_for_selector("#image img")  # the form has the example that is on screen
    page.wait_for_selector("[data-testid=inspector][data-ready]", state="attached")
    page.wait_for_selector("#compare input:checked")  # its settings too
    page.click("[data-testid=example-1]")
    page.wait_for_function(
        "text => document.querySelector('#prompt textarea').value === text", arg=offered[1].prompt
    )


def test_the_example_run_is_made_and_read(bundled: tuple[App, str], tmp_path: Path) -> None:
    app, _ = bundled
    _, state = app.loaded.wait(-1, 0)
    seen = -1
    while state.phase == "loading":
        seen, state = app.loaded.wait(seen, 60)
    assert state.working is not None
    made = make_example(state.working, tmp_path / "example", max_new_tokens=4)
    read = load_example(tmp_path / "example")
    assert read is not None and read.kind == "example"
    assert list(read.traces) == list(made.traces)
    assert all(t.prompt_rows and t.reference for t in read.traces.values())
    assert read.traces["baseline"].text == made.traces["baseline"].text


def test_a_box_on_the_image_is_tested(bundled: tuple[App, str], open_page: Any) -> None:
    """In a picture of four things, the box of the blue cross matters for its words."""
    app, url = bundled
    page = open_page(url, 1440, "dark")
    page.wait_for_selector("[data-testid=model-status][data-phase=ready]", timeout=120_000)
    page.wait_for_selector("[data-testid=inspector][data-ready]")
    run = app.handlers.store.get(page.get_attribute("[data-testid=inspector]", "data-ready"))
    assert run is not None and " cross" in [token.text for token in run.first.tokens]
    assert page.is_hidden("[data-testid=boxed]") and page.is_hidden("[data-testid=region]")
    stage = page.locator("[data-testid=panel-baseline] .stage")
    stage.scroll_into_view_if_needed()
    frame = stage.bounding_box()
    cell = frame["width"] / run.first.layout.grids[0].columns
    page.mouse.move(frame["x"] + 0.5 * cell, frame["y"] + 0.5 * cell)
    page.mouse.down()
    page.mouse.move(frame["x"] + 2.5 * cell, frame["y"] + 2.5 * cell, steps=3)
    page.mouse.up()
    assert page.inner_text("[data-testid=boxed]").startswith("rows 0–2, columns 0–2")
    page.locator("[data-testid=region-test]").focus()  # by the keyboard
    page.keyboard.press("Enter")
    page.wait_for_selector("[data-testid=region-var] .finding", timeout=60_000)
    page.wait_for_selector("[data-testid=region-stop]", state="detached", timeout=60_000)
    finding = page.inner_text("[data-testid=region-baseline] .finding")
    assert "“cross”" in finding and "“ring”" not in finding
    assert page.locator("[data-testid=region-test]").count() == 0  # nothing is left to test

    words = [token.text for token in run.first.tokens]
    for name in ("baseline", "var"):
        marked = page.locator(f"[data-testid=strip-{name}] .token:has(sup.matters)")
        found = [int(one.get_attribute("data-i")) for one in marked.all()]
        assert words.index(" cross") in found and words.index(" ring") not in found
    page.locator("[data-testid=region-baseline] .nats button").nth(words.index(" cross")).click()
    said = page.inner_text("[data-testid=region-baseline] .chosen-token")
    assert "“cross” goes from" in said and "This box matters more for it than" in said

    assert serious(page, ALL) == []

    # Another way is another question; the answer to the first one is kept.
    page.select_option("[data-testid=region-way]", "grey")
    assert "Not tested this way yet" in page.inner_text("[data-testid=region]")
    page.focus("[data-testid=region-way]")
    page.keyboard.press("m")  # in a select it is a letter
    page.click("[data-testid=region-test]")
    page.wait_for_selector("[data-testid=region-stop]")
    page.click("[data-testid=region-stop]")
    page.wait_for_selector("[data-testid=region-error], [data-testid=region-baseline]")
    page.wait_for_selector("[data-testid=region-stop]", state="detached", timeout=60_000)
    page.select_option("[data-testid=region-way]", "cut")
    assert page.inner_text("[data-testid=region-baseline] .finding") == finding
    page.click("[data-testid=boxed] [data-do=clear-box]")
    assert page.is_hidden("[data-testid=region]")
    assert page.locator("sup.region").count() == 0

    # The whole test without a mouse: from the middle of 7 x 7 patches two to the right, one down.
    stage.focus()
    page.keyboard.press("ArrowLeft")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(f"Shift+{key}")
    assert page.inner_text("[data-testid=boxed]").startswith("rows 3–4, columns 3–5")
    page.keyboard.press("m")
    page.wait_for_selector("[data-testid=region-baseline] .finding", timeout=60_000)
