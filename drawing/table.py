"""Shares of attention as a table: one line for each answer, token, layer and head."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from sinkscope.capture.trace import MEAN_HEAD, GenerationTrace
from sinkscope.drawing.run_summary import summary_parts
from sinkscope.drawing.view_figure import sides_of
from sinkscope.utils import write_atomically

COLUMNS = (
    "answer", "token", "text", "probability", "layer", "head", "image_share",
    "sink_share_of_image", "entropy_nats", "made_by",
)  # fmt: skip


def write_shares(
    traces: GenerationTrace | Mapping[str, GenerationTrace],
    path: Path,
    same_text: bool | None = None,
) -> int:
    """Write a CSV file (RFC 4180, UTF-8) with the columns that the page's table has.

    `token` counts from 0; `head` is `mean` if only the mean over the heads was kept. A text that
    a spreadsheet would take for a formula gets an apostrophe in front. `made_by` says how an answer
    was made (`drawing.run_summary`), only in the answer's first line; in the others it is empty.

    Args:
        traces: a run, or two by their labels.
        path: of the file.
        same_text: the second run follows the first one's text; None if unknown.

    Returns:
        How many lines there are below the heading.

    Raises:
        OSError: the file cannot be written.
    """
    lines = 0

    def write(file: BinaryIO) -> None:
        nonlocal lines
        text = io.TextIOWrapper(file, "utf-8", newline="")
        table = csv.writer(text, lineterminator="\r\n")
        table.writerow(COLUMNS)
        for side in sides_of(traces):
            trace = side.trace
            summary = _safe(" · ".join(summary_parts([trace], same_text if trace.var else None)))
            for t, token in enumerate(trace.tokens):
                for at, layer in enumerate(trace.layers):
                    for h, head in enumerate(trace.heads):
                        numbers = side.mass[t, at, h], side.held[t, at, h], trace.entropy[t, at, h]
                        who = (_safe(side.label or "baseline"), t, _safe(token.text))
                        which = (layer, "mean" if head == MEAN_HEAD else head)
                        shown = (f"{float(x):.6g}" for x in numbers)
                        table.writerow((*who, f"{token.probability:.6g}", *which, *shown, summary))
                        summary = ""
                        lines += 1
        text.flush()
        text.detach()  # the file belongs to the caller

    write_atomically(path, write)
    return lines


def _safe(text: str) -> str:
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
