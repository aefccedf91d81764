"""Draws files in a separate process.

Drawing frames and figures holds the interpreter lock for most of its time, and would slow down
every other user's requests by half (docs/architecture.md, "The process model").
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sinkscope.capture.trace import GenerationTrace
from sinkscope.drawing.files import ANIMATIONS, Drawing
from sinkscope.drawing.worker import MODULE
from sinkscope.jobs.helper import Helper, HelperLostError
from sinkscope.jobs.job import Progress
from sinkscope.methods.precomputed import PrecomputedMaps
from sinkscope.methods.stack_file import save_stack
from sinkscope.web.server.temporary import scratch

log = logging.getLogger(__name__)

NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}  # take no GPU memory


class DrawingProcess:
    """Draws like `drawing.files.draw`, in another process; one object per app.

    Args:
        file_of: the file that contains a trace, or None (`web.runs.store.RunStore.file_of`).
    """

    def __init__(self, file_of: Callable[[GenerationTrace], Path | None]) -> None:
        self._file_of = file_of
        self.helper = Helper(MODULE, "draws files", NO_GPU)

    def start(self) -> None:
        """Start the process if it does not run. Does not wait for it and never fails."""
        try:
            self.helper.start()
        except HelperLostError as error:  # reported when a file is requested
            log.warning("%s", error)

    def close(self) -> None:
        """End the process, also if it is drawing."""
        self.helper.close()

    def __call__(
        self,
        sides: Mapping[str, GenerationTrace],
        drawing: Drawing,
        path: Path,
        on_progress: Progress | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        """See `drawing.files.draw`. In addition:

        Raises:
            ValueError: the process has ended, or the file of a trace is gone.
        """
        self.start()  # it starts up while traces are written
        with scratch() as folder:
            files = [
                (label, str(self._file_of(trace) or _saved(trace, Path(folder), number)))
                for number, (label, trace) in enumerate(sides.items())
            ]
            task: dict[str, Any] = {"sides": files, "drawing": drawing.values(), "path": str(path)}
            if isinstance(method := drawing.view.method, PrecomputedMaps):
                task["given"] = _given(sides, method, Path(folder))
            what = "frames" if path.suffix in ANIMATIONS else "files"
            try:
                read = self.helper.do(task, on_progress, stop, what)
            except HelperLostError as error:
                log.warning("%s", error)
                raise ValueError(str(error)) from error
        if not read:
            raise ValueError("The run is no longer on the server, so its file cannot be drawn.")


def _given(
    sides: Mapping[str, GenerationTrace], method: PrecomputedMaps, folder: Path
) -> list[tuple[str, list[int], str]]:
    """Side, tokens and file of each stack that a method has computed."""
    traces = []
    for number, (label, trace) in enumerate(sides.items()):
        if (one := method.of(trace)) is not None:
            path = folder / f"{number}.npz"
            save_stack(one.stack, path)
            traces.append((label, list(one.tokens), str(path)))
    return traces


def _saved(trace: GenerationTrace, folder: Path, number: int) -> Path:
    path = folder / f"{number}.safetensors"
    trace.save(path)
    return path
