"""A published checkpoint in the page: from the hub's cache at the start, then by folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sinkscope.config import AppSettings, GenerationSettings, ModelSettings, Settings
from sinkscope.models.profiles import DEMO
from sinkscope.web.launch import launch
from sinkscope.web.page import App, build_app
from tests.checkpoints.published import TEXT_TEMPLATE, write_hub_cache, write_json, write_like
from tests.web.conftest import free_port, reload
from tests.web.test_browser_story import ask, finished, photo_file, upload

__all__ = ["photo_file"]

pytestmark = [pytest.mark.browser, pytest.mark.slow]
NAME = "Qwen/Qwen2.5-VL-3B-Instruct"
STATUS = "[data-testid=model-status]"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[App, str, Path]]:
    if not (DEMO / "config.json").is_file():
        pytest.skip("the bundled model is not there; make it with: sinkscope demo train")
    room = tmp_path_factory.mktemp("published")
    folder = write_like(room / "hub_like", pixels={"min_pixels": 19600, "max_pixels": 38416})
    write_hub_cache(room / "hub", NAME, folder)
    write_json(folder / "chat_template.json", {"chat_template": TEXT_TEMPLATE})
    page = AppSettings(port=free_port(), cache_dir=str(room / "cache"))
    settings = Settings(
        model=ModelSettings(NAME, device="cpu"),
        generation=GenerationSettings(max_new_tokens=8),
        app=page,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(room / "hub"))
        app = build_app(settings)
        yield app, launch(app, wait=False), folder
        app.blocks.close(verbose=False)


def test_it_is_asked_and_another_is_loaded(
    published: tuple[App, str, Path], open_page: Any, photo_file: Path
) -> None:
    app, url, folder = published
    page = open_page(url)
    page.wait_for_selector(f"{STATUS}[data-phase=ready]", timeout=120_000)
    status = page.inner_text(STATUS)
    assert NAME in status and "6 layers × 8 heads" in status and "template" not in status
    upload(page, photo_file)
    ask(page, "Describe the image.")
    run = app.handlers.store.get(finished(page))
    assert run is not None and run.first.model.id == NAME
    assert page.locator("[data-testid=strip-baseline] .token").count() == len(run.first.tokens) > 0

    # By folder, and one whose own template shows no images: the page says what is used instead.
    assert app.loaded.load(ModelSettings(str(folder), device="cpu"))
    reload(page)
    page.wait_for_selector(f"{STATUS}[data-phase=ready]", timeout=120_000)
    page.wait_for_function(f"document.querySelector('{STATUS}').innerText.includes('hub_like')")
    assert "so the family's own is used." in page.inner_text(STATUS)
