"""From a photo to a heatmap, and possible errors on the way, with a scripted engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import TimeoutError as PageTimeoutError

from tests.web.conftest import INSPECTOR, Site, reload
from tests.web.synthetic import HOSTILE, WORDS
from tests.web.test_browser_view import drawn, ready

pytestmark = pytest.mark.browser


# The state of the page, for the error message of a test that waits for something else.
STATE = """() => {
  const inspector = document.querySelector("[data-testid=inspector]");
  const text = (place) => document.querySelector(place)?.innerText;
  return {
    ...inspector?.dataset, before: window.before, phase_words: text("[data-testid=phase]"),
    alert: text("[data-testid=inspector] .alert"), line: text("[data-testid=inspector] .line"),
    prompt: document.querySelector("#prompt textarea")?.value,
    generate: document.querySelector("#generate")?.disabled ? "disabled" : "enabled",
    image: document.querySelector("#image img")?.src, toasts: text(".toast-wrap"),
  };
}"""


@pytest.fixture
def photo_file(tmp_path: Path) -> Path:
    """A real photo (public domain, ships with matplotlib)."""
    from matplotlib.cbook import get_sample_data

    return Path(get_sample_data("grace_hopper.jpg", asfileobj=False))


@pytest.fixture(autouse=True)
def free_engine(site: Site) -> Iterator[None]:
    site.engine.release()
    yield
    site.engine.release()


def upload(page: Any, file: Path) -> None:
    page.set_input_files("#image input[type=file]", str(file))
    page.wait_for_function(  # the example's image may stand there before
        """name => decodeURIComponent(document.querySelector('#image img')?.src || '')
             .endsWith(name)""",
        arg=file.name,
    )


def ask(page: Any, prompt: str) -> None:
    page.evaluate("window.before = document.querySelector('[data-testid=inspector]').dataset.ready")
    page.fill("#prompt textarea", prompt)
    page.click("#generate")


def finished(page: Any, phase: str = "ready") -> str:
    """Wait until a run is drawn that was not there at the last `ask`; returns its id."""
    try:
        page.wait_for_function(
            """phase => { const data = document.querySelector('[data-testid=inspector]')?.dataset;
                 return data?.phase === phase && data.ready && data.ready !== window.before; }""",
            arg=phase,
        )
    except PageTimeoutError as error:
        raise AssertionError(
            f"no run came to {phase!r}; the page: {page.evaluate(STATE)}"
        ) from error
    return str(page.get_attribute("[data-testid=inspector]", "data-ready"))


def test_photo_to_heatmap(site: Site, open_page: Any, photo_file: Path) -> None:
    page = open_page(site.url)
    ready(page)
    example = page.get_attribute("[data-testid=inspector]", "data-ready")
    upload(page, photo_file)
    site.engine.hold()
    ask(page, "Who is this?")
    page.wait_for_selector("[data-phase=streaming]")
    assert page.is_enabled("#stop") and page.is_disabled("#generate")
    site.engine.let(3)
    page.wait_for_selector("[data-testid=token-baseline-2]")
    assert page.locator("[data-testid=strip-baseline] .token").count() == 3
    assert page.inner_text("[data-testid=question]") == "Who is this?"
    faded = page.locator(".desk").evaluate("e => getComputedStyle(e).opacity")
    assert float(faded) < 1  # the part below belongs to the previous run
    site.engine.release()
    assert finished(page) != example
    assert page.locator("[data-testid=strip-baseline] .token").count() == len(WORDS)
    assert page.locator("[data-testid=panel-var]").count() == 0
    ratio = page.locator("[data-testid=panel-baseline] .stage").evaluate(
        "e => e.clientWidth / e.clientHeight"
    )
    with Image.open(photo_file) as image:
        assert abs(ratio - image.width / image.height) < 0.02
    page.click("[data-testid=token-baseline-4]")
    first = drawn(page)
    page.click("[data-testid=token-baseline-18]")
    assert drawn(page) != first
    assert page.is_enabled("#generate") and page.is_disabled("#stop")


def test_on_a_phone_the_answer_comes_into_view(
    site: Site, open_page: Any, photo_file: Path
) -> None:
    page = open_page(site.url, width=390)
    ready(page)
    upload(page, photo_file)
    ask(page, "Who is this?")
    finished(page)
    top = "document.querySelector('[data-testid=inspector] .line').getBoundingClientRect().top"
    assert -1 <= page.evaluate(top) < 200


def test_compare_with_var(site: Site, open_page: Any, photo_file: Path) -> None:
    page = open_page(site.url)
    ready(page)
    upload(page, photo_file)
    page.wait_for_selector("#compare input:enabled")
    page.check("#compare input")
    ask(page, "Compare.")
    finished(page)
    assert page.locator("[data-testid=strip-var] .token").count() == len(WORDS)
    assert "Both answers are the same text." in page.inner_text("[data-testid=remarks]")


def test_stop_keeps_the_part(site: Site, open_page: Any, photo_file: Path) -> None:
    page = open_page(site.url)
    ready(page)
    upload(page, photo_file)
    site.engine.hold()
    ask(page, "endless")
    page.wait_for_selector("[data-phase=streaming]")  # else the example's tokens are still there
    site.engine.let(5)
    page.wait_for_selector("[data-testid=token-baseline-4]")
    page.click("#stop")
    finished(page, "stopped")
    assert page.inner_text("[data-testid=phase]") == "Stopped"
    page.wait_for_selector("[data-testid=token-baseline-4]")  # the finished run is drawn again
    assert page.locator("[data-testid=strip-baseline] .token").count() == 5
    page.click("[data-testid=token-baseline-1]")
    assert "token 1" in page.inner_text("[data-testid=selection]")


def test_a_click_while_the_server_closes_its_stream_is_answered(
    site: Site, open_page: Any, photo_file: Path
) -> None:
    """Gradio's client alone would wait for ever: it takes the stream that just ended for open."""
    page = open_page(site.url)
    ready(page)
    ended: list[tuple[Any, Any]] = []

    def late(route: Any) -> None:
        if ended:
            route.continue_()
        else:
            ended.append((route, route.fetch()))  # whole: the server has closed it

    page.route("**/queue/data?*", late)
    reload(page)
    ready(page)
    upload(page, photo_file)
    assert len(ended) == 1  # the stream of the page's first event, of which it has read nothing
    with page.expect_response("**/queue/join*"):
        ask(page, "hostile")
    page.wait_for_timeout(300)
    ((route, response),) = ended
    route.fulfill(response=response)
    finished(page)


