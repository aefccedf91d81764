"""Accessibility: axe-core finds nothing serious, and everything can be done by keyboard."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.base import AXE_SCRIPT
from PIL import Image

from sinkscope.web.runs.example import read_examples
from tests.web.conftest import INSPECTOR, Site
from tests.web.synthetic import WORDS
from tests.web.test_browser_story import ask, finished
from tests.web.test_browser_view import drawn, ready

pytestmark = pytest.mark.browser

FOLDS = ("#var-settings", "#generation-settings", "#model")
VIEWS = [(1440, "light"), (1440, "dark"), (390, "light")]
ALL = {"rules": {"target-size": {"enabled": True}}}
COLOURS = {"runOnly": ["color-contrast"]}  # the only check that depends on the scheme


def serious(page: Any, options: dict[str, Any] = ALL) -> list[str]:
    """Findings that axe-core calls serious or critical, one line for each place."""
    if not page.evaluate("typeof axe !== 'undefined'"):
        page.evaluate(AXE_SCRIPT)
    options = {**options, "resultTypes": ["violations"]}
    found = page.evaluate("options => axe.run(document, options)", options)["violations"]
    return [
        f"{rule['id']}: {node['target']} {node['failureSummary']}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_axe_finds_nothing_serious(
    shop: Site, open_page: Callable[..., Any], width: int, scheme: str
) -> None:
    page = open_page(shop.url, width=width, scheme=scheme, errors=True)
    ready(page)
    options = COLOURS if scheme == "dark" else ALL
    assert serious(page, options) == []  # the first view

    for fold in FOLDS:
        page.click(f"{fold} .label-wrap")
    page.wait_for_selector("#load-ahead .notice:not([hidden])")
    page.click("[data-testid=example-1]")
    page.wait_for_selector("#ahead .notice:not([hidden])")
    page.check("#compare input")
    ask(page, "Compare.")
    finished(page)
    page.click("[data-do=help]")
    assert serious(page, options) == []  # a finished comparison, settings and help open

    page.click("[data-do=close-help]")
    page.click("[data-do=runs]")
    ask(page, "broken")
    page.wait_for_selector("[data-phase=error]")
    assert serious(page, options) == []  # something went wrong; the list of runs


def test_axe_would_see_a_fault(shop: Site, open_page: Callable[..., Any]) -> None:
    page = open_page(shop.url)
    ready(page)
    page.evaluate(
        "document.querySelector('.scope').insertAdjacentHTML('beforeend', '<button></button>"
        '<p style="color: #ccc; background: #fff">pale</p>\')'
    )
    assert {line.partition(":")[0] for line in serious(page)} == {"button-name", "color-contrast"}


# --- by keyboard alone ---------------------------------------------------------------------------

FOCUS = """() => {
  const e = document.activeElement;
  if (!e || e === document.body) return null;
  const label = e.matches("input") && e.closest("label, .wrap-inner") || e;
  const box = (x) => { const r = x.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]; };
  return { name: e.dataset.testid || e.id || e.getAttribute("aria-label") || e.textContent.trim(),
    box: box(e), target: box(label), tag: e.tagName };
}"""
STILL = "* { transition: none !important; animation: none !important; caret-color: transparent; }"
BARE = "on => document.activeElement.style.setProperty('outline', on ? 'none' : '', 'important')"


def tab_to(page: Any, selector: str, most: int = 120) -> None:
    """Press Tab until an element has the focus."""
    for _ in range(most):
        if page.evaluate("s => document.activeElement?.matches(s)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{selector} is not reached in {most} steps")


def ring(page: Any, box: list[float]) -> int:
    """Pixels around the focused element that differ with and without its outline."""
    size = page.viewport_size
    x, y = max(0, box[0] - 6), max(0, box[1] - 6)
    clip = {
        "x": x,
        "y": y,
        "width": min(size["width"], box[0] + box[2] + 6) - x,
        "height": min(size["height"], box[1] + box[3] + 6) - y,
    }
    shots = []
    for bare in (False, True):
        page.evaluate(BARE, bare)
        image = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")
        shots.append(np.asarray(image).astype(int))
    page.evaluate(BARE, False)
    return int((abs(shots[0] - shots[1]).max(-1) > 30).sum())


def test_tab_goes_everywhere_and_is_always_seen(shop: Site, open_page: Callable[..., Any]) -> None:
    page = open_page(shop.url, scheme="dark")  # the scheme in which an outline is lost more easily
    ready(page)
    page.add_style_tag(content=STILL)
    for fold in FOLDS:
        page.click(f"{fold} .label-wrap")
    page.click("[data-testid=example-1]")
    page.wait_for_selector("#ahead .notice:not([hidden])")
    page.evaluate("document.activeElement.blur()")
    page.evaluate("window.scrollTo(0, 0)")
    page.mouse.click(700, 4)  # the walk begins at the top
    seen: list[str] = []
    for _ in range(150):
        page.keyboard.press("Tab")
        at = page.evaluate(FOCUS)
        if at is None:
            break  # past the last one: no trap
        seen.append(at["name"])
        assert min(at["target"][2:]) >= 23.5, at
        inside = [max(0, at["box"][0]), max(0, at["box"][1]), *at["box"][2:]]
        drawn_ring = ring(page, inside)
        assert drawn_ring > min(at["box"][2], at["box"][3], 60), (at, drawn_ring)
    else:
        pytest.fail(f"Tab never leaves the page: {seen[-5:]}")
    for name in ("example-0", "generate", "load", "runs-button", "token-baseline-", "layer-from"):
        assert any(one.startswith(name) for one in seen), name


def test_the_whole_story_by_keyboard(shop: Site, open_page: Callable[..., Any]) -> None:
    page = open_page(shop.url)
    press = page.keyboard.press
    ready(page)

    tab_to(page, "#prompt textarea")
    press("Control+a")
    page.keyboard.type("Describe it.")
    tab_to(page, "[data-testid=example-1]")
    press("Enter")
    page.wait_for_selector("#image img")
    tab_to(page, "[data-testid=example-2]")
    press("Space")
    page.wait_for_function(
        "text => document.querySelector('#prompt textarea').value === text",
        arg=read_examples()[2].prompt,
    )
    tab_to(page, "#compare input")
    before = page.is_checked("#compare input")  # its state for the run on screen
    press("Space")
    assert page.is_checked("#compare input") != before
    if before:
        press("Space")
    tab_to(page, "#var-settings .label-wrap")
    press("Enter")
    tab_to(page, "#var-settings input[type=range]")
    before = page.evaluate("document.activeElement.value")
    press("ArrowRight")
    assert page.evaluate("document.activeElement.value") != before

    shop.engine.hold()
    page.evaluate("window.before = document.querySelector('[data-testid=inspector]').dataset.ready")
    while not page.evaluate("document.activeElement.matches('#generate')"):
        press("Shift+Tab")
    press("Enter")
    page.wait_for_selector("[data-phase=streaming]")
    shop.engine.let(4)
    page.wait_for_selector("[data-testid=token-baseline-3]")
    tab_to(page, "#stop")
    press("Enter")
    finished(page, "stopped")
    shop.engine.release()

    page.evaluate("window.before = document.querySelector('[data-testid=inspector]').dataset.ready")
    while not page.evaluate("document.activeElement.matches('#prompt textarea')"):
        press("Shift+Tab")
    press("Enter")  # a prompt is sent by Enter as well
    finished(page)
    assert page.locator("[data-testid=strip-var] .token").count() == len(WORDS)

    tab_to(page, "[data-testid^=token-baseline-]")
    press("Home")
    press("ArrowRight")
    assert page.evaluate(f"{INSPECTOR}.view.t0") == 1
    press("Shift+ArrowRight")
    assert "tokens 1–2 (mean)" in page.inner_text("[data-testid=selection]")
    press("End")
    shown = drawn(page)
    for key, check in (
        ("]", "l0 === 0 && {0}.view.l1 === 0"),
        ("}", "h0 === 0 && {0}.view.h1 === 0"),
    ):
        press(key)
        assert page.evaluate(f"{INSPECTOR}.view.{check.format(INSPECTOR)}"), key
    assert drawn(page) != shown
    for key, name in (("d", "difference"), ("s", "sinks"), ("v", "swapped")):
        was = page.evaluate(f"{INSPECTOR}.view.{name}")
        press(key)
        assert page.evaluate(f"{INSPECTOR}.view.{name}") != was, key
    press("0")
    assert page.evaluate(f"{INSPECTOR}.view.l1 > 0 && {INSPECTOR}.view.h1 > 0")
    tab_to(page, "[data-testid=layer-to]")
    press("ArrowLeft")
    assert page.evaluate(f"{INSPECTOR}.view.l1 === {INSPECTOR}.run.L - 2")
    tab_to(page, ".stage")
    press("ArrowRight")
    press("Enter")
    assert page.evaluate(f"{INSPECTOR}.view.box") is not None

    while not page.evaluate("document.activeElement.matches('[data-testid=save-button]')"):
        press("Shift+Tab")
    press("Enter")
    tab_to(page, "[data-testid=save-csv]")
    with page.expect_download() as download:
        press("Enter")
    assert download.value.suggested_filename.endswith(".csv")
    tab_to(page, "[data-testid^=token-baseline-]")
    press("?")
    page.wait_for_selector(".help:not([hidden])")
    press("Escape")
    page.wait_for_selector(".help", state="hidden")
