"""A helper process: its answers, its errors, its Stop, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from sinkscope.jobs.helper import Helper, HelperFailedError, HelperLostError
from sinkscope.jobs.job import Job, Stopped
from tests.processes import alive, ends

MODULE = "tests.jobs.helped"


@pytest.fixture
def helper() -> Iterator[Helper]:
    made = Helper(MODULE, "counts")
    yield made
    made.close()


def test_it_starts_with_the_first_task_and_stays(helper: Helper) -> None:
    assert helper.pid is None
    first = helper.do({"kind": "echo", "words": "über ½"})
    pid = helper.pid
    assert first["words"] == "über ½" and pid is not None and pid != os.getpid()
    assert Path(first["main"]).name == "helped.py"  # the tests' own main module is not run again
    assert helper.do({"kind": "echo", "words": ""})["words"] == ""
    assert helper.pid == pid


def test_progress_comes_in_order(helper: Helper) -> None:
    reports: list[tuple[int, int, str]] = []
    task = {"kind": "count", "steps": 5, "words": "step "}
    assert helper.do(task, lambda *at: reports.append(at)) == 5
    assert reports == [(k, 5, f"step {k}") for k in range(1, 6)]


def test_errors_are_those_of_the_task_and_it_goes_on(helper: Helper) -> None:
    with pytest.raises(ValueError, match=r"^width is 3$"):
        helper.do({"kind": "refuse", "words": "width is 3"})
    with pytest.raises(OSError, match="full") as full:
        helper.do({"kind": "system", "words": "full"})
    assert (full.value.errno, full.value.strerror) == (28, "full")
    with pytest.raises(HelperFailedError, match=r"(?s)Traceback .*KeyError: 'odd'"):
        helper.do({"kind": "fail", "words": "odd"})
    with pytest.raises(TypeError, match="not JSON serializable"):
        helper.do({"kind": object()})
    assert helper.do({"kind": "count", "steps": 1}) == 1


def test_a_stopped_task_ends_by_itself(helper: Helper) -> None:
    stop = threading.Event()
    with pytest.raises(Stopped, match="of 100000 numbers"):
        helper.do(
            {"kind": "count", "steps": 100_000}, lambda done, *_: done == 3 and stop.set(), stop
        )
    pid = helper.pid
    assert helper.do({"kind": "count", "steps": 1}) == 1 and helper.pid == pid


def test_one_that_does_not_listen_is_ended(helper: Helper) -> None:
    stop = threading.Event()
    with pytest.raises(Stopped, match="after 0 of 1 files"):
        helper.do({"kind": "deaf"}, lambda *_: stop.set(), stop, "files")
    assert helper.pid is None
    assert helper.do({"kind": "count", "steps": 1}) == 1


def test_a_deadline_is_a_stop_also_while_it_loads(helper: Helper) -> None:
    with pytest.raises(Stopped), Job(seconds=0.01) as job:
        helper.do({"kind": "count", "steps": 100_000}, **job.hooks)
    assert job.late
    assert helper.do({"kind": "count", "steps": 1}) == 1


def test_one_that_does_not_listen_is_left_where_another_is_under_way(helper: Helper) -> None:
    stop, counting = threading.Event(), threading.Event()
    results: list[int] = []

    def count() -> None:
        task = {"kind": "count", "steps": 400}
        results.append(helper.do(task, lambda *_: counting.set()))

    thread = threading.Thread(target=count)
    thread.start()
    assert counting.wait(60)
    pid = helper.pid
    with pytest.raises(Stopped):
        helper.do({"kind": "deaf"}, lambda *_: stop.set(), stop)
    thread.join(60)
    assert results == [400] and helper.pid == pid


def test_a_process_that_ends_is_named_and_the_next_task_starts_another(helper: Helper) -> None:
    with pytest.raises(HelperLostError, match=r"that counts has ended \(exit code 3\)\. Nothing"):
        helper.do({"kind": "die"})
    assert helper.do({"kind": "count", "steps": 2}) == 2
    pid = helper.pid
    assert pid is not None
    killed = lambda done, *_: done == 3 and os.kill(pid, signal.SIGKILL)  # noqa: E731
    with pytest.raises(HelperLostError, match=r"\(SIGKILL, perhaps because the memory was full\)"):
        helper.do({"kind": "count", "steps": 100_000}, killed)
    assert helper.do({"kind": "count", "steps": 2}) == 2
    assert helper.pid not in (None, pid)


def test_one_that_was_killed_between_two_tasks_is_nobodys_error(helper: Helper) -> None:
    helper.do({"kind": "count", "steps": 1})
    pid = helper.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert ends(pid)
    assert helper.do({"kind": "count", "steps": 1}) == 1


def test_one_that_cannot_load_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    broken = Helper(MODULE, "counts", {"BROKEN": "1"})
    with pytest.raises(HelperLostError, match=r"has ended \(exit code 1\)"):
        broken.do({"kind": "echo"})
    assert "broken on purpose" in capfd.readouterr().err
    broken.close()


def test_it_ends_with_close_and_with_whoever_had_it(helper: Helper) -> None:
    helper.do({"kind": "count", "steps": 1})
    closed = helper.pid
    assert closed is not None
    helper.close()
    assert not alive(closed) and helper.pid is None
    other = Helper(MODULE, "counts")
    other.do({"kind": "count", "steps": 1})
    left = other.pid
    assert left is not None and alive(left)
    del other
    assert ends(left)


SCRIPT = """
import sys, threading
from sinkscope.jobs.helper import Helper
helper = Helper("tests.jobs.helped", "counts")
threading.Thread(target=helper.do, args=({"kind": "count", "steps": 10**6},), daemon=True).start()
helper.do({"kind": "count", "steps": 1})
print(helper.pid, flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("how", ["end", "SIGINT", "SIGTERM", "SIGKILL"])
def test_no_orphan_is_left(how: str, tmp_path: Path) -> None:
    """However this process ends: at the end of its script (which has no `__main__` guard), by
    Ctrl-C in a terminal, which both processes receive, by a supervisor, or killed."""
    script = tmp_path / "main.py"
    script.write_text(SCRIPT)
    path = os.pathsep.join(sys.path)
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
        text=True,
        start_new_session=True,
        # As from a terminal: background processes of a shell ignore Ctrl-C.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        if how == "end":
            parent.stdin.write("\n")
            parent.stdin.flush()
        elif how == "SIGINT":
            os.killpg(parent.pid, signal.SIGINT)
        else:
            parent.send_signal(getattr(signal, how))
        parent.wait(60)
        assert ends(pid)