def test_closed_tab_ends_the_run(site: Site, open_page: Any, photo_file: Path) -> None:
    page = open_page(site.url)
    ready(page)
    upload(page, photo_file)
    site.engine.hold()
    ask(page, "endless")
    page.wait_for_selector("[data-phase=streaming]")
    page.close()
    assert site.engine.ended.wait(20)


def test_hostile_texts_stay_texts(site: Site, open_page: Any, photo_file: Path) -> None:
    page = open_page(site.url)
    ready(page)
    upload(page, photo_file)
    ask(page, "hostile")
    finished(page)
    assert page.inner_text("[data-testid=token-baseline-0]") == HOSTILE[0]
    assert page.inner_text("[data-testid=token-baseline-1]") == HOSTILE[1]
    assert page.inner_text("[data-testid=token-baseline-2]") == HOSTILE[2]
    for i in range(len(HOSTILE)):
        page.click(f"[data-testid=token-baseline-{i}]")
    assert page.evaluate("window.__hit") is None
    assert page.locator(".scope img, .scope script").count() == 0


def test_a_thousand_tokens(site: Site, open_page: Any, photo_file: Path) -> None:
    page = open_page(site.url)
    ready(page)
    upload(page, photo_file)
    ask(page, "thousand")
    finished(page)
    assert page.locator("[data-testid=strip-baseline] .token").count() == 1000
    page.click("[data-testid=token-baseline-999]")
    assert page.evaluate(f"{INSPECTOR}.view.t0") == 999


def test_mistakes_get_a_sentence_and_the_last_run_stays(
    site: Site, open_page: Any, photo_file: Path, tmp_path: Path
) -> None:
    page = open_page(site.url, errors=True)
    ready(page)
    ask(page, "No image here.")
    alert = page.locator("[data-testid=alert]")
    page.wait_for_selector("[data-phase=error]")
    assert "There is no image" in alert.inner_text()
    assert page.locator("[data-testid=strip-baseline] .token").count() == 27  # the example

    fake = tmp_path / "fake.png"
    fake.write_text("<svg onload='window.__hit=9'></svg>")
    upload(page, photo_file)
    page.click("#image button[aria-label='Clear']") if page.locator(
        "#image button[aria-label='Clear']"
    ).count() else page.locator("#image .icon-button-wrapper button").last.click()
    page.wait_for_selector("#image input[type=file]", state="attached")
    page.set_input_files("#image input[type=file]", str(fake))
    page.wait_for_selector("#image img")
    ask(page, "What is this?")
    page.wait_for_function(
        "document.querySelector('[data-testid=alert]').textContent.includes('SVG')"
    )

    page.fill("#prompt textarea", " ")
    page.click("#generate")
    page.wait_for_function(
        "document.querySelector('[data-testid=alert]').textContent.includes('prompt')"
    )
    page.click("[data-testid=token-baseline-2]")
    assert "token 2" in page.inner_text("[data-testid=selection]")


@pytest.mark.parametrize(
    ("prompt", "words"), [("full", "memory of the device is full"), ("broken", "went wrong inside")]
)
def test_faults_inside_tell_nothing_of_the_machine(
    site: Site, open_page: Any, photo_file: Path, prompt: str, words: str
) -> None:
    page = open_page(site.url, errors=True)
    ready(page)
    upload(page, photo_file)
    ask(page, prompt)
    page.wait_for_selector("[data-phase=error]")
    assert words in page.inner_text("[data-testid=alert]")
    assert "/home" not in page.inner_text("body")
    ask(page, "And again.")
    finished(page)


def test_second_run_waits_and_says_so(site: Site, open_page: Any, photo_file: Path) -> None:
    first, second = open_page(site.url), open_page(site.url)
    for page in (first, second):
        ready(page)
        upload(page, photo_file)
    site.engine.hold()
    ask(first, "endless")
    first.wait_for_selector("[data-phase=streaming]")
    ask(second, "Mine.")
    second.wait_for_selector("[data-phase=queued]")
    assert second.inner_text("[data-testid=phase]") == "Waiting: 1 run before yours"
    first.click("#stop")
    finished(first, "stopped")
    second.wait_for_selector("[data-phase=streaming]")
    site.engine.release()
    finished(second)


def test_reload_comes_back_to_the_run(site: Site, open_page: Any, photo_file: Path) -> None:
    page = open_page(site.url)
    ready(page)
    upload(page, photo_file)
    ask(page, "Remember me.")
    mine = finished(page)
    page.click("[data-testid=token-baseline-6]")
    page.wait_for_function("location.hash.includes('t=6-6')")
    reload(page)
    assert finished(page) == mine
    assert page.evaluate(f"{INSPECTOR}.view.t0") == 6
