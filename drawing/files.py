"""Drawing a file from plain values: a figure of some tokens, or an animation over them.

`Drawing` is a plain value that can be sent to another process; `draw` makes the file, in any
process.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sinkscope.capture.trace import GenerationTrace
from sinkscope.drawing.animation import animation_steps
from sinkscope.drawing.figures import save
from sinkscope.drawing.view import View
from sinkscope.drawing.view_figure import view_figure
from sinkscope.jobs.job import Progress, Stopped
from sinkscope.methods.head_list import PickedHeads

ANIMATIONS, FIGURES = (".gif", ".mp4"), (".pdf", ".png", ".svg")
MOST_TOKENS = 100_000  # of a figure; no answer has more


@dataclass(frozen=True)
class Drawing:
    """What a file shows.

    Attributes:
        view: which part and how.
        first, last: tokens, both included, from 0; `last` None: for a figure only `first`, for an
            animation all from `first` on. A figure shows their mean.
        window, seconds, width: of an animation, as in `drawing.animation.animate`.
        idle: the second side's intervention changed nothing.
        summary: for an animation, how the runs were made (`drawing.run_summary`); empty: from the
            traces.
        second_tokens: first and last token of the second side, where it shows others.
    """

    view: View = field(default_factory=View)
    first: int = 0
    last: int | None = None
    window: int = 1
    seconds: float = 0.4
    width: int | None = None
    idle: bool = False
    summary: str = ""
    second_tokens: tuple[int, int] | None = None

    def values(self) -> dict[str, Any]:
        """The same as JSON values: of its view's method only the name."""
        method = self.view.method
        name = method if isinstance(method, str) else method.name
        named = dataclasses.replace(self, view=dataclasses.replace(self.view, method=name))
        return dataclasses.asdict(named)

    @staticmethod
    def of(values: Mapping[str, Any]) -> Drawing:
        """The drawing of `values`, also after JSON."""
        entries = values["view"].items()
        view: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entries}
        if view.get("picked") is not None:
            view["picked"] = PickedHeads(**view["picked"])
        second_tokens = (
            None if values.get("second_tokens") is None else tuple(values["second_tokens"])
        )
        return Drawing(**{**values, "second_tokens": second_tokens, "view": View(**view)})


def draw(
    sides: Mapping[str, GenerationTrace],
    drawing: Drawing,
    path: Path,
    on_progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Make the file atomically.

    Args:
        sides: one or two runs by their labels, left to right.
        drawing: what it shows.
        path: ending in .gif, .mp4 (an animation), .pdf, .png or .svg (a figure).
        on_progress: called with frames done, all frames, and words; a figure is one step.
        stop: once set, an animation ends before its next frame.

    Raises:
        ValueError: naming the setting, its value and what is allowed.
        OSError: the file cannot be written.
        Stopped: `stop` was set before the file was finished.
    """
    if path.suffix.lower() not in ANIMATIONS:
        last = drawing.first if drawing.last is None else drawing.last
        tokens = range(drawing.first, last + 1)
        if len(tokens) > MOST_TOKENS:
            raise ValueError(f"last is {drawing.last}; allowed: an index of a token.")
        second_tokens = (
            None
            if drawing.second_tokens is None
            else range(drawing.second_tokens[0], drawing.second_tokens[1] + 1)
        )
        if second_tokens is not None and len(second_tokens) > MOST_TOKENS:
            raise ValueError(
                f"second_tokens is {drawing.second_tokens}; allowed: indices of tokens."
            )
        save(
            view_figure(
                sides, tokens, drawing.view, second_tokens=second_tokens, idle=drawing.idle
            ),
            path,
        )
        return
    names = ("first", "last", "second_tokens", "window", "seconds", "width", "idle", "summary")
    options = {name: getattr(drawing, name) for name in names}
    with closing(animation_steps(sides, path, drawing.view, **options)) as steps:
        for done, count in steps:
            if on_progress is not None:
                on_progress(done, count, f"Frame {done} of {count}")
            if done < count and stop is not None and stop.is_set():
                raise Stopped(done, count, "frames")


class DrawFile(Protocol):
    """The interface of `draw`: makes a file from runs."""

    def __call__(
        self,
        sides: Mapping[str, GenerationTrace],
        drawing: Drawing,
        path: Path,
        on_progress: Progress | None = None,
        stop: threading.Event | None = None,
    ) -> None: ...
