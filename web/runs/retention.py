"""Removes old runs, if a setting limits their age."""

from __future__ import annotations

import asyncio
import logging

from sinkscope.web.runs.store import RunStore

log = logging.getLogger(__name__)

DAY = 86_400.0
LOOK_SECONDS = 600.0  # between two checks


async def remove_old_runs(store: RunStore, days: float, every: float = LOOK_SECONDS) -> None:
    """Remove the runs older than `days`, at once and then repeatedly as long as the app runs."""
    while True:
        try:
            count = await asyncio.to_thread(store.remove_older, days * DAY)
        except OSError as error:  # the next check tries again
            log.warning("old runs could not be removed: %s", error)
        else:
            if count:
                log.info("removed %d runs older than %g days", count, days)
        await asyncio.sleep(min(every, days * DAY / 4))
