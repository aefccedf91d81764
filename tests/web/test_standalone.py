"""The stand-alone file of a run: its content, and that it works from a folder, offline."""

from __future__ import annotations

import base64
import dataclasses
import html
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sinkscope.attention_processor import patch_map
from sinkscope.capture.trace import MEAN_HEAD
from sinkscope.web.runs import standalone
from sinkscope.web.runs.pairs import pair_of
from sinkscope.web.runs.standalone import build_standalone, holds_heads
from sinkscope.web.runs.store import Run
from tests.web.documents import Blocks
from tests.web.synthetic import HOSTILE, WORDS, make_pair, make_trace, scene
from tests.web.test_browser_view import HASH, INSPECTOR, change, drawn, ready
from tests.web.test_payload import unpack

HARM = (
    "</script><script>window.__hit=9</script><img src=x onerror=window.__hit=9> ${1} {{value}} "
    "@data@"
)


@pytest.fixture(scope="module")
def run() -> Run:
    pair = make_pair()
    report = {
        "settings": {"dims": (3, 5), "tau": 6.0, "keep": 0.6, "dialect": "official"},
        "layers": [], "changed": True, "reason": "", "warnings": [],
    }  # fmt: skip
    return Run({**pair, "var": dataclasses.replace(pair["var"], var=report)})


@pytest.fixture(scope="module")
def page(run: Run) -> str:
    return build_standalone(run, facts=[("Sink dimensions", "made up")]).decode()


def test_it_holds_the_very_payload_and_images(run: Run, page: str) -> None:
    blocks = Blocks(page)
    header, arrays = unpack(base64.b64decode(blocks.texts["file-run.bin"]))
    assert header["run"] == run.id and not header["lazy"]
    assert arrays["var.full"].shape == tuple(run.traces["var"].attention.shape)
    assert blocks.texts["file-image-0"].startswith("data:image/png;base64,iVBOR")
    value = json.loads(blocks.texts["value"])["value"]
    assert value["phase"] == "ready" and len(value["images"]) == 1


def test_it_says_what_made_it(run: Run, page: str) -> None:
    text = html.unescape(re.sub(r"<[^>]+>", " ", page[page.index("<details") :]))
    for part in (
        *("synthetic, revision 000000000000", "6 layers, 8 heads", "float32 on cpu"),
        *("Describe the image.", "420 × 300 px", "12 × 8 patches", "tokens at most 64"),
        *("nothing: the plain model", "VAR(tau=6, keep=0.6)", "sink dimensions 3, 5"),
        *("dialect official", "each answered freely", "made up"),
    ):
        assert part in text, part


