"""A run inside a notebook: the page's inspector as the output of a cell.

The output is the stand-alone file (`web.runs.standalone`) in a sandboxed frame: its scripts run,
but it has no origin, cannot access the notebook around it and sends no requests. A notebook stores
its outputs in its own file, so their size is limited; a larger output is replaced by a sentence.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sinkscope.attention_extractor import Comparison
from sinkscope.capture.trace import GenerationTrace
from sinkscope.utils import write_bytes_atomically
from sinkscope.web.runs.standalone import EAGER_BYTES, build_standalone, holds_heads
from sinkscope.web.runs.store import Run

HEIGHT = 860  # pixels of the frame, enough for strips, maps and their bars
MOST_MEGABYTES = 16.0  # size limit of one output


@dataclass(frozen=True)
class Inline:
    """An object that a notebook shows if it is the last line of a cell.

    Attributes:
        run: the answer, or both of a comparison.
        token: the token that is chosen at first; None: the inspector chooses.
        height: height of the frame, in pixels.
        most_megabytes: larger outputs are replaced by a sentence.
    """

    run: Run
    token: int | None = None
    height: int = HEIGHT
    most_megabytes: float = MOST_MEGABYTES

    def __post_init__(self) -> None:
        longest = max(len(trace.tokens) for trace in self.run.traces.values())
        if self.token is not None and not 0 <= self.token < longest:
            raise ValueError(f"token is {self.token}; the run has {longest}, from 0.")
        if not 100 <= self.height <= 10_000:
            raise ValueError(f"height is {self.height}; allowed: 100 to 10000 pixels.")

    def __repr__(self) -> str:
        return f"Inspector of {' and '.join(map(repr, self.run.traces.values()))}"

    def page(self) -> bytes:
        """The stand-alone file. For runs with more than 8 million values it contains only the mean
        over heads, as `holds_heads` says."""
        return build_standalone(self.run, token=self.token, most_heads=EAGER_BYTES)

    def save(self, path: Path | str) -> None:
        """Write the stand-alone file, with all heads if they fit."""
        page = build_standalone(self.run, token=self.token)
        write_bytes_atomically(Path(path), page)

    def _repr_html_(self) -> str:
        page = self.page().decode()
        megabytes = len(page) / 1e6
        if megabytes > self.most_megabytes:
            return _line(
                f"{self!r} takes {megabytes:.1f} MB as a page; this notebook is given at most "
                f"{self.most_megabytes:g} MB. Capture fewer layers (GenerationSettings(layers=)), "
                "raise the limit (show(most_megabytes=...)), or write it to a file of its own: "
                "show().save('run.html')."
            )
        # As ASCII, because the hashes in the page's policy must hold in any encoding.
        source = html.escape(page).encode("ascii", "xmlcharrefreplace").decode()
        frame = (
            f'<iframe title="SinkScope" sandbox="allow-scripts allow-downloads" '
            f'style="width:100%;height:{self.height}px;border:0;display:block" '
            f'srcdoc="{source}"></iframe>'
        )
        if holds_heads(self.run, EAGER_BYTES) or not holds_heads(self.run):
            return frame
        return frame + _line(
            "This shows only the mean over the heads, because all heads would make the notebook "
            "too large; show().save('run.html') writes a file with all of them."
        )


def inspector(
    shown: GenerationTrace | Comparison,
    token: int | str | None = None,
    *,
    height: int = HEIGHT,
    most_megabytes: float = MOST_MEGABYTES,
) -> Inline:
    """The inspector of a run for the output of a cell, or for a file.

    Args:
        shown: a run, or a comparison.
        token: the token that is chosen at first: its index, or a word of the (baseline's) answer.
        height: height of the frame, in pixels.
        most_megabytes: larger outputs are replaced by a sentence.

    Raises:
        ValueError: there is no such token, or the height is not within 100 to 10000 pixels.
    """
    run = (
        Run({"baseline": shown.baseline, "var": shown.var}, same_text=shown.same_text)
        if isinstance(shown, Comparison)
        else Run({"baseline": shown})
    )
    if isinstance(token, str):
        token = _token_index(run.first, token)
    return Inline(run, token, height, most_megabytes)


def _token_index(trace: GenerationTrace, word: str) -> int:
    """The first token of a word where it first occurs in the answer."""
    text = "".join(token.text for token in trace.tokens)
    at = text.lower().find(word.strip().lower()) if word.strip() else -1
    if at < 0:
        raise ValueError(f"token is {word!r}, which is not in the answer {trace.text.strip()!r}.")
    return _token_at([len(token.text) for token in trace.tokens], at)


def _token_at(lengths: Sequence[int], at: int) -> int:
    stop = 0
    for index, length in enumerate(lengths):
        stop += length
        if at < stop:
            return index
    raise AssertionError("the place is in the text")


def _line(sentence: str) -> str:
    return f'<p style="font:13px system-ui,sans-serif">{html.escape(sentence)}</p>'
