"""The process that draws: `python -m sinkscope.drawing.worker`, which `jobs.helper.Helper` starts.

A task is `{"sides": [[label, path of the trace's file], ...], "drawing": {...}, "path": ...}`, and
`"given": [[label, tokens, path], ...]` if the maps of a method were computed before. It returns
True once the file is written, and False if the file of a trace cannot be read.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from sinkscope.jobs.job import Progress
from sinkscope.jobs.serving import Do, serve

MODULE = "sinkscope.drawing.worker"

log = logging.getLogger(__name__)


def load() -> Do:
    """Import torch (for the maps) and matplotlib; no model and no page."""
    from sinkscope.capture.trace import GenerationTrace
    from sinkscope.drawing.files import Drawing, draw
    from sinkscope.methods.explain import method_of
    from sinkscope.methods.precomputed import PrecomputedMaps, PrecomputedStack
    from sinkscope.methods.stack_file import open_stack

    def do(task: dict[str, Any], on_progress: Progress, stop: threading.Event) -> bool:
        sides = {}
        for label, file in task["sides"]:
            try:
                sides[label] = GenerationTrace.open(file)
            except ValueError as error:
                log.warning("%s", error)
                return False
        drawing = Drawing.of(task["drawing"])
        if "given" in task:
            traces = [
                PrecomputedStack(
                    sides[label], tuple(tokens), open_stack(Path(file), sides[label].layout)[0]
                )
                for label, tokens, file in task["given"]
            ]
            method = PrecomputedMaps(method_of(drawing.view.method), tuple(traces))
            drawing = replace(drawing, view=replace(drawing.view, method=method))
        draw(sides, drawing, Path(task["path"]), on_progress, stop)
        return True

    return do


if __name__ == "__main__":
    serve(load)