def test_nothing_is_asked_of_anywhere(page: str) -> None:
    blocks = Blocks(page)
    policy = next(a["content"] for _, a in blocks.elements if a.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src" not in policy and "unsafe-eval" not in policy
    assert "unsafe-inline" not in policy.replace("style-src-attr 'unsafe-inline'", "")
    addresses = [a[n] for _, a in blocks.elements for n in ("src", "href", "action") if n in a]
    assert addresses == ["data:,"]
    assert "http:" not in page and "https:" not in page
    assert blocks.scripts_that_run() == 1


def test_texts_stay_texts(run: Run) -> None:
    evil = dataclasses.replace(
        run.traces["baseline"],
        prompt=HARM,
        model=dataclasses.replace(run.traces["baseline"].model, id=HARM, revision=HARM),
        settings={HARM: HARM},
        applied=(HARM,),
    )
    page = build_standalone(Run({"baseline": evil}), facts=[(HARM, HARM)]).decode()
    blocks = Blocks(page)
    assert blocks.scripts_that_run() == 1
    assert not any(tag == "img" for tag, _ in blocks.elements)
    assert page.count("window.__hit=9") >= 7  # it is there, as text
    assert "@data@" in page and page.count('id="file-run.bin"') == 1


def test_code_cannot_end_its_own_element(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    real = standalone.read_static
    extra = 'const a = "</script><!-- <script>";'
    monkeypatch.setattr(
        standalone, "read_static", lambda name: real(name) + (extra if name == "inspector" else "")
    )
    page = build_standalone(run).decode()
    assert Blocks(page).scripts_that_run() == 1
    assert "\\x3c/script>\\x3c!-- <script>" in page


def test_one_answer_alone() -> None:
    page = build_standalone(Run({"baseline": make_trace()})).decode()
    assert "VAR settings" not in page and "Saved run" in page


@pytest.mark.parametrize("token", [-1, 27])
def test_a_token_that_is_not_there(run: Run, token: int) -> None:
    with pytest.raises(ValueError, match=f"token is {token}; the run has 27"):
        build_standalone(run, token=token)


# --- in a browser, opened from its folder ---------------------------------------------------------


@pytest.fixture
def open_file(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """`open_file(data, scheme, place)`: a page; any request, or an error, fails the test."""
    contexts, problems = [], []

    def open_one(data: bytes, scheme: str = "light", place: str = "", width: int = 1440) -> Any:
        path = tmp_path / "comparison.html"
        path.write_bytes(data)
        context = browser.new_context(
            viewport={"width": width, "height": 1000}, color_scheme=scheme, offline=True
        )
        contexts.append(context)
        mine = context.new_page()
        mine.set_default_timeout(60_000)
        mine.on("pageerror", lambda error: problems.append(f"page error: {error}"))
        mine.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)

        def seen(request: Any) -> None:
            if request.url.partition("#")[0] != path.as_uri() and not request.url.startswith(
                "data:"
            ):
                problems.append(f"request to {request.url[:200]}")

        mine.on("request", seen)
        mine.goto(path.as_uri() + place)
        ready(mine)
        return mine

    yield open_one
    for context in contexts:
        context.close()
    assert problems == []


@pytest.mark.browser
def test_it_opens_from_a_folder_and_draws(
    open_file: Callable[..., Any], run: Run, page: str
) -> None:
    mine = open_file(page.encode())
    assert mine.inner_text("[data-testid=phase]") == "Saved comparison"
    assert mine.locator("[data-testid=strip-baseline] .token").count() == 27
    assert mine.locator("[data-testid=strip-var] .token").count() == 26
    before = [drawn(mine), drawn(mine, "var")]
    mine.click("[data-testid=token-baseline-8]")
    token = [drawn(mine), drawn(mine, "var")]
    assert all(a != b for a, b in zip(before, token, strict=True))
    change(mine, "layer-to", 2)
    layer = [drawn(mine), drawn(mine, "var")]
    assert all(a != b for a, b in zip(token, layer, strict=True))
    change(mine, "head-to", 1)  # single heads: the file has them too
    assert drawn(mine) != layer[0]
    shown = mine.evaluate(f"Array.from({INSPECTOR}.shown.maps.baseline)")
    map_ = patch_map(run.traces["baseline"], 8, [0, 1, 2], [0, 1]).values.ravel()
    np.testing.assert_allclose(shown, map_, atol=2e-5 * map_.max(), rtol=2e-3)
    mine.check("[data-testid=difference]")
    assert mine.locator("[data-testid=panel-difference] canvas.map").evaluate(HASH)


@pytest.mark.browser
def test_it_opens_at_a_token_and_comes_back_to_a_view(
    open_file: Callable[..., Any], run: Run
) -> None:
    mine = open_file(build_standalone(run, token=5))
    assert mine.evaluate(f"{INSPECTOR}.view.t0") == 5
    mine.click("[data-testid=token-baseline-9]")
    mine.wait_for_url(re.compile("t=9-9"))
    mine.reload()
    ready(mine)
    assert mine.evaluate(f"{INSPECTOR}.view.t0") == 9


@pytest.mark.browser
def test_hostile_texts_are_shown_and_do_nothing(open_file: Callable[..., Any]) -> None:
    pair = make_pair(HOSTILE, HOSTILE, prompt=HARM)
    mine = open_file(build_standalone(Run(pair), facts=[(HARM, HARM)]))
    for index, text in enumerate(HOSTILE[:4]):
        assert mine.inner_text(f"[data-testid=token-baseline-{index}]") == text
        mine.click(f"[data-testid=token-baseline-{index}]")
    assert mine.text_content("[data-testid=question]") == HARM
    assert HARM in mine.text_content("[data-testid=made]")
    mine.hover("[data-testid=panel-baseline] .stage")
    assert mine.evaluate("window.__hit") is None
    assert mine.locator("main img, main script").count() == 0


@pytest.mark.browser
def test_colours_follow_the_system_and_the_button(open_file: Callable[..., Any], page: str) -> None:
    mine = open_file(page.encode(), "light")
    paper = "getComputedStyle(document.body).backgroundColor"
    assert mine.evaluate(paper) == "rgb(255, 255, 255)"
    mine.emulate_media(color_scheme="dark")
    mine.wait_for_selector("html.dark")
    assert mine.evaluate(paper) != "rgb(255, 255, 255)"
    mine.click("[data-testid=theme]")
    assert mine.evaluate(paper) == "rgb(255, 255, 255)"


@pytest.mark.browser
def test_a_large_run_gives_heads_token_by_token(
    open_file: Callable[..., Any], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sum(trace.attention.numel() for trace in run.traces.values())
    monkeypatch.setattr(standalone, "EAGER_BYTES", whole // 40)
    assert holds_heads(run)
    mine = open_file(build_standalone(run), place="#t=3-3&h=2-2")
    mine.wait_for_selector("[data-testid=panel-var] .note", state="hidden")
    shown = mine.evaluate(f"Array.from({INSPECTOR}.shown.maps.var)")
    map_ = patch_map(run.traces["var"], 3, heads=[2]).values.ravel()
    np.testing.assert_allclose(shown, map_, atol=0.02 * map_.max())
    mine.click("[data-testid=token-prompt-1]")
    mine.wait_for_selector("[data-testid=panel-var] .note", state="hidden")
    shown = mine.evaluate(f"Array.from({INSPECTOR}.shown.maps.var)")
    rows = run.traces["var"].prompt_rows
    assert rows is not None
    map_ = patch_map(rows, 1, heads=[2]).values.ravel()
    np.testing.assert_allclose(shown, map_, atol=0.02 * map_.max())
    mine.click("[data-testid=token-baseline-3]")
    mine.keyboard.down("Shift")
    mine.click("[data-testid=token-baseline-6]")
    mine.keyboard.up("Shift")
    mine.wait_for_selector("[data-testid=alert]:has-text('token by token')")


@pytest.mark.browser
def test_what_does_not_fit_is_said(
    open_file: Callable[..., Any], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standalone, "EAGER_BYTES", 1000)
    monkeypatch.setattr(standalone, "HEADS_BYTES", 2000)
    assert not holds_heads(run)
    mine = open_file(build_standalone(run), place="#t=3-3&h=2-2")
    mine.wait_for_selector("[data-testid=alert]:has-text('mean over the heads')")
    mine.click("[data-testid=reset]")
    assert mine.evaluate(f"{INSPECTOR}.shown.maps.baseline !== null")
    assert len(WORDS) == mine.locator("[data-testid=strip-baseline] .token").count()


@pytest.mark.browser
def test_a_run_that_kept_only_the_mean_over_its_heads(open_file: Callable[..., Any]) -> None:
    trace = dataclasses.replace(make_trace(heads=1), heads=(MEAN_HEAD,))
    mine = open_file(build_standalone(Run({"baseline": trace})))
    words = mine.inner_text("[data-testid=selection]")
    assert "all 6 layers and mean of the heads · the row that" in words
    assert mine.get_attribute("[data-testid=head-from]", "aria-valuetext") == "mean of the heads"


@pytest.mark.browser
def test_two_runs_of_different_images(open_file: Callable[..., Any], run: Run) -> None:
    other = Run({"baseline": make_trace(rows=6, columns=6, image=scene(300, 300), seed=3)})
    pair = pair_of((run, "var"), (other, "baseline"), (HARM, "Second"))
    mine = open_file(build_standalone(pair))
    assert mine.evaluate("window.__hit") is None
    assert mine.inner_text("[data-testid=panel-b] .title b") == "B · Second"
    assert "different images" in mine.inner_text("[data-testid=remarks]")
    t = mine.evaluate(f"{INSPECTOR}.view.t0")
    for name, trace in pair.traces.items():
        shown = mine.evaluate(f"Array.from({INSPECTOR}.shown.maps.{name})")
        map_ = patch_map(trace, t).values.ravel()
        np.testing.assert_allclose(shown, map_, atol=2e-5 * map_.max(), rtol=2e-3)
    # The cursor is at the same position in both pictures, whatever their patches.
    mine.hover("[data-testid=panel-b] .stage", position={"x": 2, "y": 2})
    assert mine.inner_text("[data-testid=panel-a] .patch").startswith("patch 0, 0")
    for part in ("A: Prompt", "B: Applied", "A: VAR settings"):
        assert part in mine.text_content("[data-testid=made]")
