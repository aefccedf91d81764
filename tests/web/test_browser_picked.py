"""Single heads as the choice of the view: found in the run, opened from a file, linked, saved."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sinkscope.drawing.view import View, make_side, map_of, selection_words
from sinkscope.methods.head_list import PickedHeads
from sinkscope.methods.heads import localising_heads, sink_heads
from sinkscope.web.runs.payload import EAGER_BYTES
from sinkscope.web.runs.store import Run
from tests.web.conftest import INSPECTOR, Site, reload
from tests.web.synthetic import make_trace
from tests.web.test_browser_view import ready

pytestmark = pytest.mark.browser

TOKEN = 5
DRAWN = f"[...{INSPECTOR}.shown.maps.baseline]"


def opened(site: Site, run: Run, open_page: Any, more: str = "") -> Any:
    page = open_page(site.url, path=f"#run={run.id}&t={TOKEN}-{TOKEN}{more}")
    page.wait_for_selector(f"[data-testid=inspector][data-ready='{run.id}']", state="attached")
    ready(page)
    return page


def expected(run: Run, view: View, tokens: tuple[int, ...] = (TOKEN,)) -> np.ndarray:
    return map_of(make_side("", run.first), tokens, view).values.ravel()


def choose(page: Any, which: str, words: str) -> None:
    page.select_option("[data-testid=picks]", which)
    page.wait_for_function(
        "words => document.querySelector('[data-testid=selection]').innerText.includes(words)",
        arg=words,
    )


def test_found_shown_linked_and_saved(site: Site, open_page: Any) -> None:
    run = Run({"baseline": make_trace()})
    site.app.handlers.store.put(run, keep_on_disk=False)
    page = opened(site, run, open_page)
    found = localising_heads([run.first])
    view = View(picked=found.picked())
    choose(page, "localising", "localising heads")

    # The server makes the map, the description and the raw shares.
    drawn = page.evaluate(DRAWN)
    np.testing.assert_allclose(drawn, expected(run, view), rtol=2e-3, atol=1e-6)
    plain = expected(run, View())
    assert np.abs(np.array(drawn) - plain).max() > 10 * 2e-3 * plain.max()  # not those of all
    assert selection_words(run.first, view) in page.inner_text("[data-testid=selection]")
    assert found.picked().words in page.inner_text("[data-testid=made-by]")
    image, held = make_side("", run.first).shares([TOKEN], view)
    shares = page.evaluate(f"{INSPECTOR}.shown.shares.baseline")
    assert shares["image"] == pytest.approx(image, abs=1e-4)
    assert shares["sinks"] == pytest.approx(held, abs=1e-3)
    assert page.locator(".panel.heads .pick").count() == len(found.chosen)

    # Also the largest and the smallest of them.
    for reduce in ("max", "min"):
        page.select_option("[data-testid=combine]", reduce)
        of = expected(run, dataclasses.replace(view, reduce=reduce))
        np.testing.assert_allclose(page.evaluate(DRAWN), of, rtol=2e-3, atol=1e-6)
    page.select_option("[data-testid=combine]", "mean")

    # Saved files: the list as Python saves it, the values, a figure and an animation.
    with page.expect_download() as given:
        page.click("[data-testid=save-heads]")
    listed = Path(given.value.path())
    assert json.loads(listed.read_text()) == json.loads(found.as_json())
    page.click("[data-do=save]")
    with page.expect_download() as given:
        page.click("[data-testid=save-map]")
    lines = list(csv.DictReader(io.StringIO(Path(given.value.path()).read_text())))
    named = " ".join(f"{layer}.{head}" for layer, head in found.layer_heads())
    assert {line["single_heads"] for line in lines} == {named}
    for kind, head in (("pdf", b"%PDF"), ("gif", b"GIF8")):
        with page.expect_download() as given:
            page.click(f"[data-testid=save-{kind}]")
        assert Path(given.value.path()).read_bytes()[:4] == head
    page.click("[data-do=save]")

    # The link restores them; other ranges replace them.
    page.wait_for_function("location.hash.includes('heads=localising')")
    reload(page)
    page.wait_for_selector(f"[data-testid=inspector][data-ready='{run.id}']", state="attached")
    np.testing.assert_allclose(page.evaluate(DRAWN), drawn, rtol=1e-6)
    page.click("[data-testid=strongest]")
    assert page.evaluate(f"{INSPECTOR}.view.picked") is None
    assert "localising" not in page.inner_text("[data-testid=selection]")
    assert page.locator("[data-testid=picks]").input_value() == ""

    # The saved file can be chosen again, also a list of heads that feed on sinks.
    page.set_input_files("[data-testid=heads-file]", str(listed))
    page.wait_for_function(f"{INSPECTOR}.view.picked?.from === 'file'")
    np.testing.assert_allclose(page.evaluate(DRAWN), drawn, rtol=1e-6)
    choose(page, "sinks", "sink heads")
    view = View(picked=sink_heads([run.first]).picked())
    np.testing.assert_allclose(page.evaluate(DRAWN), expected(run, view), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"revision": "another"}, "000000000000) is loaded"),
        ({"chosen": []}, "The list of heads is empty."),
        ({"chosen": [{"layer": 5, "head": 8, "image_mass": 0.5, "value": 0.1}]}, "heads is 5.8"),
        ({"chosen": [{"layer": 6, "head": 0, "image_mass": 0.5, "value": 0.1}]}, "heads is 6.0"),
        ({"chosen": [{"layer": -1, "head": 0, "image_mass": 1, "value": 1}]}, "damaged list"),
        ({"format": "x"}, "heads.json is not a list of heads"),
        ({"version": 2}, "version 2; allowed: 1"),
        (None, "heads.json is not a list of heads, because it is not JSON"),
    ],
)
def test_a_list_that_does_not_fit_changes_nothing(
    site: Site, open_page: Any, tmp_path: Path, changes: dict[str, Any] | None, said: str
) -> None:
    run = Run({"baseline": make_trace()})
    site.app.handlers.store.put(run, keep_on_disk=False)
    page = opened(site, run, open_page)
    before = page.evaluate(DRAWN)
    path = tmp_path / "heads.json"
    values = json.loads(localising_heads([run.first]).as_json())
    path.write_text("{" if changes is None else json.dumps({**values, **changes}))
    page.set_input_files("[data-testid=heads-file]", str(path))
    page.wait_for_selector("[data-testid=alert]")
    text = page.inner_text("[data-testid=alert]")
    assert said in text and "\n" not in text
    assert page.evaluate(DRAWN) == before


def test_a_run_without_such_heads_says_so(site: Site, open_page: Any) -> None:
    run = Run({"baseline": make_trace(sink_weight=0.0)})
    site.app.handlers.store.put(run, keep_on_disk=False)
    page = opened(site, run, open_page, "&heads=localising~77.1")
    assert "did not keep" in page.inner_text("[data-testid=alert]")
    page.select_option("[data-testid=picks]", "sinks")
    page.wait_for_function("document.querySelector('.alert').innerText.includes('sinks')")
    assert page.locator("[data-testid=picks]").input_value() == ""


def test_a_large_run_fetches_them(site: Site, open_page: Any) -> None:
    """One token, the mean of several, and the largest of several, which the server makes."""
    trace = make_trace(rows=32, columns=32, layers=12, heads=12)
    assert trace.attention.numel() > EAGER_BYTES
    run = Run({"baseline": trace})
    site.app.handlers.store.put(run, keep_on_disk=False)
    page = opened(site, run, open_page, "&heads=%7E3.4-3.7-11.0")
    view = View(picked=PickedHeads(((3, 4), (3, 7), (11, 0))))
    assert "mean over 3 heads (3.4, 3.7, 11.0)" in page.inner_text("[data-testid=selection]")
    for tokens, reduce in (((5,), "mean"), ((5, 6, 7), "mean"), ((5, 6, 7), "max")):
        page.evaluate(
            f"([t0, t1, combine]) => {INSPECTOR}.set({{ t0, t1, combine }})",
            [tokens[0], tokens[-1], reduce],
        )
        page.wait_for_function(f"{INSPECTOR}.shown.maps.baseline")
        of = expected(run, dataclasses.replace(view, reduce=reduce), tokens)
        np.testing.assert_allclose(page.evaluate(DRAWN), of, rtol=2e-2, atol=2e-3 * of.max())
