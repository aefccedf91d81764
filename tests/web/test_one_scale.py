"""A view of a map has the same limits and the same colours wherever it is shown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image
from typer.testing import CliRunner

from sinkscope.cli.main import app
from sinkscope.drawing.overlay import DARK
from sinkscope.drawing.panels import Painter
from sinkscope.drawing.scale import percent
from sinkscope.drawing.view import View, make_side
from sinkscope.visualization import figure, scale_of, view_figure
from sinkscope.web.api.endpoints import Api
from sinkscope.web.runs.store import Run
from tests.drawing.test_animation import frames_of
from tests.drawing.test_scale import RUN, VECTORS, agree, page_code
from tests.web.conftest import INSPECTOR, Site
from tests.web.synthetic import make_trace

KINDS = ["percentile", "linear", "log", "rank"]
TOKEN, LAYERS, ROWS, COLUMNS = 5, (1, 2, 3), 8, 12


def place(kind: str, values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Positions of values on the colour bar, from its two ends only (docs/method.md, "Scales")."""
    if kind == "rank":
        return np.array([(values < x).sum() for x in values]) / (len(values) - 1)
    if kind == "log":
        return np.clip(np.log(values / low) / np.log(high / low), 0, 1)
    return np.clip(values / high, 0, 1)


def colours(kind: str, values: np.ndarray, low: float, high: float) -> np.ndarray:
    """The colours of the patches on the hidden photo: (patches, 3)."""
    places = place(kind, values, low, high)
    table = matplotlib.colormaps["inferno"](np.rint(places * 255).astype(int))[:, :3] * 255
    alpha = 0.8 * np.minimum(1, 1.3 * places**0.7)[:, None]
    return np.asarray(DARK) * (1 - alpha) + table * alpha


def centres(picture: Any) -> np.ndarray:
    """Colours in the middle of each patch of a picture: (patches, 3)."""
    pixels = np.asarray(picture)[..., :3].astype(float)
    y, x = (
        ((np.arange(count) + 0.5) * size / count).astype(int)
        for count, size in ((ROWS, len(pixels)), (COLUMNS, pixels.shape[1]))
    )
    return pixels[y][:, x].reshape(-1, 3)


def panel_of(frame: np.ndarray) -> np.ndarray:
    """The picture on a frame: the largest block of rows that are nowhere paper."""
    inked = (frame < 245).any(-1)
    columns = np.flatnonzero(inked.mean(0) > 0.4)
    full = np.r_[False, inked[:, columns].mean(1) > 0.95, False]
    edges = np.flatnonzero(full[1:] != full[:-1]).reshape(-1, 2)
    top, bottom = edges[np.argmax(edges[:, 1] - edges[:, 0])]
    return frame[top:bottom, columns[0] : columns[-1] + 1]


def words_of(drawn: Any) -> str:
    return "\n".join(text.get_text() for text in drawn.findobj(Text))


@pytest.mark.browser
def test_the_page_has_the_scales_of_python(browser: Any) -> None:
    page = browser.new_page()
    agree(page.evaluate(f"(vectors) => {{ {page_code()}\nreturn ({RUN})(vectors); }}", VECTORS))
    page.close()


