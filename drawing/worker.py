"""The process that draws: `python -m sinkscope.drawing.worker`, which `jobs.helper.Helper` starts.

A task is `{"sides": [[label, path of the trace's file], ...], "drawing": {...}, "path": ...}`. It
gives True once the file is there, and False where the file of a trace cannot be read.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

from sinkscope.jobs.job import Progress
from sinkscope.jobs.serving import Do, serve

MODULE = "sinkscope.drawing.worker"

log = logging.getLogger(__name__)


def load() -> Do:
    """Import what draws: torch, for the maps, and matplotlib; no model and no page."""
    from sinkscope.capture.trace import GenerationTrace
    from sinkscope.drawing.files import Drawing, draw

    def do(task: dict[str, Any], on_progress: Progress, stop: threading.Event) -> bool:
        sides = {}
        for label, file in task["sides"]:
            try:
                sides[label] = GenerationTrace.open(file)
            except ValueError as error:
                log.warning("%s", error)
                return False
        draw(sides, Drawing.of(task["drawing"]), Path(task["path"]), on_progress, stop)
        return True

    return do


if __name__ == "__main__":
    serve(load)
