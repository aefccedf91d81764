"""Runs that are too old go, where a setting says how old a run may get."""

from __future__ import annotations

import asyncio
import logging

from sinkscope.web.runs.store import RunStore

log = logging.getLogger(__name__)

DAY = 86_400.0
LOOK_SECONDS = 600.0  # between two looks


async def remove_old_runs(store: RunStore, days: float, every: float = LOOK_SECONDS) -> None:
    """At once and then for as long as the app runs: remove the runs that are older than `days`."""
    while True:
        try:
            count = await asyncio.to_thread(store.remove_older, days * DAY)
        except OSError as error:  # the next look tries again
            log.warning("old runs could not be removed: %s", error)
        else:
            if count:
                log.info("removed %d runs older than %g days", count, days)
        await asyncio.sleep(min(every, days * DAY / 4))
