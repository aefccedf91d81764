"""`benchmarks load`: a short run against the real app, and that each of its checks can fail."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sinkscope.benchmarks import load, load_run
from sinkscope.benchmarks.load_checks import checks, table
from sinkscope.benchmarks.load_process import family, processor_seconds, resources_of
from sinkscope.benchmarks.load_protocol import (
    FailedError,
    RefusedError,
    StoppedError,
    _look,
    _plain,
)
from sinkscope.benchmarks.load_run import LoadRun, LoadSettings, Server, spread
from tests.loops import elsewhere, finished

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

STATE = {"rss": 700_000_000, "threads": 20, "handles": 40, "processes": 1, "kinds": {"a": 40}}
FAST = {"median": 0.01, "p95": 0.05, "most": 0.2, "count": 6000}
GOOD: dict[str, Any] = {
    "processors": 2,
    "threads": 2,
    "load": [1.0, 3.0],
    "seconds": 700.0,
    "settings": vars(LoadSettings()),
    "jobs": {"joined": 10, "completed": 5, "stopped": 1, "refused": 2, "vanished": 2},
    "errors": {},
    "log": {},
    "vanished": [0.1, 1.9],
    "under_way": 0,
    "unfinished": 0,
    "asked": 12_000,
    "explorers": {"token_maps": FAST, "open_run": FAST},
    "job_ran": 0.97,
    "look_gap": {"median": 0.1, "p95": 0.1, "most": 0.3, "count": 6000},
    "lag": {"median": 0.0, "p95": 0.001, "most": 0.1, "count": 6000},
    "processor": {"app": 900.0, "clients": 90.0, "seconds": 600.0},
    "states": {"warm": STATE, "end": STATE},
    "broken": "",
}
# For each check: a change of the good result that makes exactly this check fail.
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("app", {"broken": "RuntimeError: the app has ended"}),
    ("errors", {"errors": {"a job: Something went wrong": 1}}),
    ("log", {"log": {"KeyError: 'x'": 1}}),
    ("jobs", {"jobs": {**GOOD["jobs"], "joined": 11}}),
    ("jobs", {"jobs": {**GOOD["jobs"], "joined": 11, "failed": 1}}),
    ("jobs", {"jobs": {"joined": 2, "vanished": 2}}),
    ("jobs", {"under_way": 1}),
    ("jobs", {"unfinished": 1}),
    ("cancelled", {"vanished": [0.1, 2.1]}),
    ("cancelled", {"vanished": []}),
    ("memory", {"states": {"warm": STATE, "end": {**STATE, "rss": 736_000_000}}}),
    ("threads", {"states": {"warm": STATE, "end": {**STATE, "threads": 21}}}),
    ("handles", {"states": {"warm": STATE, "end": {**STATE, "handles": 41}}}),
    ("explorers", {"asked": 13_000}),
    ("explorers", {"job_ran": 0.5}),
    ("open_run", {"explorers": {"token_maps": FAST, "open_run": {**FAST, "p95": 0.11}}}),
]


def test_a_good_result_meets_all() -> None:
    made = checks(GOOD)
    assert [one["name"] for one in made if not one["met"]] == []
    assert "NOT MET" not in table({**GOOD, "checks": made})


@pytest.mark.parametrize(("name", "change"), WRONG)
def test_each_check_can_fail(name: str, change: dict[str, Any]) -> None:
    wrong = {**copy.deepcopy(GOOD), **change}
    made = checks(wrong)
    assert [one["name"] for one in made if not one["met"]] == [name]
    assert "NOT MET" in table({**wrong, "checks": made})


def test_what_was_not_measured_is_not_met() -> None:
    made = checks({**GOOD, "states": {}, "explorers": {"token_maps": {"count": 0}}})
    failed = {one["name"] for one in made if not one["met"]}
    assert failed == {"memory", "threads", "handles", "explorers", "token_maps"}


def test_what_grew_is_named() -> None:
    end = {**STATE, "handles": 41, "kinds": {"a": 40, "a.ttf": 1}, "threads_by_name": {"job": 1}}
    wrong = {**GOOD, "states": {"warm": STATE, "end": end}}
    words = table({**wrong, "checks": checks(wrong)})
    assert "1 more handles to a.ttf" in words
    assert "1 more threads job" in words


# --- what is noted --------------------------------------------------------------------------------


def test_whose_jobs_end_when() -> None:
    """With a fake app: one session's job continues for a while after its client has vanished."""
    said = [["a", "b"], ["a", "b"], ["b"], ["b"], []]

    class Scripted(Server):
        def __init__(self) -> None:
            self.at = 0

        async def state(self) -> dict[str, Any]:
            if self.at == len(said):
                raise RuntimeError("the app has ended")
            self.at += 1
            return {"owners": said[self.at - 1]}

    course = LoadRun(LoadSettings(), noting=True)
    with pytest.raises(RuntimeError, match="has ended"):
        finished(course._look(Scripted()))
    begun = course.looks[0][0]
    course.main.vanished = {"a": begun, "b": begun, "never ran": begun}
    never, a, b = course.found()["vanished"]
    assert never == 0
    assert 2 * load_run.LOOK_SECONDS <= a < b
    assert b >= 4 * load_run.LOOK_SECONDS
    assert course.found()["job_ran"] == 0.8
    course.owners = {"b"}  # the owner would still have a job
    assert course.found()["vanished"][-1] > b


