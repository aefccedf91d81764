"""The inspector on the example run: the drawing is right; choices send no request."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sinkscope.attention_processor import image_share, patch_map, tokens_attending_to
from sinkscope.methods.explain import METHODS, explain_map
from sinkscope.web.runs.store import Run, open_run
from tests.web.conftest import INSPECTOR, Site
from tests.web.synthetic import HOSTILE, WORDS, make_trace

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"

pytestmark = pytest.mark.browser

HASH = """canvas => {
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  let hash = 2166136261;
  for (let i = 0; i < data.length; i++) hash = Math.imul(hash ^ data[i], 16777619);
  return hash;
}"""


def ready(page: Any) -> None:
    """Waits for the first view. On a busy machine it did not come once in some hundred openings,
    for a reason that is not known; then the page is opened again, and the summary warns of it."""
    from playwright.sync_api import TimeoutError as NotInTime

    shown = "[data-testid=inspector][data-ready]"
    try:
        page.wait_for_selector(shown, state="attached")
    except NotInTime:
        warnings.warn("the first view did not come; the page was opened again", stacklevel=2)
        page.reload()
        page.wait_for_selector(shown, state="attached")


def drawn(page: Any, variant: str = "baseline") -> int:
    return page.locator(f"[data-testid=panel-{variant}] canvas.map").evaluate(HASH)


def change(page: Any, test_id: str, value: object) -> None:
    """Move a slider or choose in a list like a user: set it, send `input` and `change`."""
    page.locator(f"[data-testid={test_id}]").evaluate(
        """(e, v) => {
          e.value = v;
          for (const kind of ['input', 'change']) {
            e.dispatchEvent(new Event(kind, { bubbles: true }));
          }
        }""",
        str(value),
    )


def test_example_is_there_and_labelled(example_page: Any) -> None:
    page = example_page
    assert page.inner_text("[data-testid=phase]") == "Precomputed example"
    assert page.locator("[data-testid=strip-baseline] .token").count() == 27
    # The first view is of a word, not of a comma.
    assert page.inner_text("[data-testid=strip-baseline] [aria-selected=true]").strip().isalpha()


def test_every_control_says_what_it_does(example_page: Any) -> None:
    silent = example_page.evaluate(
        """[...document.querySelectorAll(
             ".scope :is(.line button, .bar button, .bar select, .bar input, .quantity button)"
           )].filter((control) => !(control.closest("[title]")?.title.length > 5))
             .map((control) => control.outerHTML.slice(0, 90))"""
    )
    assert silent == []


def test_maps_difference_and_their_colours_are_in_one_window(open_page: Any, site: Site) -> None:
    page = open_page(site.url)
    page.set_viewport_size({"width": 1440, "height": 900})
    ready(page)
    page.wait_for_function(
        """() => ["baseline", "var", "difference"].every((name) => {
             const figure = document.querySelector(`[data-testid=panel-${name}]`);
             return [".title", ".map", ".scalebar"].every((part) => {
               const box = figure.querySelector(part).getBoundingClientRect();
               const inside = box.top >= 0 && box.left >= 0 && box.bottom <= 900;
               return inside && box.right <= 1440 && box.height;
             });
           })"""
    )
    # The matrices are clicked with the maps in sight.
    page.locator("[data-testid=heads-var]").scroll_into_view_if_needed()
    box = page.locator("[data-testid=panel-var] .map").bounding_box()
    assert box["y"] >= 0 and box["y"] + box["height"] < 900


def test_matrices_have_colour_bars_and_a_difference(site: Site, example_page: Any) -> None:
    page = example_page
    run = site.app.handlers.store.get(page.get_attribute("[data-ready]", "data-ready"))
    assert run is not None
    plain, var = (float(run.traces[name].shares[0, 0, :, 1].mean()) for name in ("baseline", "var"))
    page.hover("[data-testid=time-difference]", position={"x": 3, "y": 3})
    said = page.inner_text(".pair[data-variant=difference] .time .read")
    assert said.startswith("token 0 ") and "layer 0" in said
    number = said.rsplit(" · ", 1)[1].removesuffix(" %").replace("−", "-")
    assert abs(float(number) / 100 - (var - plain)) < 1e-3
    keys = [page.inner_text(f"[data-testid=key-time-{name}]") for name in ("baseline", "var")]
    assert keys[0] == keys[1] and keys[0].startswith("0 %")
    low, high = page.inner_text("[data-testid=key-time-difference]").split("\n")
    assert low == f"−{high}" and high.endswith("%")
    page.click("[data-testid=difference]")
    assert page.is_hidden("[data-testid=time-difference]")


def test_maps_equal_those_of_the_processor(site: Site, example_page: Any) -> None:
    page = example_page
    run = site.app.handlers.store.get(page.get_attribute("[data-ready]", "data-ready"))
    assert run is not None
    cases = [  # tokens, layers, heads (first and last of each), how combined, without sinks
        ((3, 3), (0, 5), (0, 7), "mean", False),
        ((3, 9), (2, 4), (0, 7), "mean", False),
        ((5, 5), (1, 1), (6, 6), "mean", False),
        ((2, 6), (1, 5), (2, 5), "max", False),
        ((2, 6), (1, 5), (2, 5), "min", False),
        ((4, 4), (0, 5), (0, 7), "mean", True),
        ((4, 4), (2, 5), (1, 7), "max", True),
        ((4, 6), (1, 4), (0, 7), "mean", True),
        ((4, 6), (1, 4), (2, 3), "min", True),
    ]
    for tokens, layers, heads, combine, without_sinks in cases:
        chosen = dict(
            zip(("t0", "t1", "l0", "l1", "h0", "h1"), (*tokens, *layers, *heads), strict=True)
        )
        chosen |= {"combine": combine, "method": "without_sinks" if without_sinks else "attention"}
        page.evaluate(f"chosen => {INSPECTOR}.set(chosen)", chosen)
        maps, shares = page.evaluate(
            f"""() => {{ const {{ maps, shares }} = {INSPECTOR}.shown;
                return [{{ b: [...maps.baseline], v: [...maps.var] }}, shares.var.image]; }}"""
        )
        for key, name in (("b", "baseline"), ("v", "var")):
            expected = explain_map(
                run.traces[name],
                range(tokens[0], tokens[1] + 1),
                chosen["method"],
                range(layers[0], layers[1] + 1),
                range(heads[0], heads[1] + 1),
                combine,  # type: ignore[arg-type]
            ).values.ravel()
            assert np.isnan(expected).any() == without_sinks
            # uint16 codes: half a step in the square root of the row's maximum
            least = 2e-5 * np.nanmax(expected)
            np.testing.assert_allclose(maps[key], expected, atol=least, rtol=2e-3)
        rows = run.traces["var"].shares[
            tokens[0] : tokens[1] + 1, layers[0] : layers[1] + 1, heads[0] : heads[1] + 1
        ]
        assert abs(shares - float(rows[..., 1].mean())) < 1e-4


def test_choosing_repaints_without_a_request(example_page: Any) -> None:
    page = example_page
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    seen = {drawn(page)}
    page.click("[data-testid=token-baseline-5]")
    for test_id, value in (
        ("layer-from", 3),
        ("layer-to", 4),
        ("head-from", 2),
        ("head-to", 5),
        ("combine", "max"),
        ("scale", "log"),
        ("scale", "rank"),
        ("method", "without_sinks"),
        ("method", "relative"),
        ("colours", "viridis"),
        ("opacity", 40),
        ("overlay", "flat"),
        ("photo", "full"),
    ):
        change(page, test_id, value)
        now = drawn(page)
        assert now not in seen, f"{test_id} = {value} changed nothing"
        seen.add(now)
    page.click("[data-testid=sinks]")
    assert drawn(page) not in seen
    assert page.is_visible("[data-testid=panel-difference]")
    page.click("[data-testid=difference]")
    assert page.is_hidden("[data-testid=panel-difference]")
    assert "same scale" in page.inner_text("[data-testid=panel-var] .words")
    assert "rank" in page.inner_text("[data-testid=panel-var] .words")
    assert asked == []


def chosen_maps(page: Any, name: str = "maps") -> dict[str, list[float]]:
    script = f"() => {{ const m = {INSPECTOR}.shown.{name}, o = {{}};"
    script += " for (const k in m) if (m[k] && k !== 'difference') o[k] = [...m[k]]; return o; }"
    return page.evaluate(script)


def test_tokens_of_the_prompt(site: Site, example_page: Any) -> None:
    page = example_page
    run = site.app.handlers.store.get(page.get_attribute("[data-ready]", "data-ready"))
    assert run is not None
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.click("[data-testid=token-prompt-4]")
    assert "prompt token 4" in page.inner_text("[data-testid=selection]")
    assert "the row of the token itself" in page.inner_text("[data-testid=selection]")
    assert page.locator("[data-testid=strip-baseline] [aria-selected=true]").count() == 0
    for tokens, heads in (([4], range(8)), ([2, 3, 4], [5])):
        view = {"t0": tokens[0], "t1": tokens[-1], "h0": heads[0], "h1": heads[-1]}
        page.evaluate(f"chosen => {INSPECTOR}.set(chosen)", view)
        for name, values in chosen_maps(page).items():
            rows = run.traces[name].prompt_rows
            assert rows is not None
            expected = patch_map(rows, tokens, None, heads).values.ravel()
            np.testing.assert_allclose(values, expected, atol=2e-5 * expected.max(), rtol=2e-3)
    assert "prompt token × layer" in page.inner_text(".pair .time .what >> nth=0")
    page.focus("[data-testid=token-prompt-2]")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.testid") == "token-prompt-3"
    page.keyboard.press("ArrowDown")
    assert "token-baseline" in page.evaluate("document.activeElement.dataset.testid")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(f"{INSPECTOR}.view.part") == "answer"
    assert "the row that predicted it" in page.inner_text("[data-testid=selection]")
    page.click("[data-testid=token-prompt-1]")
    page.click("[data-testid=prompt-hide]")  # back to the answer
    assert page.evaluate(f"{INSPECTOR}.view.part") == "answer"
    assert page.is_visible("[data-testid=question]")
    page.click("[data-testid=prompt-show]")
    assert page.is_visible("[data-testid=token-prompt-1]")
    assert not [url for url in asked if "component_server" in url]


def test_hostile_words_of_a_prompt_stay_texts(site: Site, open_page: Any) -> None:
    trace = make_trace(prompt=HOSTILE[0])
    rows = trace.prompt_rows
    assert rows is not None
    tokens = tuple(
        dataclasses.replace(token, text=text)
        for token, text in zip(rows.tokens, HOSTILE, strict=False)
    )
    run = Run({"baseline": dataclasses.replace(
        trace, prompt_rows=dataclasses.replace(rows, tokens=tokens)
    )})  # fmt: skip
    site.app.handlers.store.put(run)
    page = open_page(site.url, path=f"#run={run.id}&p=0-0")
    page.wait_for_selector(f"[data-ready='{run.id}']", state="attached")
    for i in range(len(tokens)):
        page.click(f"[data-testid=token-prompt-{i}]")
    assert page.inner_text("[data-testid=token-prompt-0]") == HOSTILE[0]
    assert page.evaluate("window.__hit") is None
    assert page.locator(".scope img, .scope script").count() == 0


def test_relative_to_the_generic_prompt(site: Site, example_page: Any) -> None:
    page = example_page
    run = site.app.handlers.store.get(page.get_attribute("[data-ready]", "data-ready"))
    assert run is not None
    before = page.inner_text("[data-testid=panel-var] .stat")
    change(page, "method", "relative")
    for heads, combine in ((range(8), "mean"), ([3], "mean"), ([2, 3], "max")):
        view = {"t0": 6, "t1": 6, "h0": heads[0], "h1": heads[-1], "combine": combine}
        page.evaluate(f"chosen => {INSPECTOR}.set(chosen)", view)
        for name, values in chosen_maps(page, "drawn").items():
            trace = dataclasses.replace(
                run.traces[name], reference=run.traces["baseline"].reference
            )
            made = explain_map(trace, 6, "relative", None, heads, combine)  # type: ignore[arg-type]
            expected = made.values.ravel()
            np.testing.assert_allclose(values, expected, rtol=0.02, atol=1e-3 * expected.max())
    words = page.inner_text("[data-testid=panel-var] .words")
    assert "relative" in words
    assert "“Describe anything.”" in words
    page.evaluate(f"{INSPECTOR}.set(window.fresh)")
    change(page, "method", "relative")
    assert page.inner_text("[data-testid=panel-var] .stat") == before
    page.hover("[data-testid=panel-var] .stage")
    assert "generic" in page.inner_text("[data-testid=panel-var] .patch")


def test_a_run_without_a_generic_prompt_says_so(site: Site, open_page: Any) -> None:
    trace = dataclasses.replace(
        make_trace(), prompt_rows=None, reference=None, extra={"no_reference": "it was stopped"}
    )
    run = Run({"baseline": trace})
    site.app.handlers.store.put(run)
    page = open_page(site.url, path=f"#run={run.id}&scale=relative")
    page.wait_for_selector(f"[data-ready='{run.id}']", state="attached")
    # An old link, from a version in which this was a scale.
    words = page.inner_text(".words >> nth=0")
    assert words.startswith("not relative, for the run has no generic prompt to compare with: it w")
    assert "instead attention mass per patch · percentile clip" in words
    option = page.locator("[data-testid=method] option[value=relative]")
    assert option.is_disabled() and "it was stopped" in option.inner_text()
    assert page.locator("[data-testid=method] option").count() == len(METHODS)
    assert page.locator("[data-testid=strip-prompt]").count() == 0
    assert page.is_visible("[data-testid=question]")


def test_four_layers_at_once(site: Site, example_page: Any) -> None:
    page = example_page
    run = site.app.handlers.store.get(page.get_attribute("[data-ready]", "data-ready"))
    assert run is not None
    page.click("[data-testid=token-baseline-5]")
    page.focus("[data-testid=token-baseline-5]")
    page.keyboard.press("4")
    assert page.locator("[data-testid^=panel-]:visible").count() == 4
    change(page, "four-layer-0", 5)
    change(page, "four", "var")
    layers = page.evaluate(f"{INSPECTOR}.view.layers")
    assert layers == [5, 2, 3, 5]
    maps = chosen_maps(page)
    for k, layer in enumerate(layers):
        expected = patch_map(run.traces["var"], 5, [layer]).values.ravel()
        np.testing.assert_allclose(maps[f"four-{k}"], expected, atol=2e-5, rtol=2e-3)
        share = float(image_share(run.traces["var"])[5, layer].mean())
        said = page.inner_text(f"[data-testid=panel-four-{k}] .stat")
        assert f"image {100 * share:.1f} %" in said
    page.hover("[data-testid=panel-four-0] .stage")
    reads = page.locator("[data-testid^=panel-four] .patch").all_inner_texts()
    assert len({text.split("·")[0] for text in reads}) == 1  # one cursor
    assert len(set(reads)) > 1
    page.wait_for_function("location.hash.includes('four=5-2-3-5.var')")
    page.keyboard.press("4")
    assert page.is_visible("[data-testid=panel-baseline]")


def test_shares_are_shown_raw_whatever_the_scale(example_page: Any) -> None:
    page = example_page
    before = page.inner_text("[data-testid=panel-baseline] .stat")
    assert "image" in before and "sinks hold" in before
    for choice, value in (
        ("scale", "linear"),
        ("scale", "log"),
        ("scale", "rank"),
        ("method", "without_sinks"),
        ("method", "relative"),
    ):
        change(page, choice, value)
        assert page.inner_text("[data-testid=panel-baseline] .stat") == before


def test_reverse_look_up(site: Site, example_page: Any) -> None:
    page = example_page
    run = site.app.handlers.store.get(page.get_attribute("[data-ready]", "data-ready"))
    assert run is not None
    box = page.locator("[data-testid=panel-baseline] .stage").bounding_box()
    cell_w, cell_h = box["width"] / 12, box["height"] / 8
    page.mouse.move(box["x"] + 2.5 * cell_w, box["y"] + 3.5 * cell_h)
    page.mouse.down()
    page.mouse.move(box["x"] + 4.5 * cell_w, box["y"] + 5.5 * cell_h, steps=3)
    page.mouse.up()
    cells = [r * 12 + c for r in (3, 4, 5) for c in (2, 3, 4)]
    best = tokens_attending_to(run.traces["baseline"], cells)[0]
    listed = page.locator("[data-testid=lookup] .looks").first.locator("button").first
    assert listed.inner_text().strip() == best.text.strip()
    assert page.is_enabled("[data-testid=quantity-box]")
    listed.click()
    assert (
        page.get_attribute(f"[data-testid=token-baseline-{best.token}]", "aria-selected") == "true"
    )
    page.click("[data-testid=clear-box]")
    assert page.locator("[data-testid=lookup] .looks").count() == 0


def test_range_of_tokens_and_end_of_the_shorter_answer(example_page: Any) -> None:
    page = example_page
    page.click("[data-testid=token-baseline-3]")
    page.click("[data-testid=token-baseline-6]", modifiers=["Shift"])
    assert page.locator("[data-testid=strip-baseline] [aria-selected=true]").count() == 4
    assert "tokens 3–6 (mean)" in page.inner_text("[data-testid=selection]")
    page.click("[data-testid=token-baseline-26]")  # the VAR answer has 26 tokens
    assert "ended before token 26" in page.inner_text("[data-testid=panel-var] .note")
    assert page.is_hidden("[data-testid=panel-baseline] .note")


def test_keyboard_alone(example_page: Any) -> None:
    page = example_page
    page.focus("[data-testid=strip-baseline] [aria-selected=true]")
    page.keyboard.press("Home")
    assert page.evaluate("document.activeElement.dataset.testid") == "token-baseline-0"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    assert page.evaluate(f"[{INSPECTOR}.view.t0, {INSPECTOR}.view.t1]") == [1, 2]
    page.keyboard.press("End")
    assert page.evaluate(f"{INSPECTOR}.view.t0") == 26
    page.keyboard.press("ArrowDown")  # the other answer is shorter: focus stays
    page.keyboard.press("]")
    assert page.evaluate(f"[{INSPECTOR}.view.l0, {INSPECTOR}.view.l1]") == [0, 0]
    page.keyboard.press("}")
    page.keyboard.press("}")
    assert page.evaluate(f"[{INSPECTOR}.view.h0, {INSPECTOR}.view.h1]") == [1, 1]
    page.keyboard.press("0")
    assert page.evaluate(f"[{INSPECTOR}.view.l1, {INSPECTOR}.view.h1]") == [5, 7]
    page.keyboard.press("s")
    assert not page.is_checked("[data-testid=sinks]")
    page.keyboard.press("d")
    assert page.is_hidden("[data-testid=panel-difference]")
    page.focus("[data-testid=panel-baseline] .stage")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.locator("[data-testid=lookup] .looks").count() == 2
    assert "of the row" in page.inner_text("[data-testid=panel-baseline] .patch")


def test_address_keeps_the_place(site: Site, open_page: Any) -> None:
    page = open_page(site.url, path="#p=2-3&four=0-1-2-5.var&scale=relative")
    ready(page)
    view = page.evaluate(f"{INSPECTOR}.view")
    names = ("part", "t0", "t1", "four", "layers", "method", "scale")
    assert [view[k] for k in names] == [
        "prompt", 2, 3, "var", [0, 1, 2, 5], "relative", "percentile",
    ]  # fmt: skip
    page.wait_for_function("location.hash.includes('method=relative')")
    for place, expected in (  # the first two are links from when methods were scales
        ("scale=nosink", ["without_sinks", "linear"]),
        ("scale=clip", ["attention", "percentile"]),
        ("method=relative&scale=log", ["relative", "log"]),
        ("method=telepathy&scale=loud", ["telepathy", "percentile"]),
    ):
        page = open_page(site.url, path=f"#t=3-3&{place}")
        ready(page)
        view = page.evaluate(f"{INSPECTOR}.view")
        assert [view["method"], view["scale"]] == expected, place
    # An unknown method is never drawn.
    assert page.input_value("[data-testid=method]") == "attention"
    assert "attention mass per patch" in page.inner_text("[data-testid=panel-var] .words")
    page = open_page(site.url, path="#t=7-8&l=1-3&h=2-2&combine=max")
    ready(page)
    view = page.evaluate(f"{INSPECTOR}.view")
    assert [view[k] for k in ("t0", "t1", "l0", "l1", "h0", "h1")] == [7, 8, 1, 3, 2, 2]
    page.click("[data-testid=token-var-4]")
    page.wait_for_function("location.hash.includes('t=4-4')")


# Links of each version; a version only ever added keys.
LINKS = {
    1: "t=1-2&l=0-1&h=2-2&combine=min&scale=log&difference=1",
    2: "t=1-2&l=0-1&h=2-2&combine=min&scale=log&difference=1",
    3: "p=1-2&l=0-1&h=2-2&combine=min&scale=log&four=0-1-0-1.var",
}


@pytest.mark.parametrize("version", LINKS)
def test_a_link_to_a_run_of_an_earlier_version(site: Site, open_page: Any, version: int) -> None:
    run = open_run(FIXTURES / f"run_v{version}")
    site.app.handlers.store.put(run)
    page = open_page(site.url, path=f"#run={run.id}&{LINKS[version]}")
    page.wait_for_selector(f"[data-ready='{run.id}']", state="attached")
    view = page.evaluate(f"{INSPECTOR}.view")
    names = ("part", "t0", "t1", "l0", "l1", "h0", "h1", "combine", "scale")
    part = "prompt" if version == 3 else "answer"
    assert [view[k] for k in names] == [part, 1, 2, 0, 1, 2, 2, "min", "log"]
    assert (view["four"] if version == 3 else view["difference"]) in ("var", True, 1)


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (1440, "dark"), (390, "light")])
def test_nothing_overflows(site: Site, open_page: Any, width: int, scheme: str) -> None:
    page = open_page(site.url, width=width, scheme=scheme)
    ready(page)
    wide = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide[0] <= wide[1]
    for name in ("VAR settings", "Generation settings", "Model"):
        page.locator("#ask button.label-wrap", has_text=name).first.click()
    page.wait_for_selector("#load", state="visible")
    form = page.locator("#ask").evaluate("e => [e.scrollWidth, e.clientWidth]")
    assert form[0] <= form[1]
    dark = page.evaluate("getComputedStyle(document.querySelector('.token')).color")
    assert (dark == "rgb(228, 232, 238)") == (scheme == "dark")
    small = page.evaluate(
        """[...document.querySelectorAll('#inspector button, #inspector select')]
             .filter(e => e.offsetParent && e.getBoundingClientRect().height < 24)
             .map(e => e.outerHTML.slice(0, 80))"""
    )
    assert small == []


def test_a_large_run_fetches_single_heads_once(site: Site, open_page: Any) -> None:
    trace = make_trace(WORDS * 2 + WORDS[:6], rows=20, columns=20, layers=12, heads=12)
    run = Run({"baseline": trace})
    site.app.handlers.store.put(run)
    page = open_page(site.url, path=f"#run={run.id}&t=4-4&l=0-11&h=0-11")
    page.wait_for_selector(f"[data-ready='{run.id}']", state="attached")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    shown = f"() => {INSPECTOR}.shown.maps.baseline && [...{INSPECTOR}.shown.maps.baseline]"
    for chosen, expected in (
        ({"l0": 3, "l1": 3}, patch_map(trace, 4, [3])),
        ({"h0": 2, "h1": 5}, patch_map(trace, 4, [3], [2, 3, 4, 5])),
        ({"combine": "max"}, patch_map(trace, 4, [3], [2, 3, 4, 5], "max")),
        ({"t0": 4, "t1": 7}, patch_map(trace, [4, 5, 6, 7], [3], [2, 3, 4, 5], "max")),
        (
            {"method": "without_sinks"},
            explain_map(trace, range(4, 8), "without_sinks", [3], [2, 3, 4, 5], "max"),
        ),
    ):
        page.evaluate(f"chosen => {INSPECTOR}.set(chosen)", chosen)
        page.wait_for_function(shown)
        values = expected.values.ravel()
        # uint8 codes: up to 1/510 of the square root of the row's maximum
        np.testing.assert_allclose(
            page.evaluate(shown), values, atol=4e-3 * np.nanmax(values), rtol=0.01
        )
    # one request for the token's heads (they serve every choice of layers and heads), one for the
    # range; meanwhile the form is filled by events
    assert len([url for url in asked if "component_server" in url]) == 2


def test_a_link_that_says_nonsense_opens_the_page(site: Site, open_page: Any) -> None:
    for nonsense in ("scale=constructor", "scale=__proto__&method=toString", "four=x&l=9-1&t=-3"):
        page = open_page(site.url, path=f"#{nonsense}")
        ready(page)
        assert page.input_value("[data-testid=scale]") == "percentile"
