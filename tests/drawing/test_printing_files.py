"""Printing from many threads opens each font once; the threads of a server are short-lived."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from sinkscope.drawing.printing import print_figure


def _fonts_open() -> int:
    paths = []
    for handle in Path("/proc/self/fd").iterdir():
        try:
            paths.append(str(handle.readlink()))
        except OSError:  # the one that listed them
            continue
    return sum(path.endswith((".ttf", ".otf", ".ttc")) for path in paths)


def _in_threads(count: int, do: Callable[[], None]) -> None:
    """All alive at once, so that no two have the same number."""
    begun = threading.Barrier(count)

    def work() -> None:
        begun.wait()
        do()
        begun.wait()

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_more_files_are_open_after_many_threads() -> None:
    def draw() -> None:
        figure = Figure()
        figure.suptitle("Fonts")
        print_figure(figure, io.BytesIO(), format="pdf")

    _in_threads(1, draw)
    before = _fonts_open()
    assert before  # otherwise the test checks nothing
    _in_threads(6, draw)
    assert _fonts_open() == before


def test_an_error_reaches_the_caller() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        print_figure(Figure(), io.BytesIO(), format="nonsense")
    print_figure(Figure(), file := io.BytesIO(), format="png")
    assert file.getvalue().startswith(b"\x89PNG")
