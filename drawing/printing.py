"""Writing a figure to a file: its fonts, and TrueType in PDF."""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import matplotlib
from matplotlib.figure import Figure
from matplotlib.text import Text

from sinkscope.drawing.text import runs, set_fonts

TRUETYPE = 42  # of PDF; publishers refuse matplotlib's default 3, and its text is hard to edit
OUTLINES = 3  # for fonts with PostScript outlines, such as Noto Sans CJK, which 42 does not support


def print_figure(figure: Figure, file: BinaryIO, **options: Any) -> None:
    """Write a figure.

    Args:
        figure: whose texts get the fonts that they need (`drawing.text.set_fonts`).
        file: an open binary file.
        options: of `Figure.savefig`.
    """
    set_fonts(figure)
    texts = [artist.get_text() for artist in figure.findobj(Text)]
    files = {path for text in texts if not text.isascii() for _, path in runs(text)}
    kind = OUTLINES if any(map(_is_postscript, files)) else TRUETYPE

    def print_it() -> None:
        with matplotlib.rc_context({"pdf.fonttype": kind}):
            figure.savefig(file, **options)

    _printer(os.getpid()).submit(print_it).result()


@functools.cache
def _printer(process: int) -> ThreadPoolExecutor:
    """The thread that prints; looked up by process, because a fork has none yet.

    One figure at a time, because matplotlib takes the font type from settings that all threads
    share. Always the same thread, because matplotlib opens its fonts again in each and keeps the
    files open, and a server's threads come and go.
    """
    return ThreadPoolExecutor(1, thread_name_prefix="figures")


def _is_postscript(path: str) -> bool:
    """Whether an OpenType font, or the first of a collection, has PostScript outlines."""
    with Path(path).open("rb") as file:
        head = file.read(16)
        if head[:4] == b"ttcf":
            file.seek(int.from_bytes(head[12:16], "big"))
            head = file.read(4)
    return head[:4] == b"OTTO"
