"""`show` with more than pictures: animations, tables, and two runs side by side."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from PIL import Image

from tests.test_cli import refused, run
from tests.web.synthetic import make_pair, make_trace, scene


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    traces = {**make_pair(), "turned": make_trace(image=scene().rotate(180))}
    for name, trace in traces.items():
        trace.save(folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in traces}


def test_an_animation_and_a_table(saved: dict[str, Path], tmp_path: Path) -> None:
    moving, table = tmp_path / "a.gif", tmp_path / "a.csv"
    assert run("show", saved["baseline"], "-o", moving, "--width", "320").exit_code == 0
    with Image.open(moving) as picture:
        assert picture.n_frames == 27 and picture.width == 320
    done = run("show", saved["baseline"], "-o", moving, "--token", "3", "--seconds", "1")
    assert done.exit_code == 0
    with Image.open(moving) as picture:
        assert picture.n_frames == 1
    assert run("show", saved["var"], "-o", table).exit_code == 0
    with table.open(newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 26 * 6 * 8


def test_two_runs_side_by_side(
    saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sinkscope.drawing.view_figure.PANEL_PIXELS", 60)
    widths = {}
    for beside in ("var", "turned"):
        figure = tmp_path / f"{beside}.png"
        done = run(
            "show", saved["baseline"], "--beside", saved[beside], "--token", "4", "-o", figure
        )
        assert done.exit_code == 0, done.output
        with Image.open(figure) as picture:
            widths[beside] = picture.width
    assert widths["var"] > 1.4 * widths["turned"]  # other images have no difference
    moving = tmp_path / "both.gif"
    done = run("show", saved["baseline"], "--beside", saved["var"], "-o", moving, "--token", "4")
    assert done.exit_code == 0


def test_refusals(saved: dict[str, Path], tmp_path: Path) -> None:
    trace = saved["baseline"]
    said = refused(run("show", trace, "-o", tmp_path / "a.avi"))
    assert said.endswith("allowed: a file ending in .png, .pdf, .svg, .gif, .mp4, .csv.")
    said = refused(run("show", trace, "--beside", saved["var"], "-o", tmp_path / "a.pdf"))
    assert "name it with --token" in said
    said = refused(run("show", trace, "-o", tmp_path / "a.gif", "--window", "99"))
    assert "window is 99; allowed: 1 to 27" in said
    other = saved["var"]
    assert "is the input itself" in refused(run("show", trace, "--beside", other, "-o", other))
    assert list(tmp_path.iterdir()) == []
