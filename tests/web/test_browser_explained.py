"""The card "Other explanations of this word", with a small real model behind the page.

The test decides when each method is computed (`Gate`); the computation is the methods' own.
"""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sinkscope.methods.explain import METHODS, explain_map
from sinkscope.methods.passes import passes_of
from sinkscope.methods.together import rank_correlation
from sinkscope.models.loading import ModelHandle
from sinkscope.web.explore import explaining
from sinkscope.web.runs.store import Run
from tests.web.conftest import INSPECTOR, Site, start_site
from tests.web.scripted import ScriptedEngine
from tests.web.test_browser_view import ready

pytestmark = [pytest.mark.browser, pytest.mark.tiny]

TOKEN = 1
POSSIBLE = [one.name for one in METHODS if one.name not in ("relative", "without_sinks", "var")]


class Gate:
    """Lets the page compute one method at a time, or all."""

    def __init__(self) -> None:
        self._steps, self._open = threading.Semaphore(0), threading.Event()
        self._real = explaining.explain_stacks

    def explain_stacks(self, run: Any, target: Any, methods: Any, **more: Any) -> Iterator[Any]:
        for index, method in enumerate(methods):
            more["on_progress"](index, len(methods), method.label)
            while not self._open.is_set() and not self._steps.acquire(timeout=0.05):
                if more["stop"].is_set():
                    break
            yield from self._real(run, target, [method], **more)

    def let(self, count: int) -> None:
        for _ in range(count):
            self._steps.release()

    def open(self) -> None:
        self._open.set()

    def hold(self) -> None:
        self._steps, self._open = threading.Semaphore(0), threading.Event()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, handle: ModelHandle, run: Run) -> Iterator[Site]:
    made = start_site(tmp_path_factory.mktemp("cache"), ScriptedEngine(), handle=handle)
    made.app.handlers.store.put(run)
    yield made
    made.app.blocks.close(verbose=False)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate()
    monkeypatch.setattr(explaining, "explain_stacks", made.explain_stacks)
    yield made
    made.open()


def opened(real: Site, run: Run, open_page: Any, more: str = "") -> Any:
    page = open_page(real.url, path=f"#run={run.id}&t={TOKEN}-{TOKEN}{more}")
    page.wait_for_selector(f"[data-testid=inspector][data-ready='{run.id}']", state="attached")
    ready(page)
    page.evaluate(f"t => {INSPECTOR}.set({{ t0: t, t1: t }})", TOKEN)
    return page


def tile(page: Any, name: str) -> Any:
    return page.locator(f"[data-testid=tile-baseline-{name}]")


