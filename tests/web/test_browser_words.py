"""The page with texts of other lengths and scripts: nothing moves, is cut or reads backwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sinkscope.web.runs.store import Run
from tests.web.conftest import INSPECTOR, Site
from tests.web.synthetic import make_pair
from tests.web.test_browser_sides import opened
from tests.web.test_browser_view import ready

pytestmark = pytest.mark.browser

ARABIC = ("دائرة", " حمراء", " في", " الوسط", ".")


def test_a_long_token_does_not_move_the_maps(site: Site, open_page: Any) -> None:
    long = ("A", " circle", " supercalifragilisticexpialidocious" * 3, ".")
    page = opened(site, open_page, Run(make_pair(long, long)))
    tops = []
    for i in range(3):
        page.click(f"[data-testid=token-baseline-{i}]")
        tops.append(page.locator(".stage").first.bounding_box()["y"])
    assert tops[0] == tops[1] == tops[2]
    assert "supercali" in page.get_attribute("[data-testid=selection]", "title")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_an_answer_in_arabic_runs_from_right_to_left(site: Site, open_page: Any) -> None:
    page = opened(site, open_page, Run(make_pair(ARABIC, ARABIC)))
    places = [page.locator(f"[data-testid=token-var-{i}]").bounding_box()["x"] for i in range(4)]
    assert places == sorted(places, reverse=True)
    page.click("[data-testid=token-var-0]")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(f"{INSPECTOR}.view.t0") == 1
    page.keyboard.press("ArrowRight")
    assert page.evaluate(f"{INSPECTOR}.view.t0") == 0


def test_a_very_long_question_leaves_the_answer_in_the_window(site: Site, open_page: Any) -> None:
    pair = {name: replace(one, prompt="x" * 20_000) for name, one in make_pair().items()}
    page = opened(site, open_page, Run(pair))
    page.click("[data-testid=prompt-hide]")
    assert page.locator(".asked").bounding_box()["height"] <= 90
    assert page.locator(".stage").first.bounding_box()["y"] < 700


def test_what_a_control_changed_is_not_called_a_sink(site: Site, open_page: Any) -> None:
    pair = make_pair()
    layer = {"layer": 2, "positions": [9, 11], "flagged": 0.02, "selected": 0.5, "moved": 0.01}
    heads = {}
    for control in ("random", "none"):
        report = {"settings": {"tau": 6.0, "control": control}, "layers": [layer], "changed": True}
        run = Run({**pair, "var": replace(pair["var"], var=report)})
        page = opened(site, open_page, run)
        heads[control] = page.inner_text("[data-testid=moved] thead").lower()
    assert "random patches" in heads["random"] and "sinks" not in heads["random"]
    assert "sinks" in heads["none"]


def test_a_dead_link_says_that_it_has_no_image(site: Site, open_page: Any) -> None:
    asked = "ask=%7B%22prompt%22%3A%22What%20is%20it%3F%22%7D"
    page = open_page(site.url, path=f"#run=AAAAAAAAAAAAAAAAAAAAAA&{asked}")
    ready(page)
    page.wait_for_selector("[data-testid=alert]:not([hidden])")
    assert "give the image again" in page.inner_text("[data-testid=alert]")
    page.wait_for_function("document.querySelector('#prompt textarea').value === 'What is it?'")


def test_a_damaged_link_says_so(site: Site, open_page: Any) -> None:
    page = open_page(site.url, path="#run=zzz")
    ready(page)
    page.wait_for_selector("[data-testid=alert]:not([hidden])")
    assert "damaged" in page.inner_text("[data-testid=alert]")


def test_the_scale_of_small_changes_is_not_zero(site: Site, open_page: Any) -> None:
    pair = make_pair()
    tokens = tuple(replace(t, probability=0.5) for t in pair["baseline"].tokens)
    nearly = tuple(replace(t, probability=0.51) for t in pair["baseline"].tokens)
    run = Run(
        {
            "baseline": replace(pair["baseline"], tokens=tokens),
            "var": replace(pair["var"], tokens=nearly),
        },
        same_text=True,
    )
    page = opened(site, open_page, run)
    assert "+0.02" in page.inner_text(".gains")


def test_arrow_keys_work_after_the_help_was_closed(example_page: Any) -> None:
    page = example_page
    page.evaluate(f"{INSPECTOR}.set({{ t0: 2, t1: 2 }})")
    for close in ("Escape", "click"):
        before = page.evaluate(f"{INSPECTOR}.view.t0")
        page.click("[data-do=help]")
        if close == "click":
            page.click("[data-do=close-help]")
        else:
            page.keyboard.press("Escape")
        assert page.is_hidden(".help")
        page.keyboard.press("ArrowRight")
        assert page.evaluate(f"{INSPECTOR}.view.t0") == before + 1, close


def test_a_patch_of_the_difference_has_its_sign(example_page: Any) -> None:
    page = example_page
    box = page.locator(".figure[data-variant=difference] .stage").bounding_box()
    signs = []
    for row, column in ((6, 10), (0, 0)):  # a sink, which VAR takes from; another patch
        x, y = (column + 0.5) / 12, (row + 0.5) / 8
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        words = page.inner_text(".figure[data-variant=difference] .patch")
        signs.append(words.split("·")[1].strip()[0])
    assert signs == ["−", "+"]


def test_a_file_that_the_browser_cannot_draw_is_not_a_broken_image(
    site: Site, open_page: Any, tmp_path: Path
) -> None:
    Image.new("RGB", (60, 40), "red").save(tmp_path / "scan.tiff")
    page = open_page(site.url)
    ready(page)
    if page.locator("#image button[aria-label='Remove Image']").count():
        page.click("#image button[aria-label='Remove Image']")
    page.set_input_files("#image input[type=file]", str(tmp_path / "scan.tiff"))
    page.wait_for_function("document.querySelector('#image img')?.alt.startsWith('No preview')")
