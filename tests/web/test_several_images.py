"""Several images in one question: asked on the page, each with its own map, stored and restored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sinkscope.attention_extractor import generate
from sinkscope.config import GenerationSettings
from sinkscope.drawing.view import View, make_side
from sinkscope.drawing.view_figure import about_sides
from sinkscope.models.loading import load_model
from sinkscope.web.explore.export_files import ExportRequest, make_files
from sinkscope.web.explore.refill import cached_image
from sinkscope.web.runs.form_values import changed_words
from sinkscope.web.runs.request import MORE, Request
from sinkscope.web.runs.standalone import build_standalone
from sinkscope.web.runs.store import Run
from tests.web.conftest import INSPECTOR, Site, reload
from tests.web.synthetic import make_trace, scene, with_more
from tests.web.test_browser_story import ask, finished, upload
from tests.web.test_browser_view import ready

WIDE = Image.new("RGB", (300, 100), (20, 60, 200))


def two_images() -> Run:
    return Run({"baseline": with_more(make_trace(), (WIDE,))})


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    made = []
    for name, image in (("one.png", scene()), ("two.png", WIDE)):
        image.save(tmp_path / name)
        made.append(tmp_path / name)
    return made


def test_a_request_has_the_images_that_there_are_in_order() -> None:
    assert Request("a", "?", more=(None, "c", "")).images == ("a", "c")
    assert Request(None, "?", more=("b", None, None)).images == ("b",)  # the first place is empty
    assert Request(None, "?").images == ()


def test_changed_images_are_said_once() -> None:
    before = {"image": "a", "prompt": "?", **dict.fromkeys(MORE), "compare": False}
    words = changed_words(before, {**before, "image_2": "b", "image_3": "c"})
    assert words.count("further images") == 1 and "not read again" not in words


def test_the_form_is_given_each_image_of_a_run(site: Site) -> None:
    run, place = two_images(), site.app.handlers.component
    assert place is not None
    paths = [cached_image(run, place, index=k) for k in range(3)]  # type: ignore[arg-type]
    assert paths[2] is None
    assert [Image.open(p).size for p in paths if p] == [scene().size, WIDE.size]


def test_figures_say_which_image_they_show(tmp_path: Path) -> None:
    run = two_images()
    side = make_side("", run.first)
    assert "Image 1 (of 2) 300 × 100 px" in " ".join(about_sides([side], 1))
    one = make_side("", make_trace())
    assert "Image 420 × 300 px" in " ".join(about_sides([one]))
    drawn = {}
    for image in (0, 1):
        folder = tmp_path / str(image)
        folder.mkdir()
        view = View(image=image)
        (path,) = make_files(run, ExportRequest("gif", view, last=1, width=320), folder)
        drawn[image] = Image.open(path).convert("RGB")
    assert drawn[0].size != drawn[1].size  # of the images' own shapes


@pytest.mark.tiny
def test_a_model_sees_each_image(tiny_folder: Path, photo: Image.Image) -> None:
    """What the page does with two uploads, with a real model: two grids, two maps."""
    handle = load_model(str(tiny_folder), device="cpu", dtype="float32")
    inputs = handle.prepare([photo.resize((112, 84)), photo.resize((56, 112))], "Which?")
    trace = generate(handle, inputs, GenerationSettings(max_new_tokens=2, reference=False))
    grids = trace.layout.grids
    assert len(grids) == 2 and (grids[0].rows, grids[1].columns) == (3, 2)
    labels = [s.image for s in trace.layout.segments if s.kind == "image"]
    assert labels == [0, 1] and trace.attention.shape[-1] == trace.layout.vision_tokens


@pytest.mark.browser
def test_two_images_asked_on_the_page(
    site: Site, open_page: Callable[..., Any], pictures: list[Path]
) -> None:
    page = open_page(site.url)
    ready(page)
    assert page.locator("[data-testid=images]").is_hidden()  # the example has one image
    upload(page, pictures[0])
    page.click("#more-images button")
    page.set_input_files("#image-2 input[type=file]", str(pictures[1]))
    page.wait_for_selector("#image-2 img")
    page.wait_for_timeout(200)  # an upload is in the form a moment after its picture is there
    ask(page, "Which one is blue?")
    run = site.app.handlers.store.get(finished(page))
    assert run is not None and [one.size for one in run.first.images] == [scene().size, WIDE.size]

    first, second = page.locator("[data-testid=image-0]"), page.locator("[data-testid=image-1]")
    assert first.get_attribute("aria-pressed") == "true"
    shape = "() => { const b = document.querySelector('.stage').getBoundingClientRect(); "
    shape += "return b.width / b.height; }"
    assert page.evaluate(shape) == pytest.approx(scene().width / scene().height, rel=0.02)
    token = page.evaluate(f"{INSPECTOR}.view.t0")
    shown = f"[...{INSPECTOR}.shown.maps.baseline]"
    both = np.asarray(page.evaluate(shown))
    np.testing.assert_allclose(both, run.first.attention[token].float().mean((0, 1)), atol=2e-4)
    parts = [both[:96].sum(), both[96:].sum()]
    for button, part in zip((first, second), parts, strict=True):
        said = float(button.locator("b").inner_text().rstrip(" %"))
        assert said == pytest.approx(100 * part, abs=0.6)

    second.click()
    assert second.get_attribute("aria-pressed") == "true"
    page.wait_for_function(f"({shape})() > 2.5")  # the wide one, with its own map
    label = page.get_attribute(".figure .stage", "aria-label") or ""
    assert ", image 1. " in label
    page.wait_for_timeout(700)  # the address is written a moment after the last change
    reload(page)
    page.wait_for_selector("[data-testid=image-1][aria-pressed=true]")
    page.wait_for_selector("#image-2 img")  # and the form has both again, unfolded


@pytest.mark.browser
def test_a_run_of_two_images_from_elsewhere_opens(
    site: Site, open_page: Callable[..., Any], browser: Any, tmp_path: Path
) -> None:
    """A run made by the command line or Python; and the stand-alone page."""
    run = two_images()
    site.app.handlers.store.put(run, keep_on_disk=False)
    page = open_page(site.url, path=f"#run={run.id}")
    ready(page)
    page.wait_for_selector("[data-testid=image-1]")
    page.wait_for_function(f"{INSPECTOR}.run.id === '{run.id}'")
    alone = tmp_path / "alone.html"
    alone.write_bytes(build_standalone(run))
    context = browser.new_context()
    saved = context.new_page()
    saved.goto(alone.as_uri())
    saved.click("[data-testid=image-1]")
    saved.wait_for_function(
        "() => { const b = document.querySelector('.stage').getBoundingClientRect(); "
        "return b.width / b.height > 2.5; }"
    )
    context.close()
