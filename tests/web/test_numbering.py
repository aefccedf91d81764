"""Everything counts from 0: names of tokens, layers, heads, patches and images."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from sinkscope.attention_processor import patch_map
from sinkscope.capture.trace import GenerationTrace
from sinkscope.drawing.animation import sides_of
from sinkscope.drawing.frames import Frames
from sinkscope.drawing.panels import Painter
from sinkscope.drawing.view import View
from sinkscope.drawing.view_figure import tokens_words
from sinkscope.models.family import Segment
from sinkscope.web.api.endpoints import Api
from sinkscope.web.components.assets import STATIC
from sinkscope.web.explore.export_files import ExportRequest, make_files
from sinkscope.web.runs.payload import build_payload
from sinkscope.web.runs.store import Run
from tests.web.conftest import INSPECTOR, Site
from tests.web.synthetic import make_trace
from tests.web.test_payload import unpack

LAYERS, HEADS = (1, 3, 4), (0, 2, 5)


def some_layers() -> GenerationTrace:
    """A run that captured some layers and heads, as `--layers 1,3,4 --heads 0,2,5` does."""
    full = make_trace()
    at = np.ix_(range(len(full.tokens)), LAYERS, HEADS)
    return dataclasses.replace(
        full,
        layers=LAYERS,
        heads=HEADS,
        attention=full.attention[at],
        shares=full.shares[at],
        entropy=full.entropy[at],
        sinks=tuple(s for s in full.sinks if s.layer in LAYERS),
        prompt_rows=None,
        reference=None,
    )


@pytest.fixture
def run(site: Site) -> Run:
    made = Run({"baseline": some_layers()})
    site.app.handlers.store.put(made)
    return made


def test_the_first_token_is_0_wherever_it_is_named(site: Site, run: Run, tmp_path: Path) -> None:
    trace = run.first
    word = trace.tokens[0].text
    assert patch_map(trace, 0).label.startswith(f"token 0 {word!r}")
    (side,) = sides_of(trace)
    assert tokens_words(side, [0]).startswith("token 0 “")
    assert tokens_words(side, [0, 1, 2]).startswith("tokens 0–2 (mean) “")
    (figure,) = make_files(run, ExportRequest("png"), tmp_path)
    assert figure.name.endswith("-t0.png")

    api = Api(site.app.handlers, [])
    about, _ = api.map(run.id, tokens="0")
    assert about["tokens"] == [{"index": 0, "text": word}]
    assert about["label"].startswith("token 0 ")

    path = tmp_path / "run.safetensors"
    trace.save(path)
    result = CliRunner().invoke(command_line(), ["show", str(path)])
    assert result.exit_code == 0, result.output
    assert re.search(rf"^ +0 .*{word.strip()}$", result.stdout, re.MULTILINE)


def command_line() -> Any:
    from sinkscope.cli.main import app

    return app


def test_what_an_animation_writes_over_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(
        "sinkscope.drawing.frames._write", lambda draw, at, text, *_: written.append(text)
    )
    trace = some_layers()
    frames = Frames(Painter(sides_of(trace), View(), 200), 320)
    frames.frame([0])
    frames.frame([0, 1])
    count = len(trace.tokens)
    assert {f"token 0 · {count} in all", f"tokens 0–1 (mean) · {count} in all"} <= set(written)


def test_layers_and_heads_have_the_models_own_numbers(site: Site, run: Run) -> None:
    header, _ = unpack(build_payload(run))
    assert (header["layers"], header["heads"]) == ([*LAYERS], [*HEADS])
    about, _ = Api(site.app.handlers, []).map(run.id, tokens="0", layers="3", heads="0")
    expected = patch_map(run.first, 0, [3], [0])
    np.testing.assert_allclose(about["values"], expected.values)
    assert about["label"].endswith("over layers 3 and heads 0")


def test_the_first_patch_and_the_first_image_are_0(site: Site, run: Run) -> None:
    sinks = Api(site.app.handlers, []).map(run.id, tokens="0")[0]["sinks"]
    columns = run.first.layout.grids[0].columns
    start = run.first.layout.grids[0].positions[0]
    flagged = {p - start for s in run.first.sinks for p in s.positions}
    assert {tuple(cell) for cell in sinks} == {divmod(p, columns) for p in flagged}
    assert Segment("image", 4, 9, 0).label == "image 0"


def test_no_script_of_the_page_adds_one_to_what_it_shows() -> None:
    for script in STATIC.glob("*/*.js"):
        text = script.read_text(encoding="utf-8")
        assert not re.findall(r"\$\{[^}]*\+ 1\}", text), script.name


@pytest.mark.browser
@pytest.mark.parametrize(
    ("link", "layers", "heads"),
    [
        ("v=2&t=0-0&l=3-4&h=0-2", "layers 3–4", "heads 0–2"),
        ("v=2&t=0-0&l=3-3&h=5-5", "layer 3", "head 5"),
        ("t=0-0&l=1-2&h=0-1", "layers 3–4", "heads 0–2"),  # older links: positions
        ("v=2&t=0-0&l=0-99&h=2-2", "all 3 layers", "head 2"),  # what the run lacks: the nearest
    ],
)
def test_a_link_names_layers_as_everything_else_does(
    run: Run, site: Site, open_page: Any, link: str, layers: str, heads: str
) -> None:
    page = open_page(site.url, path=f"#run={run.id}&{link}")
    page.wait_for_selector(f"[data-ready='{run.id}']", state="attached")
    said = page.inner_text("[data-testid=selection]")
    assert "token 0 " in said and layers in said and heads in said, said
    page.wait_for_function("location.hash.includes('v=2')")
    view = page.evaluate(f"{INSPECTOR}.view")
    ends = [LAYERS[view["l0"]], LAYERS[view["l1"]]]
    page.wait_for_function(f"location.hash.includes('l={ends[0]}-{ends[1]}')")


@pytest.mark.browser
def test_four_layers_in_a_link_are_the_models_own(run: Run, site: Site, open_page: Any) -> None:
    for link in ("v=2&four=4-1-3-4.baseline", "four=2-0-1-2.baseline"):
        page = open_page(site.url, path=f"#run={run.id}&t=0-0&{link}")
        page.wait_for_selector(f"[data-ready='{run.id}']", state="attached")
        assert "layers 4, 1, 3, 4 one by one" in page.inner_text("[data-testid=selection]")
        page.wait_for_function("location.hash.includes('four=4-1-3-4.baseline')")
