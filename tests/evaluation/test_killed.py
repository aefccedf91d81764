"""A run that is killed again and again has the same records in the end as an undisturbed one.

`SINKSCOPE_KILLS=20 python -m pytest tests/evaluation/test_killed.py` kills it that often; without
it, the number of kills is small enough for the test suite.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from sinkscope.config import ModelSettings
from sinkscope.evaluation.run_folder import read_run
from sinkscope.evaluation.runner import evaluate, prepare
from sinkscope.evaluation.session import Prepared
from sinkscope.evaluation.settings import RunConfig
from sinkscope.models.loading import ModelHandle, load_model
from tests.evaluation.scripted import write_questions
from tests.evaluation.test_runner import config, same

KILLS = int(os.environ.get("SINKSCOPE_KILLS", "6"))
QUESTIONS = 5 * KILLS  # enough that the run is not finished before the last kill


@pytest.mark.tiny
def test_kill_at_random_moments_loses_and_doubles_nothing(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """SIGKILL at random moments, each time in a new process; then one run to the end."""
    handle = load_model(ModelSettings(str(tiny_folder)))
    rows = [{"question": f"Where is object {n}?", "answer": "left"} for n in range(QUESTIONS)]
    wanted = config(write_questions(tmp_path / "data", rows))
    prepared = prepare(wanted.run)
    evaluate(handle, wanted, prepared, tmp_path / "whole")
    chance = random.Random(7)
    context = multiprocessing.get_context("fork")
    records = tmp_path / "killed" / "records.jsonl"
    left = [0]  # bytes of records after each kill
    for number in range(KILLS):
        child = context.Process(target=_child, args=(handle, wanted, prepared, tmp_path / "killed"))
        child.start()
        if number % 3:  # otherwise it may be killed while it reads existing records
            _wait_for(records, left[-1] + chance.randrange(1, 2000))
        time.sleep(chance.uniform(0, 0.1))
        assert child.is_alive(), "the run was over before it was killed: give more questions"
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        left.append(records.stat().st_size if records.exists() else 0)
    assert len(set(left)) > KILLS // 2
    done = evaluate(handle, wanted, prepared, tmp_path / "killed")
    assert done.complete
    made = list(map(same, read_run(tmp_path / "killed").records()))
    assert len(made) == 2 * QUESTIONS
    assert made == list(map(same, read_run(tmp_path / "whole").records()))


def _wait_for(path: Path, size: int) -> None:
    """Wait until a file has reached a size."""
    end = time.monotonic() + 120
    while not path.exists() or path.stat().st_size < size:
        assert time.monotonic() < end, f"{path} does not grow"
        time.sleep(0.001)


def _child(handle: ModelHandle, wanted: RunConfig, prepared: Prepared, folder: Path) -> None:
    evaluate(handle, wanted, prepared, folder)
