"""Every state of the model and of the form, and what is announced before it happens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sinkscope.config import ModelSettings
from sinkscope.models.source import ModelError
from sinkscope.web.runs.loaded_model import LoadedModel
from sinkscope.web.runs.store import Run
from tests.web.conftest import Site, start_site
from tests.web.scripted import ScriptedEngine, fake_handle
from tests.web.synthetic import make_pair
from tests.web.test_browser_story import ask, finished, free_engine, photo_file, upload
from tests.web.test_browser_view import ready

__all__ = ["free_engine", "photo_file"]

pytestmark = pytest.mark.browser

STATUS = "[data-testid=model-status]"


class SlowLoad:
    """A load that continues when told to, and fails if the model is called "broken"."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def __call__(self, settings: ModelSettings, on_progress: Callable[[str, float], None]) -> Any:
        on_progress("Loading the weights", 0.3)
        assert self.go_on.wait(60)
        if settings.model == "owner/broken":
            raise ModelError("owner/broken is only half downloaded: 1 of 2 files are missing.")
        return fake_handle()


@pytest.fixture
def started(tmp_path: Path) -> Iterator[tuple[str, SlowLoad]]:
    """An app without a model yet, as directly after `python app.py`."""
    load = SlowLoad()
    example = Run(make_pair(), kind="example")
    options = {"loaded": LoadedModel(load), "example": example}
    site = start_site(tmp_path, ScriptedEngine(), **options)
    yield site.url, load
    load.go_on.set()
    site.app.blocks.close(verbose=False)


def test_the_page_is_there_before_its_model(
    started: tuple[str, SlowLoad], open_page: Any, photo_file: Path
) -> None:
    url, load = started
    page = open_page(url, errors=True)
    ready(page)  # the example, while the model loads behind it
    page.wait_for_selector(f"{STATUS}[data-phase=loading]")
    assert "Loading the weights" in page.inner_text(STATUS)
    assert page.get_attribute(f"{STATUS} [role=progressbar]", "aria-valuenow") == "30"
    assert page.is_disabled("#compare input")
    upload(page, photo_file)
    ask(page, "Too early.")
    page.wait_for_selector("[data-phase=error]")
    assert "still loading (loading the weights)" in page.inner_text("[data-testid=alert]")
    load.go_on.set()
    page.wait_for_selector(f"{STATUS}[data-phase=ready]")
    page.wait_for_selector("#compare input:enabled")
    page.wait_for_selector("#ahead .notice:not([hidden])")  # now it can be said
    ask(page, "Now.")
    finished(page)


def test_a_failed_load_leaves_the_model_in_use(
    started: tuple[str, SlowLoad], open_page: Any
) -> None:
    url, load = started
    load.go_on.set()
    page = open_page(url, errors=True)
    page.wait_for_selector(f"{STATUS}[data-phase=ready]")
    page.click("#model .label-wrap")
    ahead = page.locator("#load-ahead .notice")
    # At first the line may still show the result of the previous load.
    page.wait_for_selector("#load-ahead .notice:has-text('million parameters in float32')")
    load.go_on.clear()
    page.fill("#model-name input", "owner/broken")
    page.keyboard.press("Enter")
    page.wait_for_selector("#load-ahead .notice[data-kind=warn]")
    assert "not on this machine" in ahead.inner_text()
    page.click("#load")
    page.wait_for_selector("#load-ahead .notice[data-kind=busy]")
    assert ahead.inner_text() == "Loading the weights (owner/broken)"
    load.go_on.set()
    page.wait_for_selector(f"{STATUS}[data-phase=failed]")
    assert "fake" in page.inner_text(STATUS) and "half downloaded" in page.inner_text(STATUS)
    page.wait_for_selector("#load-ahead .notice[data-kind=warn]")
    assert ahead.inner_text().startswith("owner/broken is only half downloaded")
    assert page.locator(".toast-body").count() == 0  # shown only once, in the line
    assert page.is_enabled("#compare input")  # of the model that is still in use


