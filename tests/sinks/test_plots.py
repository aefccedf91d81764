"""The figures show the given numbers, refuse missing data, and are written in both formats."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sinkscope.sinks.figures import plots, validation_plots
from tests.sinks import made_up


def test_quantiles_of_a_histogram_by_hand() -> None:
    edges = np.array([0.0, 1.0, 2.0, 4.0, 8.0])
    # 2 in [0, 1), none in [1, 2), 2 in [2, 4); then a layer with nothing; then all in one bin.
    counts = [(2, 0, 2, 0), (0, 0, 0, 0), (0, 0, 0, 10)]
    low, high = (plots._quantiles(counts, edges, q) for q in (0.25, 0.75))
    assert low[0] == 0.5 and high[0] == 3.0
    assert np.isnan(low[1]) and np.isnan(high[1])
    assert low[2] == 5.0 and high[2] == 7.0


def test_scores_by_layer() -> None:
    found = made_up.findings()
    (axes,) = plots.phi_by_layer(found).axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    sinks = np.asarray(lines["sink tokens"].get_ydata(), dtype=float)
    assert np.isnan(sinks[[0, 1, 7]]).all()  # layers without a sink stay empty
    assert sinks[2:7] == pytest.approx([40.0] * 5, rel=0.05)
    assert lines["ordinary vision tokens"].get_ydata() == pytest.approx(
        [2 + layer / 8 for layer in range(8)], rel=0.05
    )
    assert np.nanmax(np.asarray(lines["first token of the prompt"].get_ydata())) == 45.0
    assert any(np.allclose(line.get_ydata(), made_up.TAU) for line in axes.get_lines())


def test_the_matrix_has_a_row_for_each_candidate_and_dots_where_it_passes() -> None:
    axes = plots.contrast_matrix(made_up.findings()).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["458", "2570", "7 (always on)", "9 (first token)"]
    assert [label.get_fontweight() for label in axes.get_yticklabels()[:3]] == [
        *("bold", "bold"),
        "normal",
    ]
    values = axes.get_images()[0].get_array()
    assert values is not None and values.shape == (4, 8)
    assert values[0, 3] == pytest.approx(20.0) and values.mask[0, 0] and values.mask[3].all()
    dots = {text.get_position() for text in axes.texts if "\u25cf" in text.get_text()}
    assert dots == {(layer, row) for layer in range(2, 7) for row in (0, 1)}


def test_a_sweep_marks_its_tau() -> None:
    found = made_up.findings()
    (axes,) = plots.tau_sweep(found).axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    shown = lines["of the sink tokens"].get_ydata()
    assert np.allclose(shown, [point.sinks for point in found.sweep])
    assert any(list(line.get_xdata()) == [20.0, 20.0] for line in axes.get_lines())


def test_the_effect_has_a_row_for_each_set_and_contrast() -> None:
    made = made_up.validation()
    (axes,) = validation_plots.masking_effect(made).axes
    rows = [label.get_text().partition("\n")[0] for label in axes.get_yticklabels()]
    assert rows[0] == "flagged as sinks" and rows[4] == "the whole image" and len(rows) == 8
    points = [line.get_xdata()[0] for line in axes.get_lines() if line.get_marker() == "o"]
    assert points[:5] == [part.change.value for part in made.hidden]
    low, high = axes.get_xlim()
    assert low < -4.24 and high > 0.15  # nothing is drawn outside


def test_where_nothing_was_found_there_is_nothing_to_draw(tmp_path: Path) -> None:
    none = made_up.findings(found=False)
    for draw in (plots.phi_by_layer, plots.tau_sweep):
        with pytest.raises(ValueError, match="No dimension stands out"):
            draw(none)
    with pytest.raises(ValueError, match="no candidate"):
        plots.contrast_matrix(dataclasses.replace(none, candidates=()))
    with pytest.raises(ValueError, match="no effect"):
        validation_plots.masking_effect(made_up.validation(hides=False))
    # The matrix is drawn anyway: it shows why no dimension was found.
    names = plots.save_plots(tmp_path / "new", none, made_up.validation(hides=False))
    assert {path.stem for path in names} == {"contrast_matrix", "agreement", "validation_sweep"}


def test_both_formats_are_written_and_are_the_same_each_time(tmp_path: Path) -> None:
    found = made_up.findings(layers=80)
    paths = plots.save_plots(tmp_path / "one", found, made_up.validation(layers=80))
    assert len(paths) == 12 and {path.suffix for path in paths} == {".png", ".pdf"}
    for path in paths:
        if path.suffix == ".png":
            assert min(Image.open(path).size) > 300
        else:
            assert path.read_bytes().startswith(b"%PDF")
    again = plots.save_plots(tmp_path / "two", found)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths[:6]]
