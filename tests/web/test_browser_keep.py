"""Runs of this browser, and the files that can be saved from a run."""

from __future__ import annotations

import base64
import csv
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sinkscope.capture.trace import GenerationTrace
from tests.web.conftest import Site, reload
from tests.web.synthetic import HOSTILE
from tests.web.test_browser_story import ask, finished, photo_file, upload
from tests.web.test_browser_view import ready

__all__ = ["photo_file"]

pytestmark = pytest.mark.browser


def test_runs_are_listed_for_this_browser_alone(
    site: Site, open_page: Any, photo_file: Path
) -> None:
    page = open_page(site.url)
    ready(page)
    upload(page, photo_file)
    ask(page, "hostile")
    mine = finished(page)
    page.click("[data-testid=runs-button]")
    rows = page.locator("[data-testid=runs] li")
    assert rows.count() == 1 and "hostile" in rows.inner_text()

    page.click("[data-testid=runs] >> text=Rename")
    page.fill("[data-testid=runs] input", "<b>My run</b>")
    page.keyboard.press("Enter")
    assert page.inner_text("[data-testid=runs] .open") == "<b>My run</b>"

    reload(page, f"{site.url}?again")  # no run in the address: the example
    ready(page)
    assert page.inner_text("[data-testid=phase]") == "Precomputed example"
    page.click("[data-testid=runs-button]")
    page.click("[data-testid=runs] .open")
    page.wait_for_selector(f"[data-ready='{mine}']", state="attached")

    other = open_page(site.url)
    ready(other)
    other.click("[data-testid=runs-button]")
    assert "None yet" in other.inner_text("[data-testid=runs]")

    page.click("[data-testid=runs] >> text=Delete")
    page.wait_for_selector("[data-testid=runs] >> text=None yet")
    assert site.app.handlers.store.get(mine) is None


def saved(page: Any, way: str, folder: Path) -> Path:
    with page.expect_download() as waiting:
        page.click(f"[data-testid=save-{way}]")
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def test_saving(site: Site, open_page: Any, photo_file: Path, tmp_path: Path) -> None:
    page = open_page(site.url)
    ready(page)
    upload(page, photo_file)
    ask(page, "hostile")
    run = site.app.handlers.store.get(finished(page))
    assert run is not None
    page.click("[data-testid=save-button]")

    with Image.open(saved(page, "png", tmp_path)) as picture:
        assert picture.format == "PNG" and picture.width >= 1600
        colours = picture.convert("RGB").resize((64, 64)).getcolors(4096)
        assert colours is not None and len(colours) > 200  # a photo with its map, not a blank

    with saved(page, "csv", tmp_path).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    trace = run.traces["baseline"]
    assert len(rows) == len(HOSTILE) * 6 * 8
    assert {row["text"] for row in rows} >= {HOSTILE[0], HOSTILE[1]}
    first = float(trace.shares[0, 0, 0, 1])
    assert abs(float(rows[0]["image_share"]) - first) < 1e-4

    again = GenerationTrace.open(saved(page, "trace", tmp_path))
    assert again.attention.equal(trace.attention)
    assert run.id in saved(page, "html", tmp_path).read_text(encoding="utf-8")


@pytest.mark.parametrize("way", ["pdf", "gif", "mp4"])
def test_what_the_server_draws(
    way: str, site: Site, open_page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sinkscope.drawing.view_figure.PANEL_PIXELS", 120)
    page = open_page(site.url)
    ready(page)
    page.click("[data-testid=token-baseline-3]")
    page.keyboard.down("Shift")
    page.click("[data-testid=token-baseline-6]")
    page.keyboard.up("Shift")
    page.click("[data-testid=save-button]")
    page.fill("[data-testid=motion-window]", "2")
    path = saved(page, way, tmp_path)
    assert path.suffix == f".{way}"
    page.wait_for_selector(f".save .status-text:has-text('.{way} (')")
    if way == "gif":
        with Image.open(path) as picture:
            assert picture.n_frames == 3  # of four tokens, two by two
    if way == "mp4":
        data = base64.b64encode(path.read_bytes()).decode()
        played = page.evaluate(
            """data => new Promise((done) => {
              const video = document.createElement("video");
              video.oncanplay = () => done(video.duration);
              video.onerror = () => done(video.error.message);
              video.src = "data:video/mp4;base64," + data;
            })""",
            data,
        )
        assert abs(played - 3 * 0.4) < 0.2
    assert page.inner_text("[data-testid=phase]") == "Precomputed example"  # the run stays

    page.fill("[data-testid=motion-window]", "9")
    if way != "pdf":
        page.click(f"[data-testid=save-{way}]")
        page.wait_for_selector(".save .status-text:has-text('window is 9; allowed: 1 to 4')")


def test_one_panel_is_open_at_a_time(site: Site, open_page: Any) -> None:
    page = open_page(site.url)
    ready(page)
    page.click("[data-testid=save-button]")
    page.click("[data-testid=runs-button]")
    assert [page.is_visible(f".scope .{name}") for name in ("save", "runs")] == [False, True]
    assert page.get_attribute("[data-testid=save-button]", "aria-expanded") == "false"
    page.keyboard.press("Escape")
    assert not page.is_visible(".scope .runs")
    assert page.evaluate("document.activeElement.dataset.testid") == "runs-button"


def test_parts_of_one_head_say_that_they_are_means(site: Site, open_page: Any) -> None:
    page = open_page(site.url)
    ready(page)
    assert "chosen heads" not in page.inner_text("[data-testid=budget]")
    page.click("[data-testid=strongest]")
    assert "over all heads of these layers" in page.inner_text("[data-testid=budget]")