@pytest.mark.browser
@pytest.mark.parametrize("kind", KINDS)
def test_every_output_has_the_same_limits_and_colours(
    kind: str, site: Site, open_page: Any, tmp_path: Path
) -> None:
    trace = make_trace(seed=3)
    run = Run({"baseline": trace})
    site.app.handlers.store.put(run)
    view = View(scale=kind, layers=LAYERS, photo="none", sinks=False)  # type: ignore[arg-type]
    values = trace.attention[TOKEN, list(LAYERS)].float().mean((0, 1)).numpy()

    # The API reports its limits; all other outputs must have the same ones.
    api = Api(site.app.handlers, [])
    about, _ = api.map(run.id, tokens=f"{TOKEN}", layers="1-3", scale=kind)
    np.testing.assert_allclose(np.ravel(about["values"]), values, rtol=1e-6)
    low, high = about["limits"]
    assert high == values.max() or (kind == "percentile" and (values > high).sum() == 3)
    expected = colours(kind, values, low, high)

    # A picture from the command line.
    saved, png = tmp_path / "run.safetensors", tmp_path / "a.png"
    trace.save(saved)
    options = ["--layers", "1-3", "--scale", kind, "--photo", "none", "--no-sinks"]
    shown = CliRunner().invoke(
        app, ["show", str(saved), "--token", f"{TOKEN}", "-o", str(png), *options]
    )
    assert shown.exit_code == 0, shown.output
    assert abs(centres(Image.open(png)) - expected).max() <= 1.5

    # A figure: its pixels, and the numbers in print.
    panel = Painter([make_side("", trace)], view, 420).panels([TOKEN])[0]
    assert panel.scale is not None and [panel.scale.low, panel.scale.high] == [low, high]
    assert abs(centres(panel.pixels) - expected).max() <= 1.5
    printed = words_of(view_figure(trace, TOKEN, view))
    assert kind == "rank" or percent(high) in printed
    assert panel.scale.words in " ".join(printed.split())

    # A frame of an animation.
    gif = tmp_path / "a.gif"
    ask = ["show", str(saved), "--token", f"{TOKEN}", "-o", str(gif), "--width", "600", *options]
    assert CliRunner().invoke(app, ask).exit_code == 0
    seen = centres(panel_of(frames_of(gif)[0]))
    assert np.percentile(abs(seen - expected), 95) < 14  # of a palette of 255

    # The page.
    page = open_page(site.url, path=f"#run={run.id}")
    page.wait_for_selector(f"[data-ready='{run.id}']", state="attached")
    chosen = {"t0": TOKEN, "t1": TOKEN, "l0": 1, "l1": 3, "scale": kind, "photo": "none"}
    page.evaluate(f"chosen => {INSPECTOR}.set(chosen)", {**chosen, "sinks": False})
    scale = page.evaluate(
        f"(({{ low, high, words }}) => ({{ low, high, words }}))({INSPECTOR}.shown.scales.baseline)"
    )
    assert [scale["low"], scale["high"]] == pytest.approx([low, high], rel=2e-4)
    assert scale["words"] == panel.scale.words
    canvas = page.evaluate(
        """() => {
          const map = document.querySelector("[data-testid=panel-baseline] .map");
          const { width, height } = map;
          const { data } = map.getContext("2d").getImageData(0, 0, width, height);
          return [height, width, Array.from(data)];
        }"""
    )
    pixels = np.array(canvas[2], np.uint8).reshape(canvas[0], canvas[1], 4)
    # The page's values are codes of 16 bits: a patch may be one step of the colour bar off.
    assert abs(centres(pixels) - expected).max() <= 6


@pytest.mark.browser
@pytest.mark.parametrize("kind", KINDS)
def test_limits_of_a_whole_answer_are_the_same_too(
    kind: str, site: Site, example_page: Any
) -> None:
    page = example_page
    found = site.app.handlers.store.get(page.get_attribute("[data-ready]", "data-ready"))
    assert found is not None
    chosen = {"t0": 26, "t1": 26, "l0": 2, "l1": 2, "scale": kind, "range": "answer"}
    page.evaluate(f"chosen => {INSPECTOR}.set(chosen)", chosen)
    sides = [make_side(name, trace) for name, trace in found.traces.items()]
    view = View(scale=kind, layers=(2,), whole_answer=True)  # type: ignore[arg-type]
    panel = Painter(sides, view, 60).panels([26])[0]
    assert panel.scale is not None
    scale = page.evaluate(f"{INSPECTOR}.shown.scales.baseline.high")
    assert scale == pytest.approx(panel.scale.high, rel=2e-4)
    figure_words = page.inner_text("[data-testid=panel-baseline] .words")
    assert figure_words == panel.words
    assert re.search("; range of the whole answer; same scale on both sides", figure_words)


def test_a_plain_figure_has_the_numbers_of_its_scale() -> None:
    trace = make_trace()
    view = View(layers=LAYERS)
    panel = Painter([make_side("", trace)], view, 60).panels([TOKEN])[0]
    from sinkscope.attention_processor import patch_map

    heat = patch_map(trace, TOKEN, LAYERS)
    scale = scale_of(heat, view.style())
    assert panel.scale is not None
    assert (scale.high, scale.words) == (panel.scale.high, panel.scale.words)
    words = words_of(figure(trace.images[0], heat))
    assert all(text in words for _, text in panel.ticks) and scale.words in words
