"""Frames of an animation: the panels of a view, and below them the answer with the current token.

Drawn with Pillow, some milliseconds per frame. Everything that does not change is drawn once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from sinkscope.drawing.overlay import DIVERGING, Pixels
from sinkscope.drawing.panels import Painter, Panel
from sinkscope.drawing.text import missing_note, own_file, runs, visible
from sinkscope.drawing.view import Side, selection_words

PAPER, INK, SOFT, LINE, MARK = "#ffffff", "#1b2027", "#5b6572", "#e1e5ea", "#cfdef8"
SHOWN_LINES = 3  # of an answer at a time


@dataclass(frozen=True)
class _Chip:
    """A token's position in the laid-out answer: its line, start and end."""

    text: str
    line: int
    left: int
    right: int


class Frames:
    """Makes the frames of one animation: `frame(tokens)` is uint8 (height, width, 3)."""

    def __init__(self, painter: Painter, width: int, summary: str = "") -> None:
        """
        Args:
            painter: of panels as wide as `panel_width` says for this width.
            width: of a frame, even.
            summary: how the answers were made (`drawing.run_summary`).
        """
        self.width, self._painter = width, painter
        self._panel = panel_width(width, len(painter.heights))
        self._gap = gap = _gap(width)
        self._size = max(13, min(width // 72, self._panel // 26))
        self._small = self._size * 6 // 7
        self._step = step = round(self._size * 1.45)
        several = len(painter.sides) > 1
        self._labels = self._size * 9 if several else 0  # width of the names before the answers
        room = width - 2 * gap - self._labels
        self._answers = [_lay_out(side, room, self._size) for side in painter.sides]
        self._lines = [min(SHOWN_LINES, 1 + _last_line(chips)) for chips in self._answers]
        self._top = gap + 2 * step + gap // 2
        self._under = self._top + max(painter.heights)
        self._places, y = [], self._under + gap // 2 + self._size * 2 + gap
        for lines in self._lines:
            self._places.append(y)
            y += lines * step + gap // 2
        self._foot = y + gap // 2
        self._wrapped = 1 if width > 900 else 2  # lines of a panel's legend
        notes = 1 + self._wrapped * (2 if painter.view.difference else 1)
        texts = [t.text for side in painter.sides for t in side.rows.tokens]
        self._note = missing_note(*texts, *(side.trace.prompt for side in painter.sides))
        room = width - 2 * gap
        self._summary = _wrap(summary, self._small, room)[:3] if summary else []
        self._last = self._foot + notes * step  # start of these lines, and of the note after them
        notes += len(self._summary) + len(self._note)
        self.height = 2 * ((self._foot + notes * step + gap // 2 + 1) // 2)
        self._base = self._draw_base()
        self._texts: dict[tuple[int, int], Image.Image] = {}  # the lines of an answer, unmarked

    def frame(self, tokens: Sequence[int], second_tokens: Sequence[int] | None = None) -> Pixels:
        """The frame for some tokens, whose maps are averaged; `second_tokens`: those of the second
        side."""
        picture = self._base.copy()
        draw = ImageDraw.Draw(picture)
        longest = max(len(chips) for chips in self._answers)
        both = [tokens] if second_tokens is None else [tokens, second_tokens]
        many = ("s " if len(tokens) > 1 else " ") + " | ".join(map(_numbers, both))
        before = "prompt " if self._painter.view.part == "prompt" else ""
        mean = " (mean)" if max(map(len, both)) > 1 else ""
        place = f"{before}token{many}{mean} · {longest} in all"
        x = self.width - self._gap - _width(place, self._size)
        _write(draw, (x, self._gap), place, self._size, INK, None)
        panels = self._painter.panels(tokens, second_tokens)
        for column, panel in enumerate(panels):
            self._draw_panel(picture, draw, column, panel)
        for index in range(len(self._answers)):
            self._draw_answer(
                picture,
                draw,
                index,
                second_tokens if index and second_tokens is not None else tokens,
            )
        words = dict.fromkeys(panel.words for panel in panels if panel.words)
        room = self.width - 2 * self._gap
        lines = [s for text in words for s in _wrap(text, self._small, room)[: self._wrapped]]
        for line, text in enumerate(lines, 1):
            where = (self._gap, self._foot + line * self._step)
            _write(draw, where, text, self._small, SOFT, room)
        return np.asarray(picture)

    def colours(self) -> Pixels:
        """Colours that must not be lost in a GIF: of the bars, of paper and text; (n, 3)."""
        names = [
            self._painter.view.colormap,
            *([DIVERGING] if self._painter.view.difference else []),
        ]
        ramps = [matplotlib.colormaps[n](np.linspace(0, 1, 48))[:, :3] for n in names]
        flat = [np.asarray([ImageColor.getrgb(c) for c in (PAPER, INK, SOFT, LINE, MARK)]) / 255]
        palette: Pixels = np.rint(np.concatenate([*ramps, *flat]) * 255).astype(np.uint8)
        return palette

    def _draw_base(self) -> Image.Image:
        picture = Image.new("RGB", (self.width, self.height), PAPER)
        draw, sides = ImageDraw.Draw(picture), self._painter.sides
        prompts = dict.fromkeys(" ".join(side.trace.prompt.split()) for side in sides)
        room = (
            self.width
            - 3 * self._gap
            - _width("prompt tokens 0000–0000 of 0000 (mean)", self._size)
        )
        _write(draw, (self._gap, self._gap), f"“{'” | “'.join(prompts)}”", self._size, SOFT, room)
        models = dict.fromkeys(f"{s.trace.model.id} @ {s.trace.model.revision}" for s in sides)
        view = self._painter.view
        which = f", image {view.image}" if len(sides[0].trace.layout.grids) > 1 else ""
        words = f"{selection_words(sides[0].trace, view)}{which} · {' | '.join(models)}"
        y = self._foot
        draw.line((self._gap, y - self._gap // 2, self.width - self._gap, y - self._gap // 2), LINE)
        _write(draw, (self._gap, y), words, self._small, SOFT, self.width - 2 * self._gap)
        for line, text in enumerate((*self._summary, *self._note)):
            where = (self._gap, self._last + line * self._step)
            _write(draw, where, text, self._small, SOFT, self.width - 2 * self._gap)
        for side, y in zip(sides, self._places, strict=True):
            if self._labels:
                room = self._labels - self._gap // 2
                _write(draw, (self._gap, y), side.label, self._small, SOFT, room)
        return picture

    def _draw_panel(
        self, picture: Image.Image, draw: ImageDraw.ImageDraw, column: int, panel: Panel
    ) -> None:
        left = self._gap + column * (self._panel + self._gap)
        y = self._gap + self._step + self._gap // 4
        title = "   ".join(part for part in (panel.label, panel.numbers) if part)
        _write(draw, (left, y), title, self._small, INK, self._panel)
        picture.paste(Image.fromarray(panel.pixels), (left, self._top))
        if panel.note:
            y = self._top + len(panel.pixels) - 2 * self._step
            draw.rectangle((left, y, left + self._panel - 1, y + self._step), "#0c0f14")
            where = (left + self._gap // 2, y + self._step // 8)
            _write(draw, where, panel.note, self._small, "#ffffff", self._panel - self._gap)
        if not panel.ticks:
            return
        y = self._under + self._gap // 2
        table = matplotlib.colormaps[panel.colormap](np.linspace(0, 1, self._panel))[:, :3]
        bar = np.rint(table * 255).astype(np.uint8)[None].repeat(self._size // 2, axis=0)
        picture.paste(Image.fromarray(bar), (left, y))
        for u, text in panel.ticks:
            x = left + u * (self._panel - _width(text, self._small))  # at the ends flush
            _write(draw, (round(x), y + self._size * 2 // 3), text, self._small, SOFT, None)

    def _draw_answer(
        self,
        picture: Image.Image,
        draw: ImageDraw.ImageDraw,
        index: int,
        tokens: Sequence[int],
    ) -> None:
        """The lines around the chosen tokens, with these marked."""
        chips, count, top = self._answers[index], self._lines[index], self._places[index]
        current = [chips[t] for t in tokens if t < len(chips)]
        at = current[0].line if current else _last_line(chips)
        first = min(max(0, at - 1), max(0, _last_line(chips) + 1 - count))
        start = self._gap + self._labels
        picture.paste(self._text(index, first), (start, top))
        for chip in current:
            if first <= chip.line < first + count:
                y = top + (chip.line - first) * self._step
                box = (start + chip.left - 1, y, start + chip.right + 1, y + self._step - 2)
                draw.rectangle(box, MARK)
        for chip in current:  # after all boxes, so that they do not cover letters
            if first <= chip.line < first + count:
                y = top + (chip.line - first) * self._step
                _write(draw, (start + chip.left, y), chip.text, self._size, INK, None)

    def _text(self, index: int, first: int) -> Image.Image:
        """Lines of an answer from one on; the last requested ones are kept."""
        if (index, first) not in self._texts:
            if len(self._texts) >= 4:
                self._texts.clear()
            count = self._lines[index]
            room = self.width - 2 * self._gap - self._labels
            picture = Image.new("RGB", (room, count * self._step), PAPER)
            draw = ImageDraw.Draw(picture)
            for chip in self._answers[index]:
                if first <= chip.line < first + count:
                    y = (chip.line - first) * self._step
                    _write(draw, (chip.left, y), chip.text, self._size, INK, room - chip.left)
            self._texts[index, first] = picture
        return self._texts[index, first]


def _numbers(tokens: Sequence[int]) -> str:
    return f"{tokens[0]}–{tokens[-1]}" if len(tokens) > 1 else f"{tokens[0]}"


def _gap(width: int) -> int:
    return max(8, width // 80)


def _last_line(chips: Sequence[_Chip]) -> int:
    return max((chip.line for chip in chips), default=0)


def panel_width(width: int, count: int) -> int:
    """Width of each of `count` panels on a frame, in pixels."""
    gap = _gap(width)
    return (width - gap * (count + 1)) // count


def _lay_out(side: Side, room: int, size: int) -> list[_Chip]:
    """The answer in lines no wider than `room` pixels."""
    chips, line, x = [], 0, 0
    blank = _width(" ", size)
    for token in side.rows.tokens:
        text = visible(token.text)
        before = blank if token.text.startswith(" ") else 0
        wide = min(_width(text, size), room)
        if x and x + before + wide > room:
            line, x, before = line + 1, 0, 0
        chips.append(_Chip(text, line, x + before, x + before + wide))
        x += before + wide
    return chips


# --- text -----------------------------------------------------------------------------------------


@functools.cache
def _font(path: str, size: int) -> Any:
    return ImageFont.truetype(path, size)


def _width(text: str, size: int) -> int:
    return int(-(-sum(_font(path, size).getlength(part) for part, path in runs(text)) // 1))


def _wrap(text: str, size: int, room: int) -> list[str]:
    """The text in lines no wider than `room`, broken between words."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _width(longer, size) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _write(
    draw: ImageDraw.ImageDraw,
    where: tuple[int, int],
    text: str,
    size: int,
    colour: str,
    room: int | None,
) -> None:
    """One line of text, cut with an ellipsis where it would be wider than `room`."""
    text = "".join(c if c.isprintable() else "\ufffd" for c in text)
    if room is not None and _width(text, size) > room:
        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (
                (middle, high) if _width(f"{text[:middle]}…", size) <= room else (low, middle - 1)
            )
        text = f"{text[:low]}…"
    x, y = where
    base = y + _font(own_file(), size).getmetrics()[0]  # the common baseline of all fonts
    for part, path in runs(text):
        draw.text((x, base), part, colour, _font(path, size), anchor="ls")
        x += round(_font(path, size).getlength(part))
