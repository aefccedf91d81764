"""Two stored runs side by side: what is compared and reported, and who may see it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sinkscope.attention_processor import head_mean
from sinkscope.capture.trace import MEAN_HEAD
from sinkscope.web.runs.pairs import find_run, pair_of
from sinkscope.web.runs.payload import build_payload
from sinkscope.web.runs.standalone import build_standalone
from sinkscope.web.runs.store import Run, RunStore, new_id
from tests.web.conftest import Site, reload
from tests.web.synthetic import make_pair, make_trace, scene
from tests.web.test_browser_view import INSPECTOR, ready
from tests.web.test_payload import unpack


def one(**sizes: Any) -> Run:
    return Run({"baseline": make_trace(**sizes)})


def test_the_same_question_on_the_same_image() -> None:
    a, b = Run(make_pair()), Run(make_pair(prompt="What is there?"))
    made = pair_of((a, "baseline"), (b, "var"), ("First", "Second"))
    assert list(made.traces) == ["a", "b"] and made.kind == "pair"
    assert made.traces["b"] is b.traces["var"]  # no second copy of the attention
    assert dict(made.labels) == {"a": "A · First · baseline", "b": "B · Second · VAR"}
    assert made.about["comparable"]
    assert made.about["remarks"] == ["What differs between A and B: prompt, applied."]
    assert ["prompt", "Describe the image.", "What is there?"] in made.about["settings"]


def test_settings_of_both_are_named() -> None:
    a, b = make_trace(), make_trace()
    b = dataclasses.replace(b, settings={**b.settings, "temperature": 0.7, "top_k": 5})
    made = pair_of((Run({"baseline": a}), "baseline"), (Run({"baseline": b}), "baseline"))
    assert ["temperature", "0.0", "0.7"] in made.about["settings"]
    assert ["top_k", "–", "5"] in made.about["settings"]
    assert made.about["remarks"][-1].endswith("temperature, top_k.")
    alike = pair_of((Run({"baseline": a}), "baseline"), (Run({"baseline": a}), "baseline"))
    assert alike.about["remarks"] == ["A and B have the same prompt and settings."]


def test_vars_settings_are_a_difference_only_where_both_sides_have_them() -> None:
    def run(**settings: float) -> tuple[Run, str]:
        trace = make_trace()
        return Run({"baseline": dataclasses.replace(trace, var={"settings": settings})}), "baseline"

    plain = pair_of((one(), "baseline"), run(tau=6.0, keep=0.6))
    assert plain.about["remarks"] == ["A and B have the same prompt and settings."]
    assert ["VAR tau", "–", "6.0"] in plain.about["settings"]
    both = pair_of(run(tau=6.0, keep=0.6), run(tau=6.0, keep=0.2))
    assert both.about["remarks"] == ["What differs between A and B: VAR keep."]


def test_other_image_and_other_grid_have_no_difference() -> None:
    other = pair_of((one(), "baseline"), (one(image=scene().rotate(180)), "baseline"))
    assert not other.about["comparable"]
    assert "different images" in other.about["remarks"][0]
    coarse = pair_of((one(), "baseline"), (one(rows=4, columns=6), "baseline"))
    assert not coarse.about["comparable"] and coarse.about["one_photo"]
    assert "12 × 8 patches in A and 6 × 4 patches in B" in coarse.about["remarks"][0]


def test_each_side_has_its_own_numbers() -> None:
    a, b = one(), one(rows=6, columns=6, image=scene(300, 300), seed=3)
    made = pair_of((a, "baseline"), (b, "baseline"))
    header, arrays = unpack(build_payload(made))
    left, right = header["variants"]
    assert (left["patches"], right["patches"]) == (96, 36)
    assert (left["photo"], right["photo"]) == (0, 1)
    assert right["images"][0]["columns"] == 6
    for name, trace in made.traces.items():
        codes = arrays[f"{name}.mean"].astype(np.float64) / 65535
        values = codes**2 * arrays[f"{name}.mean.scale"].astype(np.float64)[..., None]
        np.testing.assert_allclose(values, head_mean(trace), atol=2e-5, rtol=2e-3)


def test_only_the_rows_that_both_kept() -> None:
    whole, trace = make_trace(), make_trace(seed=2)
    slots = [1, 3]
    part = dataclasses.replace(
        trace,
        layers=(1, 3),
        **{name: getattr(trace, name)[:, slots] for name in ("attention", "shares", "entropy")},
    )
    made = pair_of((Run({"baseline": whole}), "baseline"), (Run({"baseline": part}), "baseline"))
    assert made.traces["a"].layers == made.traces["b"].layers == (1, 3)
    assert torch.equal(made.traces["a"].attention, whole.attention[:, slots])

    mean = {
        name: getattr(trace, name).float().mean(2, keepdim=True)
        for name in ("attention", "shares", "entropy")
    }
    few = dataclasses.replace(trace, heads=(MEAN_HEAD,), **mean)
    made = pair_of((Run({"baseline": whole}), "baseline"), (Run({"baseline": few}), "baseline"))
    assert made.traces["a"].heads == (MEAN_HEAD,)
    expected = whole.attention.float().mean(2, keepdim=True).half()
    assert torch.equal(made.traces["a"].attention, expected)


def test_models_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="6 layers of 8 heads and synthetic 4 of 8"):
        pair_of((one(), "baseline"), (one(layers=4), "baseline"))


def test_a_pair_is_found_by_both_ids_alone(tmp_path: Path) -> None:
    store = RunStore(tmp_path, 10**9)
    a, b = Run(make_pair()), one()
    store.put(a)
    store.put(b)
    good = f"{a.id}.var~{b.id}.baseline"
    found = find_run(store, good, ["<b>x</b>", 7, "more"])
    assert found is not None and found.id == good and found.labels["a"] == "A · <b>x</b> · VAR"
    assert find_run(store, a.id) is a
    for wrong in (
        f"{a.id}.var~{new_id()}.baseline",  # nobody's
        f"{a.id}.var~{b.id}.var",  # this run has no such answer
        f"{a.id}.var~{b.id}",
        f"{a.id}.var~../../{b.id}.baseline",
        good + "\n",
        None,
        5,
    ):
        assert find_run(store, wrong) is None, wrong
    store.delete(b.id)
    assert find_run(store, good) is None


def test_a_pair_as_one_file() -> None:
    made = pair_of((Run(make_pair()), "var"), (one(image=scene(300, 300)), "baseline"), ("x", "y"))
    page = build_standalone(made).decode()
    assert page.count('id="file-image-1"') == 1 and "A: Prompt" in page and "B: Applied" in page


@pytest.mark.browser
def test_in_the_page(site: Site, open_page: Any) -> None:
    store = site.app.handlers.store
    a, b = Run(make_pair()), Run(make_pair(prompt="What is there?"))
    c = one(rows=6, columns=6, image=scene(300, 300), seed=3)
    for run in (a, b, c):
        store.put(run)
    page = open_page(site.url)
    ready(page)
    items = [
        {"id": r.id, "name": name, "model": "m", "tokens": tokens, "at": 1}
        for r, name, tokens in ((a, "One", "2 | 2"), (b, "Two", "2 | 2"), (c, "Three", "2"))
    ]
    page.evaluate("list => localStorage.setItem('sinkscope.runs', JSON.stringify(list))", items)
    page.click("[data-testid=runs-button]")
    page.locator("[data-testid=compare-run]").first.click()
    page.click("[data-testid=runs] >> text=with its VAR")
    pair = f"{a.id}.baseline~{b.id}.var"
    page.wait_for_selector(f"[data-ready='{pair}']", state="attached")
    assert page.inner_text("[data-testid=panel-b] .title b") == "B · Two · VAR"
    page.check("[data-testid=difference]")
    shown = page.evaluate(f"Array.from({INSPECTOR}.shown.maps.difference)")
    t = page.evaluate(f"{INSPECTOR}.view.t0")
    maps = [head_mean(x)[t].mean(0).numpy() for x in (a.traces["baseline"], b.traces["var"])]
    np.testing.assert_allclose(shown, maps[1] - maps[0], atol=5e-5)

    page.wait_for_url(lambda url: "%7E" in url or "~" in url)
    reload(page)
    page.wait_for_selector(f"[data-ready='{pair}']", state="attached")
    assert page.inner_text("[data-testid=panel-a] .title b") == "A · One · baseline"

    page.click("[data-testid=runs-button]")
    page.locator("[data-testid=compare-run]").first.click()
    page.click("[data-testid=runs] >> text=with this")
    page.wait_for_selector(f"[data-ready='{a.id}.baseline~{c.id}.baseline']", state="attached")
    assert page.is_hidden("[data-testid=difference]")
    assert "different images" in page.inner_text("[data-testid=remarks]")
    shown = page.evaluate(f"Array.from({INSPECTOR}.shown.maps.b)")
    np.testing.assert_allclose(
        shown, head_mean(c.first)[page.evaluate(f"{INSPECTOR}.view.t0")].mean(0), atol=5e-5
    )
