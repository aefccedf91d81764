"""A helper process for the tests; does what its task says."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

from sinkscope.jobs.job import Progress, Stopped
from sinkscope.jobs.serving import Do, serve


def load() -> Do:
    if os.environ.get("BROKEN"):
        raise ImportError("broken on purpose")

    def do(task: dict[str, Any], on_progress: Progress, stop: threading.Event) -> Any:
        kind, words = task["kind"], task.get("words", "")
        if kind == "echo":
            print("this is no answer")  # noqa: T201
            return {"words": words, "main": sys.modules["__main__"].__file__}
        if kind == "count":
            for step in range(1, task["steps"] + 1):
                on_progress(step, task["steps"], f"{words}{step}")
                if stop.is_set():
                    raise Stopped(step, task["steps"], "numbers")
                time.sleep(0.01)
            return task["steps"]
        if kind == "deaf":  # looks at no stop
            on_progress(0, 1, "")
            time.sleep(60)
        if kind == "die":
            on_progress(1, 2, "")
            os._exit(3)
        raise {"refuse": ValueError, "system": OSError, "fail": KeyError}[kind](
            *([28, words] if kind == "system" else [words])
        )

    return do


if __name__ == "__main__":
    serve(load)
