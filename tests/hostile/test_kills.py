"""kill -9 while an app writes runs: every reported run, and every one in its folder, can be opened.

SINKSCOPE_KILLS=50 runs the long form.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sinkscope.web.runs.store import RunStore, open_run

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("SINKSCOPE_KILLS", "3"))


@pytest.fixture
def apps(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The process that starts an app for each folder sent to it."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-m", "tests.hostile.app"]
    paths = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
    own = {"GRADIO_TEMP_DIR": str(temporary), "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env={**os.environ, **own}
    ) as started:
        yield started
        assert started.stdin is not None
        started.stdin.close()


def test_every_listed_run_opens_after_a_kill(
    apps: subprocess.Popen[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(20)
    folder, reported, halves = tmp_path / "cache", [], 0
    for number in range(KILLS):
        reported += _until_killed(apps, folder, rng.uniform(0, 1.5))
        store = RunStore(folder / "runs", 100_000_000, 10_000_000_000)
        lost = [run_id for run_id in reported if store.get(run_id) is None]
        assert not lost, f"after kill {number + 1}: {len(lost)} of {len(reported)} runs are lost"
        halves = 0
        for run in (folder / "runs").iterdir():
            if (run / "run.json").exists():
                open_run(run)
            else:
                halves += 1
    with capsys.disabled():
        sys.stdout.write(f"{KILLS} kills, {len(reported)} runs told of, {halves} half written\n")
    assert len(reported) >= KILLS


def _until_killed(apps: subprocess.Popen[str], folder: Path, after: float) -> list[str]:
    """Have an app started, and kill it `after` seconds after its first run; the reported ids."""
    assert apps.stdin is not None and apps.stdout is not None
    apps.stdin.write(f"{folder}\n")
    apps.stdin.flush()
    word, pid = apps.stdout.readline().split()
    assert word == "started"
    reported = [apps.stdout.readline()]
    time.sleep(after)
    os.kill(int(pid), signal.SIGKILL)
    while not reported[-1].endswith("ended\n"):
        reported.append(apps.stdout.readline())
        assert reported[-1], "it is gone"
    # A report that the kill interrupted has no line end.
    return [line.strip() for line in reported if not line.endswith("ended\n")]
