"""A run as the output of a notebook cell: its content, its size limit, and that it works."""

from __future__ import annotations

import ast
import base64
import dataclasses
import html
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sinkscope
from sinkscope.attention_extractor import Comparison
from sinkscope.web.runs import inline, standalone
from sinkscope.web.runs.inline import Inline, inspector
from sinkscope.web.runs.standalone import build_standalone
from sinkscope.web.runs.store import Run
from tests.web.documents import Blocks
from tests.web.synthetic import HOSTILE, make_pair, make_trace
from tests.web.test_browser_view import drawn, ready
from tests.web.test_payload import unpack

ROOT = Path(__file__).resolve().parent.parent.parent
NOTEBOOK = ROOT / "docs" / "notebooks" / "inspector.ipynb"


@pytest.fixture(scope="module")
def pair() -> Comparison:
    made = make_pair()
    return Comparison(made["baseline"], made["var"], False, prefix=None)  # type: ignore[arg-type]


def framed(text: str) -> str:
    """The page inside the frame."""
    (source,) = re.findall(r'srcdoc="([^"]*)"', text)
    return html.unescape(source)


def data_of(page: str) -> list[np.ndarray]:
    """All arrays of a page, by name."""
    _, arrays = unpack(base64.b64decode(Blocks(page).texts["file-run.bin"]))
    return [arrays[name] for name in sorted(arrays)]


