"""Texts of a model in pictures: what can be seen of a token, and fonts that have its script."""

from __future__ import annotations


def visible(token: str) -> str:
    """A token's text as a label: white space and control characters get a sign that can be seen."""
    signs = {" ": "\u00b7", "\n": "\u23ce", "\t": "\u21e5", "": "\u2205"}
    shown = printable("".join(signs.get(c, c) for c in token))
    return shown.removeprefix("\u00b7") or signs[token]


def printable(text: str) -> str:
    """The text without control characters, which have no glyph."""
    return "".join(c if c.isprintable() or c.isspace() else "\ufffd" for c in text)


def fonts() -> list[str]:
    """Matplotlib's own font, then those on this machine that know the scripts it lacks."""
    from matplotlib.font_manager import fontManager  # late: a terminal needs none

    wider = "Noto Sans CJK SC, Noto Sans CJK JP, WenQuanYi Zen Hei, PingFang SC, Microsoft YaHei"
    known = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in wider.split(", ") if name in known)]
