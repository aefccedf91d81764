"""The Sinks tab in Chromium: from Run to a profile, with the bundled model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sinkscope.models.profiles import read_profile
from sinkscope.web.page import App
from tests.web.conftest import open_tab, reload
from tests.web.test_browser_access import ALL, COLOURS, VIEWS, serious

pytestmark = [pytest.mark.browser, pytest.mark.slow]

FINDER = "[data-testid=finder]"


def choose(page: Any, samples: int, held_out: int) -> None:
    """Set the numbers in the folded settings, and wait until they are kept."""
    if not page.is_visible("#sinks-samples"):
        page.click("#sinks-settings > button, #sinks-settings .label-wrap")
    wanted = {"#sinks-samples input": str(samples), "#sinks-held-out input": str(held_out)}
    stayed = 0
    for _ in range(50):
        for box, number in wanted.items():
            if page.input_value(box) != number:
                page.fill(box, number)
                stayed = 0
        next_frame(page)
        stayed += 1
        if stayed == 5:
            return
    raise AssertionError("the settings do not stay")


def run(page: Any, samples: int, held_out: int) -> str:
    """Press Run and wait until the result is drawn; returns its id."""
    choose(page, samples, held_out)
    page.evaluate(f"window.before = document.querySelector('{FINDER}').dataset.ready")
    page.click("#sinks-run")
    page.wait_for_function(
        f"""() => {{ const data = document.querySelector('{FINDER}').dataset;
              return data.ready && data.ready !== window.before
                && ['ready', 'stopped'].includes(data.phase); }}""",
        timeout=60_000,
    )
    return str(page.get_attribute(FINDER, "data-ready"))


def picture(page: Any) -> str:
    return str(
        page.evaluate("document.querySelector('[data-testid=sinks-photo] canvas').toDataURL()")
    )


def move_tau(page: Any, tau: float) -> None:
    page.locator("[data-testid=sinks-tau]").evaluate(
        "(e, tau) => { e.value = tau; e.dispatchEvent(new Event('input', { bubbles: true })); }",
        tau,
    )
    next_frame(page)


def next_frame(page: Any) -> None:
    """Changes are drawn with the next frame of the browser."""
    page.evaluate("new Promise((r) => requestAnimationFrame(() => requestAnimationFrame(r)))")


def text(page: Any, name: str) -> str:
    return str(page.inner_text(f"[data-testid=sinks-{name}]"))


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_axe_finds_nothing_serious(
    bundled: tuple[App, str], open_page: Any, width: int, scheme: str
) -> None:
    page = open_page(bundled[1], width=width, scheme=scheme)
    open_tab(page, "Sinks", FINDER)
    options = COLOURS if scheme == "dark" else ALL
    assert serious(page, options) == []
    run(page, 6, 2)
    move_tau(page, 1)  # the warning is to be seen, too
    assert serious(page, options) == []  # a result with its table, settings open


def test_from_run_to_var(bundled: tuple[App, str], open_page: Any) -> None:
    app, url = bundled
    page = open_page(url)
    open_tab(page, "Sinks", FINDER)
    assert "Which dimensions mark" in text(page, "blank")
    result = run(page, 8, 2)
    assert text(page, "verdict").startswith("Dimensions 17, 101 · tau ")
    assert text(page, "validation") == "Validation: too few samples"
    assert page.locator("[data-testid=sinks-candidates] tr.kept").count() == 2

    # The slider and the choices draw at once, without a request.
    page.wait_for_function(
        "!document.querySelector('[data-testid=sinks-photo] .stage').ariaLabel.includes('null')"
    )
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    found, words = picture(page), text(page, "flagged")
    move_tau(page, 1)
    assert picture(page) != found
    assert "is too many for sinks" in text(page, "flagged")
    many = int(text(page, "flagged").split(" of ")[0])
    assert text(page, "tau-value") == "1.0"
    move_tau(page, 15.9)
    assert text(page, "flagged").startswith("0 of ") and many > 10
    page.click("button:has-text('as found')")
    assert text(page, "flagged") == words and picture(page) == found
    page.select_option("[data-testid=sinks-layer]", "0")
    next_frame(page)
    assert "flagged in layer 0" in text(page, "flagged")
    assert asked == []

    # The heatmap by keyboard; its axis counts from 0, like the text read from it.
    ends = page.locator("[data-testid=sinks-heat] .under span").all_inner_texts()
    assert ends[0] == "token 0"
    assert int(ends[1]) == int(text(page, "flagged").split(" of ")[1].split()[0]) - 1
    plot = page.locator("[data-testid=sinks-heat] .plot")
    plot.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    assert "layer 2, token 1 (row 0, column 1): φ " in text(page, "heat")
    page.keyboard.press("Enter")
    assert page.input_value("[data-testid=sinks-layer]") == "2"

    with page.expect_download() as download:
        page.click("[data-testid=sinks-save]")
    profile = read_profile(Path(download.value.path()))
    assert profile.dims == (17, 101) and download.value.suggested_filename == "demo.toml"

    # Only in this browser: the model and another page keep the model's own profile.
    move_tau(page, 4.5)
    page.click("[data-testid=sinks-use]")
    assert "17, 101 with tau 4.5" in text(page, "message")
    page.click("button[role=tab]:has-text('Explore')")
    page.click("#var-settings > button, #var-settings .label-wrap")
    page.wait_for_function("document.querySelector('#sink-dims :is(input, textarea)')?.value")
    assert page.input_value("#sink-dims :is(input, textarea)") == "17, 101"
    page.wait_for_function(
        "document.querySelector('#var-note textarea')?.value.includes('found on demo')"
    )
    assert app.loaded.handle is not None and app.loaded.handle.profile is not None
    assert app.loaded.handle.profile.tau != 4.5
    page.click("#own-dims")
    page.wait_for_function(
        "document.querySelector('#var-note textarea')?.value.includes('confidence high')"
    )
    assert page.input_value("#sink-dims :is(input, textarea)") == ""

    # A reload shows it again; another browser never does.
    reload(page)
    open_tab(page, "Sinks", FINDER)
    page.wait_for_selector(f"{FINDER}[data-ready='{result}']")
    other = open_page(url)
    open_tab(other, "Sinks", FINDER)
    assert other.get_attribute(FINDER, "data-phase") == "empty"


def test_stop_keeps_what_was_measured(bundled: tuple[App, str], open_page: Any) -> None:
    page = open_page(bundled[1], width=390, scheme="dark")
    open_tab(page, "Sinks", FINDER)
    choose(page, 200, 10)
    page.click("#sinks-run")
    page.wait_for_function(
        "/^[1-9]\\d* of 200/.test(document.querySelector('[data-testid=sinks-facts]').textContent)"
        " && document.querySelector('[data-testid=sinks-facts]').textContent.includes('Measured')",
        timeout=60_000,
    )
    page.click("#sinks-stop")
    page.wait_for_selector(f"{FINDER}[data-phase=stopped][data-ready]", timeout=60_000)
    assert text(page, "phase").startswith("Stopped after ")
    assert "press Run again to go on" in page.inner_text(FINDER)
    assert page.is_enabled("#sinks-run") and page.is_disabled("#sinks-stop")
    # Nothing is wider than the phone, and everything to press is large enough.
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    small = page.evaluate(
        f"""[...document.querySelectorAll('{FINDER} :is(button, select, input, summary)')]
              .map((e) => [e.outerHTML.slice(0, 80), e.getBoundingClientRect()])
              .filter(([, r]) => r.width && (r.width < 24 || r.height < 24)).map(([t]) => t)"""
    )
    assert small == []


def test_a_deleted_result_is_gone(bundled: tuple[App, str], open_page: Any) -> None:
    app, url = bundled
    page = open_page(url)
    open_tab(page, "Sinks", FINDER)
    kept = run(page, 4, 0)
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.click("[data-testid=sinks-delete]")
    assert app.sinks.store.get(kept) is not None  # the deletion was not confirmed
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("[data-testid=sinks-delete]")
    page.wait_for_selector("[data-testid=sinks-blank]", state="visible")
    assert page.inner_text("[data-testid=sinks-phase]") == "Deleted"
    assert app.sinks.store.get(kept) is None
    reload(page)
    open_tab(page, "Sinks", FINDER)
    assert page.is_visible("[data-testid=sinks-blank]")


def test_uploads_that_cannot_be_used(bundled: tuple[App, str], open_page: Any) -> None:
    page = open_page(bundled[1])
    open_tab(page, "Sinks", FINDER)
    page.click("#sinks-source label:has-text('My images')")
    page.wait_for_selector("#sinks-files")
    page.click("#sinks-run")
    page.wait_for_selector(f"{FINDER}[data-phase=error]")
    assert text(page, "alert") == "There is no image. Upload some, or take the example scenes."

    examples = sorted((Path(__file__).parents[2] / "demo" / "examples").glob("*.png"))[:4]
    hostile = "${alert(1)}{{value}}<img src=x onerror=alert(2)>.png"
    files = [{"name": e.name, "mimeType": "image/png", "buffer": e.read_bytes()} for e in examples]
    files[0]["name"] = hostile
    files.append({"name": "torn.png", "mimeType": "image/png", "buffer": b"\x89PNG no"})
    page.set_input_files("#sinks-files input[type=file]", files)
    page.wait_for_function("document.querySelectorAll('#sinks-files tr').length >= 5")
    run(page, 4, 0)
    assert "torn.png" in text(page, "notes") and "4 usable samples" not in text(page, "notes")
    shown = page.locator("[data-testid=sinks-sample] option").all_inner_texts()
    assert len(shown) == 4
    assert page.locator(f"{FINDER} img").count() == 0