def test_the_last_line_of_a_cell_is_the_stand_alone_page(pair: Comparison) -> None:
    trace = make_trace()
    for shown, names in ((trace, ["baseline"]), (pair, ["baseline", "var"])):
        text = shown._repr_html_()
        assert text.isascii(), "a notebook may take it for any encoding"
        (sandbox,) = re.findall(r'<iframe[^>]* sandbox="([^"]*)"', text)
        assert set(sandbox.split()) == {"allow-scripts", "allow-downloads"}
        page = framed(text)
        blocks = Blocks(page)
        value = json.loads(blocks.texts["value"])["value"]
        assert value["phase"] == "ready"
        traces = {"baseline": trace} if names == ["baseline"] else vars(pair)
        same = build_standalone(Run({name: traces[name] for name in names})).decode()
        for found, expected in zip(data_of(page), data_of(same), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_the_token_that_is_chosen_at_first(pair: Comparison) -> None:
    words = [token.text for token in pair.baseline.tokens]
    place = next(k for k, word in enumerate(words) if len(word.strip()) > 2)
    for wanted in (place, words[place].strip().upper()):
        shown = pair.show(token=wanted)
        assert shown.token == place
        said = json.loads(Blocks(framed(shown._repr_html_())).texts["value"])
        assert said["place"] == f"t={place}-{place}"
    with pytest.raises(ValueError, match="token is 'zebra', which is not in the answer"):
        pair.show(token="zebra")
    with pytest.raises(ValueError, match=r"token is 99; the run has \d+, from 0"):
        make_trace().show(99)
    with pytest.raises(ValueError, match="height is 5; allowed: 100 to 10000 pixels"):
        pair.show(height=5)


def test_reprs_are_one_short_line(pair: Comparison) -> None:
    trace = make_trace()
    for shown in (trace, pair, pair.show(), trace.show()):
        said = repr(shown)
        assert "\n" not in said and len(said) < 400
    assert trace.model.id in repr(trace) and f"{len(trace.tokens)} tokens" in repr(trace)
    assert "first_difference" in repr(pair)


def test_a_large_output_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = make_trace()
    text = trace.show(most_megabytes=0.01)._repr_html_()
    assert "<iframe" not in text and "this notebook is given at most 0.01 MB" in text
    # Between the two limits the notebook has the mean over the heads, and a file has them all.
    for module in (inline, standalone):
        monkeypatch.setattr(module, "EAGER_BYTES", 10)
    means = trace.show()
    text = means._repr_html_()
    assert "This shows only the mean over the heads" in text
    means.save(tmp_path / "run.html")
    assert len(framed(text)) < len((tmp_path / "run.html").read_text(encoding="utf-8"))


def test_texts_of_a_model_do_not_leave_the_frame() -> None:
    trace = dataclasses.replace(make_trace(), prompt=f'"></iframe>{HOSTILE}')
    text = trace._repr_html_() + Inline(Run({"baseline": trace}), most_megabytes=0)._repr_html_()
    assert text.count("<iframe") == text.count("</iframe>") == 1
    assert "<script" not in text and "<img" not in text


@pytest.mark.browser
def test_the_frame_is_alive(browser: Any, pair: Comparison) -> None:
    """It draws without an address, storage or origin of its own, and reacts to a click."""
    wrong: list[str] = []
    with browser.new_page(viewport={"width": 1100, "height": 1000}) as page:
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.set_content(f"<h1>A notebook</h1>{pair.show(token=1)._repr_html_()}")
        frame: Any = page.frames[-1]
        ready(frame)
        assert frame.evaluate("origin") == "null"
        chosen = "[data-testid=token-baseline-{}][aria-selected=true]"
        frame.wait_for_selector(chosen.format(1))
        before = drawn(frame)
        frame.click("[data-testid=token-baseline-5]")
        frame.wait_for_selector(chosen.format(5))
        frame.evaluate("new Promise(requestAnimationFrame)")
        assert drawn(frame) != before
    assert wrong == []


def as_script(notebook: Path) -> str:
    """Runs the notebook as a program and keeps the value of the last line of each cell."""
    parts = ["outputs = []"]
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            body = ast.parse("".join(cell["source"])).body
            if isinstance(last := body[-1], ast.Expr):
                body[-1] = ast.parse(f"outputs.append({ast.unparse(last.value)})").body[0]
            parts.append(ast.unparse(ast.Module(body, [])))
    return "\n".join(parts)


@pytest.mark.browser
def test_parts_of_a_character_are_together_with_their_bytes(browser: Any, tmp_path: Path) -> None:
    trace = make_trace()
    tokens = list(trace.tokens)
    for place, text, piece in ((2, "", "E7"), (3, "", "8C"), (4, "\u732b", "AB")):
        tokens[place] = dataclasses.replace(tokens[place], text=text, piece=piece)
    path = tmp_path / "run.safetensors"
    dataclasses.replace(trace, tokens=tuple(tokens)).save(path)
    opened = type(trace).open(path)
    assert opened.tokens == tuple(tokens)
    with browser.new_page() as page:
        page.set_content(opened._repr_html_())
        frame: Any = page.frames[-1]
        ready(frame)
        group = frame.locator("[data-testid=strip-baseline] .token.piece")
        assert group.all_inner_texts() == ["E7", "8C", "\u732b"]
        titles = [group.nth(k).get_attribute("title") for k in range(3)]
        assert "byte E7: a part of a character" in titles[0]
        assert "byte AB: the last part of \u201c\u732b\u201d" in titles[2]
        lines = {group.nth(k).evaluate("e => e.offsetTop") for k in range(3)}
        assert len(lines) == 1


@pytest.mark.slow
def test_the_example_notebook_runs(tmp_path: Path) -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert all(cell.get("outputs", []) == [] for cell in notebook["cells"])
    checks = """
outputs = [one for one in outputs if hasattr(one, "_repr_html_")]
print(len(outputs), *("<iframe" in one._repr_html_() for one in outputs))
print(trace.tokens[outputs[1].token].text)
"""
    done = subprocess.run(
        [sys.executable, "-c", as_script(NOTEBOOK) + checks],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0].startswith("GenerationTrace(") and said[1].startswith("Comparison(")
    assert [line.strip() for line in said[2:]] == ["2 True True", "red"]
    assert (tmp_path / "comparison.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_it_is_of_the_public_api() -> None:
    assert sinkscope.inspector is inspector
