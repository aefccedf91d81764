"""The end of the server: SIGTERM and Ctrl-C stop all jobs, keep their partial results and close."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from types import FrameType

from sinkscope.web.page import App

log = logging.getLogger(__name__)

KEPT_WITHIN = 5.0  # seconds that stopped jobs have to store their partial results
CLOSED_WITHIN = 12.0  # seconds after the signal; then the process ends in any case
TICK = 0.05


def serve(app: App) -> None:
    """Wait for SIGTERM or SIGINT, then shut down in order. Call it in the main thread."""
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set():  # a second signal ends the process at once
            os._exit(128 + number)
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    while not asked.wait(0.5):
        if not app.blocks.is_running:
            return
    last = threading.Timer(CLOSED_WITHIN, os._exit, (1,))  # in case a thread does not end
    last.daemon = True
    last.start()
    end(app)


def end(app: App) -> None:
    """Stop all jobs, give them a moment to store partial results, and close the server."""
    runner = app.handlers.runner
    until = time.monotonic() + KEPT_WITHIN
    log.info("ending: %d jobs are stopped", len(runner.under_way))
    while (jobs := runner.under_way) and time.monotonic() < until:
        for job in jobs:  # including jobs that were added meanwhile
            job.stop(job.owner)
        time.sleep(TICK)
    # Whatever streams a job stores its partial result in the same step in which the job ends.
    app.blocks.close(verbose=False)
    log.info("ended")