def test_computed_stopped_shown_saved_and_kept(
    real: Site, run: Run, gate: Gate, handle: ModelHandle, open_page: Any
) -> None:
    page = opened(real, run, open_page)
    # Methods that this run cannot provide are disabled, in the list and among the maps, with the
    # reason.
    options = page.locator("[data-testid=method] option")
    words = {o.get_attribute("value"): o.inner_text() for o in options.all()}
    for name in ("relative", "without_sinks"):
        assert page.locator(f"[data-testid=method] option[value={name}]").is_disabled()
    assert "no generic prompt" in words["relative"] and "sink" in words["without_sinks"]
    assert page.locator("[data-testid=method] option[value=chefer]").is_enabled()

    # Compare all: progress, each map as soon as it is ready; Stop keeps finished ones.
    page.click("[data-testid=explain-all]")
    page.wait_for_selector("[data-testid=explain-stop]")
    assert "no generic prompt" in tile(page, "relative").inner_text()
    ahead = [one.name for one in METHODS].index("rollout")
    gate.let(ahead + 1)
    tile(page, "rollout").locator("canvas").wait_for()
    status = page.locator(".explained .status-text")
    page.wait_for_function(
        "document.querySelector('.explained .status-text').innerText == 'value weighted'"
    )
    assert status.is_visible() and tile(page, "chefer").locator("canvas").count() == 0
    assert "not computed yet" in tile(page, "chefer").inner_text()
    assert tile(page, "chefer").is_disabled()
    done = float(
        page.locator(".explained .bar-done").evaluate("b => b.style.getPropertyValue('--p')")
    )
    assert 0.2 < done < 0.6
    page.click("[data-testid=explain-stop]")
    page.wait_for_selector("[data-testid=explain-error]")
    said = page.inner_text("[data-testid=explain-error]")
    assert "Stopped" in said and "kept" in said
    assert tile(page, "rollout").locator("canvas").count() == 1

    # One method: chosen in the list, computed, and drawn over the photo.
    page.select_option("[data-testid=method]", "chefer")
    assert "Compute chefer" in page.inner_text("[data-testid=explain-one]")
    gate.open()
    page.click("[data-testid=explain-one]")
    tile(page, "chefer").locator("canvas").wait_for()
    session = passes_of(handle, run.first)
    expected = {
        name: explain_map(run.first, TOKEN, name, session=session).values
        for name in ("rollout", "chefer", "attention")
    }
    shown = page.evaluate(f"[...{INSPECTOR}.shown.drawn.baseline]")
    np.testing.assert_allclose(shown, expected["chefer"].ravel(), rtol=1e-4, atol=1e-9)
    assert tile(page, "chefer").get_attribute("aria-pressed") == "true"

    # The rest, and how far they agree.
    page.click("[data-testid=explain-all]")
    tile(page, "region_search").locator("canvas").wait_for()
    page.wait_for_selector("[data-testid=explain-all]", state="detached")
    with_map = [n for n in POSSIBLE if tile(page, n).locator("canvas").count() == 1]
    assert with_map == POSSIBLE
    rows = page.locator("[data-testid=agreement] tbody tr")
    assert rows.count() == len(POSSIBLE)
    a, b = POSSIBLE.index("rollout"), POSSIBLE.index("chefer")
    cell = rows.nth(a).locator("td").nth(b)
    r = rank_correlation(expected["rollout"].ravel(), expected["chefer"].ravel())
    assert float(cell.inner_text().replace("−", "-")) == pytest.approx(r, abs=0.006)

    # A click on a small map shows it.
    tile(page, "rollout").click()
    assert page.locator("[data-testid=method]").input_value() == "rollout"
    shown = page.evaluate(f"[...{INSPECTOR}.shown.drawn.baseline]")
    np.testing.assert_allclose(shown, expected["rollout"].ravel(), rtol=1e-4, atol=1e-9)

    # It is saved like any other map: drawn by the server, and as numbers.
    page.click("[data-do=save]")
    with page.expect_download() as given:
        page.click("[data-testid=save-pdf]")
    assert Path(given.value.path()).read_bytes()[:4] == b"%PDF"
    with page.expect_download() as given:
        page.click("[data-testid=save-map]")
    lines = list(csv.DictReader(io.StringIO(Path(given.value.path()).read_text())))
    assert {line["method"] for line in lines} == {"rollout"}
    saved = np.full_like(expected["rollout"], np.nan)
    for line in lines:
        saved[int(line["row"]), int(line["column"])] = float(line["value"])
    np.testing.assert_allclose(saved, expected["rollout"], rtol=1e-4, atol=1e-9)

    # It is still there after a restart: nothing is computed.
    gate.hold()
    real.app.handlers.explained._kept.clear()
    again = opened(real, run, open_page, "&method=rollout")
    again.wait_for_function(f"Number.isFinite({INSPECTOR}.shown.drawn.baseline?.[0])")
    shown = again.evaluate(f"[...{INSPECTOR}.shown.drawn.baseline]")
    np.testing.assert_allclose(shown, expected["rollout"].ravel(), rtol=1e-4, atol=1e-9)
    again.click("[data-testid=explain-open]")
    assert tile(again, "region_search").locator("canvas").count() == 1
    assert again.locator("[data-testid=explain-stop]").count() == 0