def test_spread() -> None:
    assert spread([]) == {"count": 0}
    times = [float(n) for n in range(100, 0, -1)]
    assert spread(times) == {"median": 51.0, "p95": 96.0, "most": 100.0, "count": 100}


def test_tracebacks_of_a_log() -> None:
    one = "Traceback (most recent call last):\n  File x\n    y()\nKeyError: 'x'\n"
    assert load.tracebacks(f"Loading\n{one}INFO: on\n{one}KeyError: of nothing\n") == {
        "KeyError: 'x'": 2
    }


def test_what_a_job_says_last() -> None:
    _look({"success": True})
    full = "17 runs are waiting already; try again in a little while."
    for words, error in (
        (full, RefusedError),
        ("Stopped while it was waiting; nothing was generated.", StoppedError),
        ("Something went wrong", FailedError),
    ):
        with pytest.raises(error):
            _look({"success": False, "output": {"error": words}})
    assert _plain("/gradio_api/file=/tmp/x/run.bin") == "/file"
    assert _plain("/gradio_api/queue/data?session_hash=1") == "/queue/data"


def test_what_a_process_holds() -> None:
    code = "import subprocess, sys; f = open(sys.executable); subprocess.run(['sleep', '60'])"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        while len(family(process.pid)) < 2:
            assert process.poll() is None
        own = resources_of(process.pid)
        assert own["processes"] == 2
        assert own["rss"] > 5_000_000
        assert own["threads"] >= 2
        assert sum(own["kinds"].values()) == own["handles"]
        assert any("python" in name for name in own["kinds"])
    finally:
        for pid in reversed(family(process.pid)):
            os.kill(pid, 9)
        process.wait()
    assert resources_of(process.pid)["processes"] == 0
    assert processor_seconds(os.getpid()) > 0


# --- the whole ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_few_clients_for_a_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is asked and answered; the times are not tested."""
    monkeypatch.setattr(load_run, "PATIENCE_SECONDS", 20.0)
    wanted = LoadSettings(0.08, 0.04, clients=5, rate=10, tokens=8, settle_seconds=1)
    result = elsewhere(load.measure, wanted)
    met = {one["name"]: one for one in result["checks"]}
    for name in ("app", "errors", "log", "jobs"):
        assert met[name]["met"], (met[name], result["errors"], result["log"])
    assert result["jobs"]["joined"] + result["warm_jobs"].get("joined", 0) > 0
    assert all(one["count"] > 0 for one in result["explorers"].values())
    assert result["states"]["end"]["rss"] > 10**8
    assert "token_maps" in table(result)


def test_an_app_that_ends_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is still a result."""

    @contextmanager
    def served(wanted: LoadSettings, log: Any) -> Iterator[Server]:
        code = "print('Traceback (most)\\nOSError: gone', flush=True)"
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=log, text=True
        )
        process.wait()
        process.stdout = io.StringIO()  # type: ignore[assignment]
        yield Server(process, {"url": "http://127.0.0.1:9", "pid": process.pid})

    monkeypatch.setattr(load, "served", served)
    result = elsewhere(load.measure, LoadSettings(0.01, 0.01, clients=1, settle_seconds=0))
    failed = {one["name"] for one in result["checks"] if not one["met"]}
    assert {"app", "log", "jobs", "memory", "explorers"} <= failed
    assert result["broken"]
    assert result["log"] == {"OSError: gone": 1}
    assert "NOT MET" in table(result)


def test_an_app_that_does_not_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_run.sys, "executable", "/bin/false")
    result = elsewhere(load.measure, LoadSettings(0.01, 0.01))
    assert result["broken"] == "RuntimeError: the app did not start, 3 times"
