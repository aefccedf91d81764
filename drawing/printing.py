"""A figure into a file, the same way from everywhere: its fonts, and TrueType in PDF."""

from __future__ import annotations

import threading
from typing import Any, BinaryIO

import matplotlib
from matplotlib.figure import Figure

from sinkscope.drawing.text import settle

TRUETYPE = 42  # of PDF; matplotlib's own 3 is refused by publishers, and its text hard to edit
# Matplotlib takes the kind of font from settings that all threads share.
_ONE_AT_A_TIME = threading.Lock()


def print_figure(figure: Figure, file: BinaryIO, **options: Any) -> None:
    """Write a figure.

    Args:
        figure: whose texts get the fonts that they need (`drawing.text.settle`).
        file: an open binary file.
        options: of `Figure.savefig`.
    """
    settle(figure)
    with _ONE_AT_A_TIME, matplotlib.rc_context({"pdf.fonttype": TRUETYPE}):
        figure.savefig(file, **options)
