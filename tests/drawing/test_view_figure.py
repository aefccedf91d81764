"""The figure for print: it opens, says how it was made, and its numbers are those of the run."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from sinkscope.attention_processor import patch_map
from sinkscope.drawing import view_figure as view_figure_module
from sinkscope.drawing.panels import Painter
from sinkscope.drawing.table import COLUMNS, write_shares
from sinkscope.drawing.view import View
from sinkscope.drawing.view_figure import sides_of, view_figure
from sinkscope.visualization import save
from tests.web.synthetic import HOSTILE, make_pair, make_trace


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Print size takes seconds to compress, and no test here looks at the pixels."""
    monkeypatch.setattr(view_figure_module, "PANEL_PIXELS", 160)


def words_of(figure: object) -> str:
    from matplotlib.text import Text

    assert hasattr(figure, "findobj")
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def test_a_figure_says_what_made_it(tmp_path: Path) -> None:
    pair = make_pair()
    report = {"settings": {"dims": (3, 5), "tau": 6.0, "keep": 0.6}, "changed": True}
    sides = {"Baseline": pair["baseline"], "VAR": dataclasses.replace(pair["var"], var=report)}
    figure = view_figure(sides, 4, View(difference=True, layers=(1, 2)))
    words = " ".join(words_of(figure).split())
    for part in (
        *("token 4 “red”", "Describe the image.", "synthetic @ 000000000000"),
        *("VAR: With VAR: dims 3, 5, tau 6.0, keep 0.6", "Baseline: The plain model"),
        *("percentile clip", "same scale on both sides", "Normalisation: none"),
        *("VAR − Baseline", "ean over layers 1–2 and all 8 heads", "boxed ×", "max_new_tokens 64"),
        *("420 × 300 px", "12 × 8 patches", "forward pass that produced the token"),
    ):
        assert part in words, part
    path = tmp_path / "figure.pdf"
    save(figure, path)
    assert path.read_bytes().startswith(b"%PDF")
    save(view_figure(sides, 4, View(difference=True, layers=(1, 2))), tmp_path / "again.pdf")
    assert path.read_bytes() == (tmp_path / "again.pdf").read_bytes()  # no date, no randomness


def test_each_side_can_show_tokens_of_its_own() -> None:
    """For each side its own tokens: map, shares, difference, and name."""
    pair = make_pair()
    sides = {"Baseline": pair["baseline"], "VAR": pair["var"]}
    view = View(difference=True, same_scale=False)
    apart = Painter(sides_of(sides), view, 120).panels([3], [22, 23])
    alone = [Painter(sides_of(sides[name]), View(), 120) for name in sides]
    expected = [alone[0].panels([3])[0], alone[1].panels([22, 23])[0]]
    for panel, single in zip(apart, expected, strict=False):
        assert (panel.numbers, panel.ticks) == (single.numbers, single.ticks)
        assert np.array_equal(panel.pixels, single.pixels)
    minus = patch_map(pair["var"], [22, 23]).values - patch_map(pair["baseline"], 3).values
    assert apart[2].scale is not None
    assert apart[2].scale.high == pytest.approx(np.sort(abs(minus).ravel())[-4], rel=1e-5)
    words = " ".join(words_of(view_figure(sides, 3, view, second_tokens=[22, 23])).split())
    assert "Baseline: token 3 “" in words and "VAR: tokens 22–23 (mean) “is·a”" in words
    ended = Painter(sides_of(sides), view, 120).panels([26], [5])
    assert ended[1].note == "" and ended[0].note == ""
    with pytest.raises(ValueError, match=r"second_tokens is \[26\]; VAR has 26 tokens, from 0"):
        view_figure(sides, 3, second_tokens=[26])
    with pytest.raises(ValueError, match="of two answers side by side only"):
        view_figure(pair["baseline"], 3, second_tokens=[2])


def test_texts_are_no_formulas(tmp_path: Path) -> None:
    trace = make_trace((*HOSTILE, " $x^$", " \\frac"), prompt="$\\undefined{ & } \u0000")
    for token in range(len(trace.tokens)):
        if token % 4 == 0 or token >= len(HOSTILE):
            save(view_figure(trace, token), tmp_path / "a.pdf")


def test_prompt_tokens_and_four_layers() -> None:
    figure = view_figure(make_trace(), 1, View(part="prompt", method="relative"))
    words = " ".join(words_of(figure).split())
    assert "prompt token 1" in words and "generic prompt" in words and "prompt's own token" in words
    four = view_figure(make_trace(), 1, View(separate_layers=(0, 1, 4, 5)))
    assert all(f"layer {n}" in words_of(four) for n in (0, 1, 4, 5))


def test_no_such_token() -> None:
    with pytest.raises(ValueError, match="token is 27; the answer has 27, from 0"):
        view_figure(make_trace(), 27)
    with pytest.raises(ValueError, match="token is -1"):
        view_figure(make_trace(), -1)


def test_the_table_has_every_share(tmp_path: Path) -> None:
    trace = make_trace(('=HYPERLINK("x")', ' "quoted", with commas\n', " a"))
    path = tmp_path / "shares.csv"
    assert write_shares(trace, path) == 3 * 6 * 8
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS and len(rows) == 3 * 6 * 8
    assert rows[0]["text"] == '\'=HYPERLINK("x")'  # a spreadsheet must not execute it
    assert rows[48]["text"] == ' "quoted", with commas\n'
    row = rows[48 + 2 * 8 + 3]
    assert (row["layer"], row["head"]) == ("2", "3")
    assert float(row["image_share"]) == pytest.approx(float(trace.shares[1, 2, 3, 1]), rel=1e-5)
    assert rows[0]["made_by"].startswith("model synthetic · no VAR · greedy")  # once per answer
    assert {row["made_by"] for row in rows[1:]} == {""}
    assert float(row["entropy_nats"]) == pytest.approx(float(trace.entropy[1, 2, 3]), rel=1e-5)
