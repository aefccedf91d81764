"""The Evaluate tab in Chromium: from Run to a question in Explore, with the bundled model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sinkscope.web.page import App
from tests.web.conftest import open_tab, reload
from tests.web.test_browser_access import ALL, COLOURS, VIEWS, serious

pytestmark = [pytest.mark.browser, pytest.mark.slow]

TAB = "[data-testid=evaluation]"


def start(page: Any, questions: int) -> None:
    """Set the number of questions, wait until it is kept, and press Run."""
    stayed = 0
    for _ in range(50):
        if page.input_value("#evaluate-questions input") != str(questions):
            page.fill("#evaluate-questions input", str(questions))
            stayed = 0
        page.evaluate("new Promise((r) => requestAnimationFrame(() => requestAnimationFrame(r)))")
        stayed += 1
        if stayed == 5:
            break
    page.evaluate(f"window.before = document.querySelector('{TAB}').dataset.ready")
    page.click("#evaluate-run")


def run(page: Any, questions: int) -> str:
    """Run and wait until the result is drawn; returns its id."""
    start(page, questions)
    page.wait_for_function(
        f"""() => {{ const data = document.querySelector('{TAB}').dataset;
              return data.ready && data.ready !== window.before && data.phase === 'ready'; }}""",
        timeout=90_000,
    )
    return str(page.get_attribute(TAB, "data-ready"))


def text(page: Any, name: str) -> str:
    return str(page.inner_text(f"[data-testid=evaluate-{name}]"))


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_axe_finds_nothing_serious(
    bundled: tuple[App, str], open_page: Any, width: int, scheme: str
) -> None:
    page = open_page(bundled[1], width=width, scheme=scheme)
    open_tab(page, "Evaluate", TAB)
    options = COLOURS if scheme == "dark" else ALL
    assert serious(page, options) == []
    run(page, 7)
    page.click(f"{TAB} .all summary")
    assert serious(page, options) == []


def test_from_run_to_explore(bundled: tuple[App, str], open_page: Any) -> None:
    app, url = bundled
    page = open_page(url)
    open_tab(page, "Evaluate", TAB)
    page.click("#evaluate-methods label:has-text('Random control')")
    result = run(page, 6)
    assert text(page, "title") == "var against default on 6 questions of drawn scenes · demo"
    assert "difference" in text(page, "said").lower() or "than default" in text(page, "said")
    scores = page.locator("[data-testid=evaluate-scores] tbody tr")
    assert scores.count() == 2 and scores.nth(1).inner_text().startswith("var")
    assert page.locator("[data-testid=evaluate-differences] tbody tr").count() == 1
    assert page.locator("[data-testid=evaluate-differences] .span").count() == 1  # its interval
    cards = page.locator("[data-testid=evaluate-questions] li")
    page.select_option("[data-testid=evaluate-show]", "all")
    assert cards.count() == 6
    page.select_option("[data-testid=evaluate-type]", "where")
    assert cards.count() == 1

    with page.expect_download() as download:
        page.click("[data-testid=evaluate-report]")
    assert download.value.suggested_filename == "evaluation-report.html"

    # By keyboard to Explore, where both answers are generated again.
    asked = str(cards.first.locator(".ask").inner_text())
    answer = str(cards.first.locator("dd").nth(1).inner_text()).lstrip("✓✗ ")
    before = page.evaluate("document.querySelector('[data-testid=inspector]').dataset.ready")
    cards.first.locator("button").focus()
    page.keyboard.press("Enter")
    page.wait_for_function(
        "before => { const data = document.querySelector('[data-testid=inspector]').dataset;"
        " return data.phase === 'ready' && data.ready !== before; }",
        arg=before,
        timeout=60_000,
    )
    assert page.is_visible("#generate")  # the tab has changed
    assert page.input_value("#prompt textarea") == asked
    assert page.is_checked("#compare input")
    again = app.handlers.store.get(page.get_attribute("[data-testid=inspector]", "data-ready"))
    assert again is not None and list(again.traces) == ["baseline", "var"]
    said = ["".join(t.text for t in trace.tokens[:-1]) for trace in again.traces.values()]
    assert said == [answer, answer]  # one line on the card, for both methods say the same

    # A reload shows the run again; another browser has no run and no list of them.
    reload(page)
    open_tab(page, "Evaluate", TAB)
    page.wait_for_selector(f"{TAB}[data-ready='{result}']")
    other = open_page(url)
    open_tab(other, "Evaluate", TAB)
    assert other.get_attribute(TAB, "data-phase") == "empty"
    assert not other.is_visible("[data-testid=evaluate-earlier]")

    # A second run: the first is listed and opens again.
    run(page, 3)
    earlier = page.locator("[data-testid=evaluate-earlier] [data-run]")
    assert earlier.count() == 1
    earlier.click()
    page.wait_for_selector(f"{TAB}[data-ready='{result}']")
    assert "6 questions" in text(page, "title")


def test_stop_and_go_on_on_a_phone(bundled: tuple[App, str], open_page: Any) -> None:
    page = open_page(bundled[1], width=390, scheme="dark")
    open_tab(page, "Evaluate", TAB)
    start(page, 120)
    page.wait_for_selector("[data-testid=evaluate-scores] table", timeout=60_000)
    assert "so far" in text(page, "title").lower()
    page.click("#evaluate-stop")
    page.wait_for_selector(f"{TAB}[data-phase=stopped][data-ready]", timeout=60_000)
    assert text(page, "phase").startswith("Stopped after ")
    assert text(page, "state").startswith("THE RUN IS NOT COMPLETE.")
    assert page.is_enabled("#evaluate-run") and page.is_disabled("#evaluate-stop")
    # Nothing is wider than the phone, and all buttons are large enough.
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    small = page.evaluate(
        f"""[...document.querySelectorAll('{TAB} :is(button, select, input, summary)')]
              .map((e) => [e.outerHTML.slice(0, 80), e.getBoundingClientRect()])
              .filter(([, r]) => r.width && (r.width < 24 || r.height < 24)).map(([t]) => t)"""
    )
    assert small == []
    page.click("[data-testid=evaluate-go-on]")
    page.wait_for_selector(f"{TAB}[data-phase=ready]", timeout=120_000)
    page.wait_for_function(
        "document.querySelector('[data-testid=evaluate-state]').textContent.startsWith('120 of 1')"
    )


def test_own_questions_are_uploaded_asked_and_opened(
    bundled: tuple[App, str], open_page: Any
) -> None:
    page = open_page(bundled[1])
    open_tab(page, "Evaluate", TAB)
    page.click("#evaluate-source label:has-text('My questions')")
    page.wait_for_selector("#evaluate-files input[type=file]", state="attached")
    assert not page.is_visible("#evaluate-types")
    examples = sorted((Path(__file__).parents[2] / "demo" / "examples").glob("*.png"))[:2]
    rows = [
        {"question": "Is there a blue ring?", "answer": "no", "image": one.name} for one in examples
    ]
    text_of = "\n".join(map(json.dumps, rows))
    page.set_input_files(
        "#evaluate-files input[type=file]",
        [
            {"name": "mine.jsonl", "mimeType": "text/plain", "buffer": text_of.encode()},
            *(
                {"name": e.name, "mimeType": "image/png", "buffer": e.read_bytes()}
                for e in examples
            ),
        ],
    )
    page.wait_for_function("document.querySelectorAll('#evaluate-files tr').length >= 3")
    run(page, 30)
    assert "on 2 questions of an upload" in text(page, "title")
    page.select_option("[data-testid=evaluate-show]", "all")
    cards = page.locator("[data-testid=evaluate-questions] li")
    assert cards.count() == 2
    assert "Is there a blue ring?" in cards.first.inner_text()
    assert page.locator(f"{TAB} .cards img").count() == 2
