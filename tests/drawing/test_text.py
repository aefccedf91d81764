"""Texts of every script in pictures: a font that has the characters, or one clear sentence."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.text import Text
from PIL import Image

from sinkscope.drawing import text as texts
from sinkscope.drawing.printing import print_figure
from sinkscope.visualization import View, animate, contact_sheet, figure, save, view_figure
from tests.web.synthetic import make_trace

CAT, BALL = "\u732b", "\u26bd"  # a Chinese character, and an emoji that DejaVu lacks
OURS = "Noto Sans CJK Test"


def only_own() -> list[Any]:
    return [font for font in fontManager.ttflist if font.name == texts.OWN]


@pytest.fixture
def no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has only matplotlib's own fonts."""
    monkeypatch.setattr(fontManager, "ttflist", only_own())


@pytest.fixture
def with_cat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with one more font, which has only `CAT`."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    monkeypatch.setattr(fontManager, "ttflist", only_own())
    builder = FontBuilder(1000, isTTF=True)
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((900, 0), (900, 800), (100, 800)):
        pen.lineTo(corner)
    pen.closePath()
    builder.setupGlyphOrder([".notdef", "cat"])
    builder.setupCharacterMap({ord(CAT): "cat"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "cat": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "cat": (1000, 100)})
    builder.setupHorizontalHeader(ascent=850, descent=-150)
    builder.setupNameTable({"familyName": OURS, "styleName": "Regular", "psName": "TestCat"})
    builder.setupOS2(sTypoAscender=850, sTypoDescender=-150, usWinAscent=850, usWinDescent=150)
    builder.setupPost()
    builder.save(tmp_path / "cat.ttf")
    fontManager.addfont(tmp_path / "cat.ttf")
    yield


def text_of(drawn: Figure) -> str:
    return "\n".join(artist.get_text() for artist in drawn.findobj(Text))


def test_what_a_font_lacks_is_found_in_another(with_cat: None) -> None:
    assert texts.fonts("star") == [texts.OWN]
    assert texts.fonts(f"a {CAT}") == [texts.OWN, OURS]
    assert [part for part, _ in texts.runs(f"a {CAT}{CAT} b")] == ["a ", CAT + CAT, " b"]
    assert texts.drawable(f"{CAT}{BALL}") == f"{CAT}{texts.SQUARE}"
    (note,) = texts.missing_note(f"{CAT}{BALL}", "\u4e00")
    assert note.startswith("2 characters (U+26BD, U+4E00) drawn as")
    assert texts.missing_note(CAT, "caf\u00e9", "\u0416") == []


def test_control_characters_and_rare_blanks() -> None:
    assert texts.printable("a\r\u3000b\x00\n\t") == "a  b\ufffd\n\t"


def test_joiners_of_emoji_are_no_squares(no_other: None, monkeypatch: pytest.MonkeyPatch) -> None:
    own = texts._characters(texts.own_file())
    monkeypatch.setattr(texts, "_characters", lambda path: own - texts.JOINERS)
    assert texts.drawable(f"a\u200d{BALL}\ufe0f") == f"a{texts.SQUARE}"
    assert "1 character (" in texts.missing_note(f"{BALL}\ufe0f")[0]


def test_control_characters_are_not_looked_for_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "_helpers", lambda: pytest.fail("fonts were looked through"))
    assert texts.drawable("\ud800\ue000") == texts.SQUARE * 2


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_a_figure_says_once_what_it_cannot_draw(
    ending: str, no_other: None, photo: Image.Image, tmp_path: Path
) -> None:
    from tests.test_visualization import make_map

    patches = make_map(np.ones((3, 4)), (210, 300))
    drawn = figure(photo, patches, token=CAT, prompt=f"What is {CAT}?", note=f"{BALL}")
    sheet = contact_sheet(photo, [patches], [CAT], [0.5], title=f"{CAT} $x_{{")
    view = view_figure(make_trace(prompt=f"{CAT}?"), 0, View())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's, one for each missing glyph
        for name, one in (("a", drawn), ("b", sheet), ("c", view)):
            assert text_of(one).count("no font here has") == 1
            assert CAT not in text_of(one) and texts.SQUARE in text_of(one)
            save(one, tmp_path / f"{name}.{ending}")


def test_a_figure_is_drawn_with_the_font_that_was_found(
    with_cat: None, photo: Image.Image, tmp_path: Path
) -> None:
    from tests.test_visualization import make_map

    patches = make_map(np.ones((3, 4)), (210, 300))
    drawn = figure(photo, patches, token=f"a {CAT}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(drawn, tmp_path / "a.png")
        save(drawn, tmp_path / "a.pdf")
    assert "no font here has" not in text_of(drawn) and CAT in text_of(drawn)
    assert b"TestCat" in (tmp_path / "a.pdf").read_bytes()


def test_fonts_in_a_pdf_are_truetype(tmp_path: Path) -> None:
    drawn = Figure()
    drawn.text(0.1, 0.5, "star", family=[texts.OWN])
    before = matplotlib.rcParams["pdf.fonttype"]
    with (tmp_path / "a.pdf").open("wb") as file:
        print_figure(drawn, file, format="pdf")
    data = (tmp_path / "a.pdf").read_bytes()
    assert b"/CIDFontType2" in data and b"/Type3" not in data
    assert matplotlib.rcParams["pdf.fonttype"] == before


def test_postscript_fonts_are_drawn_as_outlines(
    with_cat: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sinkscope.drawing import printing

    for head, expected in (
        (b"OTTO" + bytes(12), True),
        (b"\x00\x01\x00\x00" + bytes(12), False),
        (b"ttcf" + bytes(8) + (20).to_bytes(4, "big") + bytes(4) + b"OTTO", True),
    ):
        (tmp_path / "font").write_bytes(head)
        assert printing._is_postscript(str(tmp_path / "font")) is expected
    monkeypatch.setattr(printing, "_is_postscript", lambda path: path.endswith("cat.ttf"))
    for text, kind in ((CAT, b"/Type3"), ("caf\u00e9", b"/CIDFontType2")):
        drawn = Figure()
        drawn.text(0.1, 0.5, text, family=[texts.OWN])
        with (tmp_path / "a.pdf").open("wb") as file:
            print_figure(drawn, file, format="pdf")
        assert kind in (tmp_path / "a.pdf").read_bytes()


def test_an_animation_says_it_too_and_draws_what_there_is(with_cat: None, tmp_path: Path) -> None:
    from sinkscope.drawing import frames

    plain = make_trace()
    wanted = make_trace(prompt=f"What is {BALL}?")
    high = []
    for name, trace in (("a", plain), ("b", wanted)):
        animate(trace, tmp_path / f"{name}.gif", View(), last=1)
        high.append(Image.open(tmp_path / f"{name}.gif").height)
    assert high[1] > high[0]  # by the line of the sentence
    assert frames._width(f"a{CAT}", 20) == pytest.approx(frames._width("a", 20) + 20, abs=1)
