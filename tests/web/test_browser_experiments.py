"""The Experiments tab in Chromium, with the bundled model: choose, run, see, save, stop."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest

from sinkscope.experiments.result import Result
from sinkscope.web.page import App
from tests.web.conftest import open_tab, reload
from tests.web.test_browser_access import ALL, COLOURS, VIEWS, serious

pytestmark = [pytest.mark.browser, pytest.mark.slow]

TRIAL = "[data-testid=trial]"


def fill(page: Any, box: str, value: str) -> None:
    """Type into a box and wait until the value is kept."""
    for _ in range(50):
        if page.input_value(box) == value:
            return
        page.fill(box, value)
        page.wait_for_timeout(50)
    raise AssertionError(f"{box} does not stay at {value}")


def choose(page: Any, name: str, samples: int) -> None:
    """Choose in the list of all experiments, and wait for its options."""
    page.click(f"{TRIAL} [data-name={name}]")
    page.wait_for_function(f"document.querySelector('#experiments-name input').value === '{name}'")
    page.wait_for_selector(f"#set-{name}-layer")
    fill(page, "#experiments-samples input", str(samples))


def run(page: Any) -> str:
    """Press Run and wait until the result is drawn; returns its id."""
    page.click("#experiments-run")
    page.wait_for_selector(f"{TRIAL}[data-phase=ready][data-ready]", timeout=90_000)
    return str(page.get_attribute(TRIAL, "data-ready"))


def text(page: Any, name: str) -> str:
    return str(page.inner_text(f"[data-testid=experiments-{name}]"))


def save(page: Any, selector: str) -> Path:
    with page.expect_download() as download:
        page.click(selector)
    path = Path(download.value.path())
    return path.rename(path.with_name(download.value.suggested_filename))


def test_from_the_list_to_a_saved_verdict(bundled: tuple[App, str], open_page: Any) -> None:
    page = open_page(bundled[1])
    open_tab(page, "Experiments", TRIAL)
    assert page.locator(f"{TRIAL} .listed button").count() == 9
    page.wait_for_function(
        "document.querySelector('#experiments-ahead').innerText.includes('dimensions 17, 101')"
    )
    choose(page, "mlp-subspace", 4)
    assert "few neurons of the MLP" in page.inner_text("#experiments-name")
    page.evaluate("scrollTo(0, 0)")
    box = page.locator("#experiments-run").bounding_box()
    assert box["y"] + box["height"] <= 1000  # in sight at the top of the page
    ident = run(page)

    assert text(page, "question").startswith("Do a few neurons of the MLP")
    assert "neurons hold" in text(page, "summary")
    verdict = text(page, "verdict")
    assert "Verdict: open" in verdict and "A causal: not tested" in verdict
    assert "B specific: holds" in verdict and "Holds if AUC at least 0.95." in verdict
    pictures = page.locator(f"{TRIAL} .figures img")
    assert pictures.count() >= 2
    page.wait_for_function(
        f"[...document.querySelectorAll('{TRIAL} img')].every((i) => i.complete && i.naturalWidth)"
    )
    assert all(pictures.nth(i).get_attribute("alt") for i in range(pictures.count()))
    first = text(page, "summary").rpartition(": ")[2].split(",")[0].rstrip(".")
    assert first.isdigit() and first in text(page, "tables").split()

    with zipfile.ZipFile(save(page, f"{TRIAL} a.file:has-text('.zip')")) as archive:
        names = archive.namelist()
        assert any(name.endswith(".pdf") for name in names)
    result = Result.open(save(page, f"{TRIAL} a.file:has-text('result.json')"))
    assert result.experiment == "mlp-subspace" and len(result.samples) <= 4
    figure = save(page, f"{TRIAL} .figures a.file:has-text('PDF')")
    assert figure.read_bytes().startswith(b"%PDF")

    # A reload shows it again with the same form values; another browser never does.
    reload(page)
    open_tab(page, "Experiments", TRIAL)
    page.wait_for_selector(f"{TRIAL}[data-ready='{ident}']")
    page.wait_for_selector("#set-mlp-subspace-layer")
    other = open_page(bundled[1])
    open_tab(other, "Experiments", TRIAL)
    assert other.get_attribute(TRIAL, "data-phase") == "empty"


def test_two_runs_side_by_side(bundled: tuple[App, str], open_page: Any) -> None:
    page = open_page(bundled[1], width=390)
    open_tab(page, "Experiments", TRIAL)
    choose(page, "decompose-output", 3)
    one = run(page)
    assert not page.is_visible("[data-testid=experiments-sides]")  # a second one is needed
    fill(page, "#set-decompose-output-layer input", "1")
    page.click("#experiments-run")
    page.wait_for_selector(f"{TRIAL}[data-phase=ready]:not([data-ready='{one}'])", timeout=90_000)
    other = page.get_attribute(TRIAL, "data-ready")
    assert page.input_value(".sides [name=a]") == one
    assert page.input_value(".sides [name=b]") == other
    page.click("[data-does=compare]")
    page.wait_for_function(
        f"document.querySelector('{TRIAL} .of').textContent.includes('side by side')"
    )
    assert "A (layer 0) is decompose-output" in text(page, "summary")
    assert "A (layer 0) and B (layer 1)" in text(page, "tables") and "norm_Y B-A" in text(
        page, "tables"
    )
    assert (
        not page.is_visible(f"{TRIAL} .verdict") and page.locator(f"{TRIAL} .figures img").count()
    )
    both = Result.open(save(page, f"{TRIAL} a.file:has-text('result.json')"))
    assert set(both.settings) == {"A", "B"}
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.click("[data-does=a]")
    page.wait_for_selector(f"{TRIAL}[data-ready='{one}']")
    reload(page)
    open_tab(page, "Experiments", TRIAL)
    page.wait_for_selector("[data-testid=experiments-sides]")
    assert page.locator(".sides [name=a] option").count() == 2


def test_an_error_is_one_sentence_and_the_result_before_stays(
    bundled: tuple[App, str], open_page: Any
) -> None:
    page = open_page(bundled[1])
    open_tab(page, "Experiments", TRIAL)
    choose(page, "decompose-output", 3)
    ident = run(page)
    fill(page, "#set-decompose-output-layer input", "77")
    page.click("#experiments-run")
    page.wait_for_selector(f"{TRIAL}[data-phase=error]")
    assert text(page, "alert").startswith("layer is 77; demo has layers 0 to 5")
    assert page.get_attribute(TRIAL, "data-ready") == ident and page.is_visible(f"{TRIAL} .work")
    fill(page, "#set-decompose-output-layer input", "1")
    page.click("#experiments-source label:has-text('My own')")
    page.wait_for_selector("#experiments-files")
    page.click("#experiments-run")
    page.wait_for_function(
        "document.querySelector('[data-testid=experiments-alert]').textContent.includes('no file')"
    )
    assert page.is_enabled("#experiments-run") and page.is_disabled("#experiments-stop")


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_axe_finds_nothing_serious(
    bundled: tuple[App, str], open_page: Any, width: int, scheme: str
) -> None:
    page = open_page(bundled[1], width=width, scheme=scheme)
    open_tab(page, "Experiments", TRIAL)
    options = COLOURS if scheme == "dark" else ALL
    assert serious(page, options) == []
    choose(page, "ablate-mlp", 3)
    page.click("#experiments-settings > button, #experiments-settings .label-wrap")
    run(page)
    page.click(f"{TRIAL} summary")
    assert serious(page, options) == []  # a verdict with figures and tables, all folds open
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_stop_ends_it_and_keeps_nothing(bundled: tuple[App, str], open_page: Any) -> None:
    page = open_page(bundled[1], width=390, scheme="dark")
    open_tab(page, "Experiments", TRIAL)
    choose(page, "ablate-mlp", 60)
    page.click("#experiments-run")
    page.wait_for_function(
        "/^[1-9]\\d* of \\d+/.test("
        "document.querySelector('[data-testid=experiments-facts]').textContent)",
        timeout=60_000,
    )
    page.click("#experiments-stop")
    page.wait_for_selector(f"{TRIAL}[data-phase=stopped]", timeout=60_000)
    assert text(page, "phase").startswith("Stopped after ")
    assert page.is_enabled("#experiments-run") and page.is_disabled("#experiments-stop")
    assert page.is_visible(f"{TRIAL} .blank")
    small = page.evaluate(
        f"""[...document.querySelectorAll('{TRIAL} :is(button, a, summary)')]
              .map((e) => [e.outerHTML.slice(0, 80), e.getBoundingClientRect()])
              .filter(([, r]) => r.width && (r.width < 24 || r.height < 24)).map(([t]) => t)"""
    )
    assert small == []
