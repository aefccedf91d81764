"""The end of a start: SIGTERM and Ctrl-C stop what runs, keep its part, and close the server."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from types import FrameType

from sinkscope.web.page import App

log = logging.getLogger(__name__)

KEPT_WITHIN = 5.0  # seconds in which stopped jobs keep what they have
CLOSED_WITHIN = 12.0  # after the signal; then the process ends whatever still hangs
TICK = 0.05


def serve(app: App) -> None:
    """Wait for SIGTERM or SIGINT, then end in order. For the main thread."""
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set():  # a second Ctrl-C: at once
            os._exit(128 + number)
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    while not asked.wait(0.5):
        if not app.blocks.is_running:
            return
    last = threading.Timer(CLOSED_WITHIN, os._exit, (1,))  # a thread that cannot be ended
    last.daemon = True
    last.start()
    end(app)


def end(app: App) -> None:
    """Stop all jobs, give them a moment to keep their part, and close the server."""
    runner = app.handlers.runner
    until = time.monotonic() + KEPT_WITHIN
    log.info("ending: %d jobs are stopped", len(runner.under_way))
    while (jobs := runner.under_way) and time.monotonic() < until:
        for job in jobs:  # those that come meanwhile too
            job.stop(job.owner)
        time.sleep(TICK)
    # What a job has is stored by what streams it, in the same breath as it ends.
    app.blocks.close(verbose=False)
    log.info("ended")
