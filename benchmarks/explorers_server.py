"""The app in its own process, for `benchmarks explorers`: the page, and jobs on command.

A line on standard input selects what runs from then on: `idle`, `answer`, `sinks` or `file`,
repeatedly until the next line. The first line of output is the page's address; each later line
confirms that the selected job has begun.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from sinkscope.jobs.job import Job, Stopped

SESSION = "benchmark"


def main(threads: int, switch: float) -> None:
    """Serve until standard input ends.

    Args:
        threads: of torch; 0 leaves what the app has.
        switch: the interpreter's switch interval in milliseconds; 0 likewise.
    """
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1")
    import torch

    from sinkscope.config import AppSettings, ModelSettings, Settings
    from sinkscope.models.loading import load_model
    from sinkscope.web.launch import launch
    from sinkscope.web.page import build_app

    if threads:
        torch.set_num_threads(threads)
    if switch:
        sys.setswitchinterval(switch / 1000)
    handle = load_model(ModelSettings("demo", device="cpu"))
    with tempfile.TemporaryDirectory() as cache:
        settings = Settings(app=AppSettings(port=0, cache_dir=cache))
        app = build_app(settings, handle)
        url = launch(app, wait=False)
        app.handlers.runner.deserted = None  # its jobs have no browser
        assert app.handlers.component is not None
        busy = _Busy(app)
        run = app.handlers.component.value["run"]
        say = {
            "url": url,
            "run": run,
            "inspector": app.handlers.component._id,
            "threads": torch.get_num_threads(),
            "switch_ms": 1000 * sys.getswitchinterval(),
            "device": str(handle.device),
        }
        print(json.dumps(say), flush=True)
        for line in sys.stdin:
            busy.turn(line.strip())
            print("begun", flush=True)
        busy.turn("idle")
        app.blocks.close(verbose=False)


class _Busy:
    """Jobs of one kind, one after the other, run by the page's own handlers."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._thread: threading.Thread | None = None
        self._over = threading.Event()
        self._kinds: dict[str, Callable[[], Iterator[Any]]] = {
            "answer": self._answer,
            "sinks": self._sinks,
            "file": self._file,
        }

    def turn(self, kind: str) -> None:
        """End the running job, wait for its end, begin the other, and wait until it computes.

        Raises:
            RuntimeError: the job that should run has ended by itself.
        """
        if self._thread is not None and not self._thread.is_alive():
            raise RuntimeError("the job that was to be measured has failed")
        self._over.set()
        self._app.handlers.stop(SESSION)
        for job in self._app.handlers.runner.under_way:
            job.stop(SESSION)
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if kind == "idle":
            return
        self._over, started = threading.Event(), threading.Event()
        make = self._kinds[kind]
        self._thread = threading.Thread(target=self._repeat, args=(make, self._over, started))
        self._thread.start()
        if not started.wait(120):
            raise RuntimeError(f"{kind} did not begin")

    def _repeat(self, make: Any, over: threading.Event, started: threading.Event) -> None:
        while not over.is_set():
            values = make()
            for _ in values:
                started.set()
                if over.is_set():
                    values.close()
                    break

    def _answer(self) -> Iterator[Any]:
        from gradio.processing_utils import save_bytes_to_cache

        from sinkscope.web.runs.example import read_examples
        from sinkscope.web.runs.request import Request

        example = read_examples()[0]
        component = self._app.handlers.component
        path = save_bytes_to_cache(example.image.read_bytes(), "a.png", component.GRADIO_CACHE)
        asked = Request(path, example.prompt, compare=True, values={"max_new_tokens": 64})
        yield from self._app.handlers.generate(asked, SESSION)

    def _sinks(self) -> Iterator[Any]:
        from sinkscope.web.sinks.request import EXAMPLES, SinksRequest

        asked = SinksRequest(EXAMPLES, (), "Describe the image.", samples=30, held_out=0)
        yield from self._app.sinks.run(asked, SESSION)

    def _file(self) -> Iterator[Any]:
        from sinkscope.drawing.view import View
        from sinkscope.jobs.runner import Done
        from sinkscope.web.explore.export_files import ExportRequest, make_files
        from sinkscope.web.explore.exporting import EXPORT

        handlers = self._app.handlers
        run = handlers.store.get(handlers.component.value["run"])
        wanted = ExportRequest("gif", View(difference=True))

        def work(job: Job) -> None:
            with tempfile.TemporaryDirectory() as folder:
                make_files(run, wanted, Path(folder), **job.hooks, drawn_by=handlers.drawing)

        job = handlers.runner.job(SESSION, EXPORT)
        with suppress(Stopped):  # it is checked between two states
            for event in handlers.runner.run(job, work, waits=False):
                if isinstance(event, Done) or event.done:  # a frame: the process has loaded
                    yield event


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