def test_a_start_whose_model_is_missing(tmp_path: Path, open_page: Any) -> None:
    nowhere = ModelSettings(str(tmp_path / "nowhere"))
    site = start_site(tmp_path, ScriptedEngine(), model=nowhere)
    page = open_page(site.url)
    page.wait_for_selector(f"{STATUS}[data-phase=failed]")
    assert "There is no model folder" in page.inner_text(STATUS)
    site.app.blocks.close(verbose=False)


def test_the_first_start_without_an_example(
    tmp_path: Path, open_page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sinkscope.web.page.load_example", lambda: None)
    site = start_site(tmp_path, ScriptedEngine(), handle=fake_handle())
    page = open_page(site.url)
    page.wait_for_selector("[data-testid=blank]")
    assert "Where did each word look?" in page.inner_text("[data-testid=blank]")
    assert page.inner_text("[data-testid=phase]") == "No run yet"
    page.close()  # before the server goes, or it says so in the console
    site.app.blocks.close(verbose=False)


@pytest.fixture
def unused(tmp_path: Path) -> Iterator[Site]:
    """An app without any finished run, so its forecasts are estimates."""
    example = Run(make_pair(), kind="example")
    made = start_site(tmp_path, ScriptedEngine(), handle=fake_handle(), example=example)
    yield made
    made.app.blocks.close(verbose=False)


def test_the_forecast_follows_the_form(unused: Site, open_page: Any, photo_file: Path) -> None:
    page = open_page(unused.url)
    ready(page)
    assert page.locator("#ahead .notice").is_hidden()
    upload(page, photo_file)

    def wait_for(words: str) -> None:
        page.wait_for_function(
            "words => document.querySelector('#ahead .text').textContent.includes(words)", arg=words
        )

    wait_for("6 vision tokens · up to 64 kB of attention · up to about 6.4 s (estimate)")
    page.check("#compare input")
    wait_for("128 kB of attention · up to about 13 s")
    page.click("#generation-settings .label-wrap")
    page.fill("#generation-settings input[type=number] >> nth=0", "20")
    page.keyboard.press("Tab")
    wait_for("40 kB of attention · up to about 4.0 s")
    page.fill("#prompt textarea", "heavy")
    page.keyboard.press("Tab")
    wait_for("What helps: fewer new tokens")
    assert page.locator("#ahead .notice").get_attribute("data-kind") == "warn"


def test_a_change_while_a_forecast_is_on_its_way(
    site: Site, open_page: Any, photo_file: Path
) -> None:
    """The line shows the last change, even if the answer to the previous one is still pending."""
    page = open_page(site.url)
    ready(page)
    upload(page, photo_file)
    page.click("#generation-settings .label-wrap")
    tokens = page.locator("#generation-settings input[type=number]").first
    tokens.wait_for()
    page.wait_for_function("document.querySelector('#ahead .text').textContent.includes('64 kB')")
    held: list[Any] = []
    free: list[bool] = []
    page.route("**/run/predict", lambda route: route.continue_() if free else held.append(route))
    page.check("#compare input")
    page.wait_for_timeout(300)
    assert held
    tokens.fill("20")
    page.keyboard.press("Tab")
    page.wait_for_timeout(300)
    free.append(True)
    for route in held:
        route.continue_()
    page.wait_for_function("document.querySelector('#ahead .text').textContent.includes('40 kB')")


def test_a_link_to_a_run_that_is_gone(site: Site, open_page: Any) -> None:
    page = open_page(site.url, path="#run=AAAAAAAAAAAAAAAAAAAAAA&t=3-3")
    ready(page)
    page.wait_for_selector("[data-testid=alert]:not([hidden])")
    assert "no longer on the server" in page.inner_text("[data-testid=alert]")
    assert page.inner_text("[data-testid=phase]") == "Precomputed example"


def test_a_phone_is_taken_to_the_answer(site: Site, open_page: Any, photo_file: Path) -> None:
    page = open_page(site.url, width=390)
    ready(page)
    upload(page, photo_file)
    ask(page, "Where?")
    finished(page)
    line = page.locator("[data-testid=phase]").bounding_box()
    assert -1 <= line["y"] < 844
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 390  # nothing makes the page scroll sideways
