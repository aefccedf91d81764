"""The server's own limits: tokens, each session's share of the queue, the age of runs."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from sinkscope.config import AppSettings, GenerationSettings, Settings
from sinkscope.jobs.job_queue import QueueFullError
from sinkscope.web.explore.handlers import Handlers
from sinkscope.web.runs.loaded_model import LoadedModel
from sinkscope.web.runs.request import Request
from sinkscope.web.runs.retention import DAY, remove_old_runs
from sinkscope.web.runs.store import Run, RunStore
from tests.loops import finished
from tests.web.synthetic import make_pair


def test_no_request_passes_the_servers_limit_of_tokens() -> None:
    start = Settings(app=AppSettings(token_limit=8))
    asked = Request(None, "Hello", values={"max_new_tokens": 8})
    assert asked.settings(start).max_new_tokens == 8
    with pytest.raises(ValueError, match=r"max_new_tokens is 9; allowed here: at most 8"):
        Request(None, "Hello", values={"max_new_tokens": 9}).settings(start)
    # Nor does one that says nothing, where the start's own setting is above it.
    long = Settings(generation=GenerationSettings(64), app=start.app)
    with pytest.raises(ValueError, match="max_new_tokens is 64"):
        Request(None, "Hello").settings(long)


def test_the_share_of_a_session_and_the_time_limit_reach_the_runner(tmp_path: Path) -> None:
    app = AppSettings(cache_dir=str(tmp_path), session_queue=1, job_minutes=2)
    runner = Handlers(Settings(app=app), LoadedModel(), RunStore(tmp_path, 1)).runner
    assert runner.job("a", "any kind").seconds == 120
    with runner.line.place("a"), runner.line.place("a"):
        with pytest.raises(QueueFullError, match="of this session"), runner.line.place("a"):
            pass
        with runner.line.place("b"):
            pass


def test_old_runs_go_at_the_start_and_later(tmp_path: Path) -> None:
    store = RunStore(tmp_path, 10**9)
    old, ageing = (Run(make_pair(), created=time.time() - age * DAY) for age in (3, 2 - 5e-5))
    for run in (old, ageing):
        store.put(run)

    async def some_time() -> None:
        task = asyncio.ensure_future(remove_old_runs(store, 2, every=0.05))
        await asyncio.sleep(0.2)
        assert store.get(old.id) is None and store.get(ageing.id) is not None
        until = time.monotonic() + 20
        while store.get(ageing.id) is not None and time.monotonic() < until:
            await asyncio.sleep(0.05)
        task.cancel()

    finished(some_time())
    assert store.get(ageing.id) is None
