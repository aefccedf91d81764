"""Model texts in pictures: visible labels of tokens, and fonts for their script.

Matplotlib brings one font, without Chinese, Japanese or Korean and with few emoji. For other
characters a font of the machine is searched; without one they are drawn as empty squares, and
`missing_note` reports it.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OWN = "DejaVu Sans"  # comes with matplotlib
# Parts of the names of families with other scripts, the likeliest first. Not all fonts of a
# machine, because reading the characters of a thousand files takes minutes.
HELPERS = (
    *("CJK", "Source Han", "WenQuanYi", "Droid Sans Fallback", "PingFang", "Hiragino", "YaHei"),
    *("SimSun", "SimHei", "Heiti", "Songti", "Gothic", "Meiryo", "Malgun", "Nanum", "Unifont"),
    *("Emoji", "Symbola", "Segoe UI", "Arial Unicode", "Noto Sans", "Noto Serif", "Noto Music"),
)
COLOUR = ("Color Emoji", "Colour Emoji")  # whose glyphs are bitmaps, which cannot be drawn here
SQUARE = "\u25a1"  # which `OWN` has
JOINERS = {0x200D, 0xFE0E, 0xFE0F}  # joiners of emoji; they can be dropped
NAMED = 6  # characters named in a sentence


def visible(token: str) -> str:
    """A token's text as a label: white space and control characters get a visible sign."""
    signs = {" ": "\u00b7", "\n": "\u23ce", "\t": "\u21e5", "": "\u2205"}
    shown = printable("".join(signs.get(c, c) for c in token))
    return shown.removeprefix("\u00b7") or signs[token]


def printable(text: str) -> str:
    """The text without control characters, which have no glyph; unusual white space becomes a
    space."""
    return "".join(_printable(c) for c in text)


def _printable(c: str) -> str:
    if c.isprintable() or c in "\n\t":
        return c
    return " " if c.isspace() else "\ufffd"


def fonts(text: str = "") -> list[str]:
    """Families that have the characters of a text: matplotlib's own, then those that add some."""
    return list(dict.fromkeys([OWN, *(family for _, family, _ in _runs(text))]))


def drawable(text: str) -> str:
    """The text with an empty square for each character without a font."""
    return "".join(part for part, _, _ in _runs(text))


def runs(text: str) -> list[tuple[str, str]]:
    """The drawable text in stretches, each with the file of a font that has all of it."""
    return [(part, path) for part, _, path in _runs(text)]


def missing_note(*texts: str) -> list[str]:
    """One sentence if some characters cannot be drawn, for the small print; else empty."""
    lacking = sorted({c for text in texts for c in printable(text) if _face_of(c) is None})
    lacking = [c for c in lacking if ord(c) not in JOINERS]
    if not lacking:
        return []
    count = "1 character" if len(lacking) == 1 else f"{len(lacking)} characters"
    named = ", ".join(f"U+{ord(c):04X}" for c in lacking[:NAMED])
    more = ", ..." if len(lacking) > NAMED else ""
    return [
        f"{count} ({named}{more}) drawn as {SQUARE}: no font here has them; Noto Sans CJK and Noto "
        "Emoji do."
    ]


def set_fonts(figure: Figure) -> Figure:
    """Give each text of a figure the fonts that it needs, and squares for missing characters.

    ASCII texts are unchanged.
    """
    from matplotlib.text import Text

    for artist in figure.findobj(Text):
        text = artist.get_text()
        if text.isascii():
            continue
        used_fonts = fonts(text)
        if len(used_fonts) > 1 or drawable(text) != text:
            artist.set_text(drawable(text))
            artist.set_fontfamily(used_fonts)
    return figure


def _runs(text: str) -> list[tuple[str, str, str]]:
    """Stretches of (text, family, file)."""
    text_runs: list[tuple[str, str, str]] = []
    for c in text:
        face = (OWN, own_file()) if c.isascii() or c.isspace() else _face_of(c)
        if face is None and ord(c) in JOINERS:
            continue
        shown = SQUARE if face is None else c
        family, path = face or (OWN, own_file())
        if text_runs and text_runs[-1][1] == family:
            text_runs[-1] = (text_runs[-1][0] + shown, family, path)
        else:
            text_runs.append((shown, family, path))
    return text_runs


def _face_of(character: str) -> tuple[str, str] | None:
    """Family and file of the first font that has a character."""
    code = ord(character)
    if character.isspace() or code in _characters(own_file()):
        return OWN, own_file()
    if unicodedata.category(character) in ("Cc", "Cf", "Cn", "Co", "Cs"):
        return None  # no font has a glyph for it, and every file would be searched
    return next((face for face in _helpers() if code in _characters(face[1])), None)


def _helpers() -> Iterator[tuple[str, str]]:
    from matplotlib.font_manager import fontManager

    regular: dict[str, Any] = {}
    for font in fontManager.ttflist:
        upright = font.style == "normal" and font.weight in (400, "normal", "regular", "book")
        if upright or font.name not in regular:
            regular[font.name] = font
    for helper in HELPERS:
        for name, font in regular.items():
            if helper in name and not any(colour in name for colour in COLOUR):
                yield name, str(font.fname)


@functools.cache
def own_file() -> str:
    """The file of matplotlib's own font."""
    from matplotlib.font_manager import FontProperties, findfont

    return str(findfont(FontProperties(family=[OWN])))


@functools.cache
def _characters(path: str) -> frozenset[int]:
    """The characters of a font file; none if it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # a format that FreeType does not support here
        return frozenset()
