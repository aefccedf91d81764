"""The whole story with the bundled model, through the very code that `python app.py` runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sinkscope.config import AppSettings, GenerationSettings, Settings
from sinkscope.models.source import DEMO
from sinkscope.web.example import load_example, make_example, read_examples
from sinkscope.web.launch import launch
from sinkscope.web.page import App, build_app
from sinkscope.web.store import RunStore
from tests.web.conftest import free_port
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
    page = open_page(url)  # the page is there before the model
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
    page.click("[data-testid=example-1]")
    page.wait_for_selector("#image img")
    assert page.input_value("#prompt textarea") == offered[1].prompt


def test_the_example_run_is_made_and_read(bundled: tuple[App, str], tmp_path: Path) -> None:
    app, _ = bundled
    _, state = app.slot.wait(-1, 0)
    seen = -1
    while state.phase == "loading":
        seen, state = app.slot.wait(seen, 60)
    assert state.working is not None
    made = make_example(state.working, tmp_path / "example", max_new_tokens=4)
    read = load_example(tmp_path / "example")
    assert read is not None and read.kind == "example"
    assert list(read.traces) == list(made.traces)
    assert all(t.prompt_rows and t.reference for t in read.traces.values())
    assert read.traces["baseline"].text == made.traces["baseline"].text
