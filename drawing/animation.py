"""An animation over the tokens of an answer: a frame for each token, or for a window of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

from sinkscope.capture.trace import GenerationTrace
from sinkscope.drawing.encoders import encoder
from sinkscope.drawing.frames import Frames, panel_width
from sinkscope.drawing.overlay import refuse
from sinkscope.drawing.panels import Painter
from sinkscope.drawing.run_summary import summary_line
from sinkscope.drawing.view import View
from sinkscope.drawing.view_figure import check_second_tokens, sides_of

WIDTHS = (320, 1920)
MOST_FRAMES = 2000
SECONDS = (0.05, 10.0)


def animate(
    traces: GenerationTrace | Mapping[str, GenerationTrace],
    path: Path,
    view: View | None = None,
    *,
    first: int = 0,
    last: int | None = None,
    window: int = 1,
    seconds: float = 0.4,
    width: int | None = None,
    second_tokens: tuple[int, int] | None = None,
    idle: bool = False,
    summary: str = "",
    on_frame: Callable[[int, int], object] | None = None,
) -> None:
    """Write a GIF or an MP4 in which the map moves from token to token.

    Below the picture are the answer, with the token marked, the raw shares, and a legend of the
    colours. One frame is in memory at a time.

    Args:
        traces: one or two runs by their labels, left to right.
        path: ending in .gif or .mp4.
        view: which part and how; by default `View()`.
        first, last: which tokens, both included, from 0; all without them.
        window: each frame shows the mean over this many tokens; the window moves by one token.
        seconds: display time of a frame.
        width: of a frame in pixels; by default 400 for each panel and 160.
        second_tokens: first and last token of the second side, where it goes over others than the
            first. The side with fewer of them stays at its last ones.
        idle: the second side's intervention changed nothing.
        summary: a line on how the runs were made; by default from the traces.
        on_frame: called with the number of frames that are done, and of all.

    Raises:
        ValueError: naming the setting, its value and what is allowed.
        OSError: the file cannot be written.
    """
    steps = animation_steps(
        traces, path, view, first=first, last=last, window=window, seconds=seconds, width=width,
        second_tokens=second_tokens, idle=idle, summary=summary,
    )  # fmt: skip
    for done, count in steps:
        if on_frame is not None:
            on_frame(done, count)


def animation_steps(
    traces: GenerationTrace | Mapping[str, GenerationTrace],
    path: Path,
    view: View | None = None,
    *,
    first: int = 0,
    last: int | None = None,
    window: int = 1,
    seconds: float = 0.4,
    width: int | None = None,
    second_tokens: tuple[int, int] | None = None,
    idle: bool = False,
    summary: str = "",
) -> Generator[tuple[int, int], None, None]:
    """`animate` in steps: gives (frames done, all frames) after each frame.

    If closed early, it leaves no file. Arguments and errors are those of `animate`;
    errors of settings come with the first step.
    """
    view = view or View()
    sides = sides_of(traces, view.part)
    longest = max(len(side.rows.tokens) for side in sides)
    if not longest:
        raise ValueError(f"The {view.part} is empty, so there is nothing to animate.")
    last = longest - 1 if last is None else last
    if not 0 <= first <= last < longest:
        raise refuse("tokens", f"{first} to {last}", f"0 to {longest - 1}, rising")
    if second_tokens is not None:
        check_second_tokens(sides, second_tokens)
        if second_tokens[0] > second_tokens[1]:
            raise refuse("second_tokens", f"{second_tokens[0]} to {second_tokens[1]}", "rising")
    spans = [(first, last)] if second_tokens is None else [(first, last), second_tokens]
    most = max(b - a + 1 for a, b in spans)
    if not 1 <= window <= most:
        raise refuse("window", window, f"1 to {most}, the number of tokens")
    if not (math.isfinite(seconds) and SECONDS[0] <= seconds <= SECONDS[1]):
        raise refuse("seconds", seconds, f"{SECONDS[0]:g} to {SECONDS[1]:g} for each frame")
    count = most + 1 - window
    if count > MOST_FRAMES:
        raise ValueError(
            f"The animation would have {count} frames; allowed: at most {MOST_FRAMES}. Choose "
            "fewer tokens."
        )
    panels = max(len(sides) + int(view.difference), len(view.separate_layers))
    width = width or min(400 * panels + 160, 1360)
    if not WIDTHS[0] <= width <= WIDTHS[1]:
        raise refuse("width", width, f"{WIDTHS[0]} to {WIDTHS[1]} pixels")
    width -= width % 2  # video needs even sizes
    summary = summary or summary_line({side.label: side.trace for side in sides})
    frames = Frames(Painter(sides, view, panel_width(width, panels), idle=idle), width, summary)
    if frames.height > 2 * WIDTHS[1]:
        raise ValueError(
            f"A frame would be {frames.width} × {frames.height} pixels, because the image is very "
            "tall; choose a smaller width."
        )
    samples = []
    if path.suffix.lower() == ".gif":
        places = sorted({k * (count - 1) // 3 for k in range(4)})
        samples = [frames.frame(*_shown(spans, k, window)) for k in places]
    size = frames.width, frames.height
    with encoder(path, *size, seconds, samples, frames.colours()) as write:
        for step in range(count):
            write(frames.frame(*_shown(spans, step, window)))
            yield step + 1, count


def _shown(spans: list[tuple[int, int]], step: int, window: int) -> list[range]:
    """Which tokens of each side a frame shows; a side with none left stays at its last ones."""
    starts = [max(first, min(first + step, last + 1 - window)) for first, last in spans]
    return [
        range(start, min(start + window, last + 1))
        for start, (_, last) in zip(starts, spans, strict=True)
    ]
