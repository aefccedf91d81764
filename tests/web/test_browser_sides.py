"""Two answers on the page: VAR's effect on each word of one text, and a choice for each side."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sinkscope.capture.trace import GenerationTrace
from sinkscope.web.explore.export_files import ExportRequest
from sinkscope.web.runs.store import Run
from tests.web.conftest import INSPECTOR, Site, reload
from tests.web.synthetic import WORDS, make_pair
from tests.web.test_browser_view import drawn, ready

pytestmark = pytest.mark.browser


def opened(site: Site, open_page: Any, run: Run, more: str = "") -> Any:
    site.app.handlers.store.put(run, keep_on_disk=False)
    page = open_page(site.url, path=f"#run={run.id}{more}")
    page.wait_for_selector(f"[data-testid=inspector][data-ready='{run.id}']", state="attached")
    ready(page)
    return page


def with_probabilities(trace: GenerationTrace, values: dict[int, float]) -> GenerationTrace:
    tokens = [
        replace(token, probability=values.get(i, 0.5)) for i, token in enumerate(trace.tokens)
    ]
    return replace(trace, tokens=tuple(tokens))


def test_same_text_shows_how_much_likelier_each_token_became(site: Site, open_page: Any) -> None:
    pair = make_pair(WORDS, WORDS)
    run = Run(
        {
            "baseline": with_probabilities(pair["baseline"], {}),
            "var": with_probabilities(pair["var"], {1: 0.9, 2: 0.1, 3: 0.5, 4: 0.3}),
        },
        same_text=True,
    )
    page = opened(site, open_page, run)
    chips = "[data-testid=strip-var] .token"
    said = page.evaluate(
        """chips => [...document.querySelectorAll(chips)].slice(1, 5).map((chip) => [
             chip.className.match(/higher|lower/)?.[0], chip.querySelector('sup')?.textContent,
             +chip.style.getPropertyValue('--gain'),
             getComputedStyle(chip, '::after').backgroundColor])""",
        chips,
    )
    most = math.log(5)
    assert [one[:2] for one in said] == [
        ["higher", "+0.59"],
        ["lower", "−1.61"],
        ["higher", None],  # nothing changed
        ["lower", "−0.51"],
    ]
    expected = [math.log(1.8) / most, 1, 0, math.log(5 / 3) / most]
    np.testing.assert_allclose([one[2] for one in said], expected, atol=1e-3)
    assert len({one[3] for one in said}) == 4  # a colour each
    assert page.inner_text("[data-testid=strip-var] >> xpath=.. >> .gains").split() == [
        *("Δ", "log", "p"),
        "−1.6",
        "+1.6",
    ]
    assert page.locator("[data-testid=own-choice]").count() == 0  # the texts do not part


def noting_requests(seen: list[ExportRequest]) -> Callable[..., list[Path]]:
    """Replaces `make_files`: stores the request, and writes an empty file."""

    def write_files(run: Run, wanted: ExportRequest, folder: Path, **rest: Any) -> list[Path]:
        seen.append(wanted)
        path = folder / f"it.{wanted.kind}"
        path.write_bytes(b"")
        return [path]

    return write_files


def test_each_answer_can_have_its_own_token(
    site: Site, open_page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = opened(site, open_page, Run(make_pair()))
    page.evaluate(f"{INSPECTOR}.set({{ same: false }})")  # a scale for each map
    page.click("[data-testid=token-baseline-3]")
    together = drawn(page, "baseline"), drawn(page, "var")
    page.click("[data-testid=own-choice]")
    assert (drawn(page, "baseline"), drawn(page, "var")) == together
    page.click("[data-testid=token-var-22]")
    apart = drawn(page, "baseline"), drawn(page, "var")
    assert apart[0] == together[0] and apart[1] != together[1]
    chosen = page.evaluate(
        "[...document.querySelectorAll('.strip [aria-selected=true]')].map((e) => e.dataset.testid)"
    )
    assert chosen == ["token-baseline-3", "token-var-22"]
    assert "token 3" in page.inner_text("[data-testid=selection]")
    assert "VAR: token 22" in page.inner_text("[data-testid=selection]")
    page.keyboard.press("ArrowRight")  # on the side that has the focus
    assert page.evaluate(f"[{INSPECTOR}.view.t0, ...{INSPECTOR}.view.own]") == [3, 23, 23]
    page.click("[data-testid=token-baseline-5]")
    assert page.evaluate(f"[{INSPECTOR}.view.t0, ...{INSPECTOR}.view.own]") == [5, 23, 23]

    # The server is asked to draw what is on screen; an animation without a chosen range shows all.
    wanted: list[ExportRequest] = []
    monkeypatch.setattr("sinkscope.web.explore.exporting.make_files", noting_requests(wanted))
    page.click("[data-testid=save-button]")
    for kind in ("pdf", "gif"):
        with page.expect_download():
            page.click(f"[data-testid=save-{kind}]")
    got = [(one.kind, one.first, one.last, one.second_tokens) for one in wanted]
    assert got == [("pdf", 5, 5, (23, 23)), ("gif", 0, None, None)]

    page.wait_for_function("location.hash.includes('u=23-23')")
    reload(page)
    page.wait_for_selector("[data-testid=own-choice][aria-pressed=true]")
    assert page.evaluate(f"[{INSPECTOR}.view.t0, ...{INSPECTOR}.view.own]") == [5, 23, 23]

    page.click("[data-testid=own-choice]")
    assert page.evaluate(f"{INSPECTOR}.view.own") is None
    page.wait_for_function("!location.hash.includes('u=')")
