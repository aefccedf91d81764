"""Figures and animations from the drawing process: the same files, Stop, and its end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sinkscope import app
from sinkscope.drawing.files import Drawing
from sinkscope.drawing.view import View
from sinkscope.drawing.worker import MODULE
from sinkscope.jobs.job import Stopped
from sinkscope.web.explore.export_files import ExportRequest, make_files
from sinkscope.web.explore.exporting import exporting, stopping_export
from sinkscope.web.explore.handlers import Handlers
from sinkscope.web.runs.drawing_process import DrawingProcess
from sinkscope.web.runs.pairs import pair_of
from sinkscope.web.runs.store import Run, RunStore
from tests.processes import alive, ends
from tests.web.conftest import start_site
from tests.web.scripted import ScriptedEngine, fake_handle
from tests.web.synthetic import WORDS, make_pair, make_trace, scene

ROOT = Path(app.__file__).resolve().parent
VIEW = View(layers=(1, 2), difference=True, method="without_sinks", scale="rank", opacity=0.7)
LONG = {"kind": "gif", "width": 1920}  # six times the words: takes minutes unless stopped
MANY = WORDS * 6


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    return RunStore(tmp_path_factory.mktemp("runs"), 10**9)


@pytest.fixture(scope="module")
def process(store: RunStore) -> Iterator[DrawingProcess]:
    made = DrawingProcess(store.file_of)
    yield made
    made.close()


@pytest.fixture(scope="module")
def run(store: RunStore) -> Run:
    made = Run(make_pair())
    store.put(made)
    return made


def plain(path: Path) -> bytes:
    """The file; for an SVG without its ids, which are random."""
    data = path.read_bytes()
    return re.sub(rb"\b[a-z]+[0-9a-f]{10}\b", b"id", data) if path.suffix == ".svg" else data


@pytest.mark.parametrize(
    "wanted",
    [
        ExportRequest("png", VIEW, first=3, last=5),
        ExportRequest("pdf", VIEW, first=3),
        ExportRequest("svg", View(separate_layers=(0, 3), heads=(1,)), side="var"),
        ExportRequest("gif", VIEW, first=2, last=4, window=2, width=320),
        ExportRequest("mp4", VIEW, first=2, last=4, width=320),
    ],
    ids=lambda wanted: wanted.kind,
)
def test_files_are_those_that_would_be_drawn_here(
    process: DrawingProcess, run: Run, wanted: ExportRequest, tmp_path: Path
) -> None:
    made = []
    reports: dict[str, list[tuple[int, int, str]]] = {"here": [], "there": []}
    for place, options in (("here", {}), ("there", {"drawn_by": process})):
        (tmp_path / place).mkdir()
        made += make_files(
            run, wanted, tmp_path / place, lambda *at, p=place: reports[p].append(at), **options
        )
    here, there = made
    assert here.name == there.name and plain(here) == plain(there)
    assert reports["here"] == reports["there"] != []
    assert [path.name for path in there.parent.iterdir()] == [there.name]


def test_a_run_without_files_and_a_pair_are_drawn(
    process: DrawingProcess, run: Run, store: RunStore, tmp_path: Path
) -> None:
    memory = Run({"baseline": make_trace(image=scene().rotate(180))})
    store.put(memory, keep_on_disk=False)
    pair = pair_of((run, "baseline"), (memory, "baseline"), ("One", "Two"))
    assert store.file_of(run.traces["var"]) and not store.file_of(memory.first)
    for one in (memory, pair):
        wanted = ExportRequest("png", View(layers=(2,)))
        (here,) = make_files(one, wanted, tmp_path)
        drawn = here.read_bytes()
        (there,) = make_files(one, wanted, tmp_path, drawn_by=process)
        assert there.read_bytes() == drawn


def test_mistakes_are_the_same_sentences(process: DrawingProcess, run: Run, tmp_path: Path) -> None:
    for wanted in (
        ExportRequest("gif", width=5000),
        ExportRequest("gif", window=99),
        ExportRequest("pdf", View(layers=(9,))),
        ExportRequest("pdf", last=10**6),
    ):
        said = []
        for options in ({}, {"drawn_by": process}):
            with pytest.raises(ValueError, match=r"allowed|trace holds") as refused:
                make_files(run, wanted, tmp_path, **options)
            said.append(str(refused.value))
        assert said[0] == said[1]
    with pytest.raises(FileNotFoundError):
        make_files(run, ExportRequest("png"), tmp_path / "none", drawn_by=process)
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_files_are_gone_is_said_without_their_place(
    process: DrawingProcess, store: RunStore, tmp_path: Path
) -> None:
    lost = Run({"baseline": make_trace()})
    store.put(lost)
    path = store.file_of(lost.first)
    assert path is not None
    path.unlink()
    with pytest.raises(ValueError, match="no longer on the server") as said:
        make_files(lost, ExportRequest("png"), tmp_path, drawn_by=process)
    assert str(path.parent) not in str(said.value)


def test_a_drawing_is_the_same_after_it_was_told() -> None:
    drawing = Drawing(replace(VIEW, separate_layers=(1,), heads=None), 2, None, 3, 0.1, 400, True)
    assert Drawing.of(json.loads(json.dumps(drawing.values()))) == drawing


def test_stop_ends_an_animation_and_leaves_nothing(
    process: DrawingProcess, run: Run, tmp_path: Path
) -> None:
    stop = threading.Event()
    with pytest.raises(Stopped, match="of 27 frames"):
        make_files(
            run,
            ExportRequest("gif", VIEW, width=1920),
            tmp_path,
            lambda done, *_: done == 2 and stop.set(),
            stop,
            drawn_by=process,
        )
    assert list(tmp_path.iterdir()) == []


# --- through the page -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def handlers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Handlers]:
    """On a site of its own, so that the process of other tests is not affected."""
    folder = tmp_path_factory.mktemp("cache")
    example = Run(make_pair(MANY), kind="example")
    made = start_site(folder, ScriptedEngine(), handle=fake_handle(), example=example)
    made.app.handlers.runner.deserted = None  # these sessions have no page
    yield made.app.handlers
    made.app.blocks.close(verbose=False)


def asking(handlers: Handlers, session: str, **question: Any) -> Iterator[dict[str, Any]]:
    """The values that a session's page receives."""
    assert handlers.component is not None
    run = handlers.component.value["run"]
    data = {"ask": session, "run": run, "view": {"difference": True}, **question}
    request = SimpleNamespace(session_hash=session)
    values: Iterator[dict[str, Any]] = exporting(handlers)(SimpleNamespace(_data=data), request)
    return values


def until_a_frame(values: Iterator[dict[str, Any]]) -> None:
    assert any(value.get("message", "").startswith("Frame") for value in values)


def test_two_sessions_draw_at_once_and_stop_their_own(handlers: Handlers) -> None:
    """A figure does not wait for another user's animation."""
    mine = asking(handlers, "mine", **LONG)
    until_a_frame(mine)
    *_, yours = asking(handlers, "yours", kind="png")
    assert [file["name"].endswith(".png") for file in yours["files"]] == [True]
    assert [job.owner for job in handlers.runner.under_way] == ["mine"]
    stopping_export(handlers)(SimpleNamespace(session_hash="mine"))  # type: ignore[arg-type]
    *_, last = mine
    assert re.fullmatch(rf"Stopped after \d+ of {len(MANY)} frames\.", last["error"])
    assert handlers.runner.under_way == ()


def test_a_closed_page_ends_its_file(handlers: Handlers) -> None:
    values = asking(handlers, "gone", **LONG)
    until_a_frame(values)
    values.close()  # type: ignore[attr-defined]
    assert handlers.runner.under_way == ()


def test_a_killed_process_is_one_sentence_and_the_next_file_is_made(handlers: Handlers) -> None:
    values = asking(handlers, "mine", **LONG)
    until_a_frame(values)
    pid = handlers.drawing.helper.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    *_, last = values
    assert last["error"].startswith("The process that draws files has ended (SIGKILL")
    *_, last = asking(handlers, "mine", kind="png")
    assert last["files"] and handlers.drawing.helper.pid not in (None, pid)


def test_it_ends_with_the_app(tmp_path: Path) -> None:
    example = Run(make_pair(), kind="example")
    made = start_site(tmp_path, ScriptedEngine(), handle=fake_handle(), example=example)
    assert made.app.handlers.drawing.helper.pid is None  # no file was requested yet
    made.app.handlers.start_drawing({})
    pid = made.app.handlers.drawing.helper.pid
    assert pid is not None and alive(pid)
    made.app.blocks.close(verbose=False)
    assert ends(pid)
    assert made.app.handlers.drawing.helper.pid is None


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc, to see children")
def test_it_ends_with_the_script_of_the_app(tmp_path: Path) -> None:
    """`python app.py`, whose module is not run again, and Ctrl-C, which reaches both processes."""
    log = tmp_path / "log"
    options = ["--port", "0", "--model", str(tmp_path / "none"), "--cache-dir", str(tmp_path)]
    options.append("--no-token")
    with (
        log.open("w") as reports,
        subprocess.Popen(
            [sys.executable, "app.py", *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=reports,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            text=True,
            start_new_session=True,
        ) as started,
    ):
        assert started.stdout is not None
        url = started.stdout.readline().rpartition(" ")[2].strip()
        with urllib.request.urlopen(f"{url}/config") as answer:
            parts = json.load(answer)["components"]
        inspector = next(p["id"] for p in parts if p["props"].get("elem_id") == "inspector")
        ask = {
            "component_id": inspector,
            "fn_name": "start_drawing",
            "data": {},
            "session_hash": "one",
        }
        request = urllib.request.Request(
            f"{url}/gradio_api/component_server/",
            json.dumps(ask).encode(),
            {"content-type": "application/json"},
        )
        assert children(started.pid) == []
        urllib.request.urlopen(request).close()
        (pid,) = children(started.pid)
        assert MODULE in Path(f"/proc/{pid}/cmdline").read_text()
        while not ignored(pid, signal.SIGINT):  # Python itself takes some time to begin
            time.sleep(0.05)
        os.killpg(started.pid, signal.SIGINT)
        started.wait(60)
        assert ends(pid)
    assert "drawing" not in log.read_text(), log.read_text()  # it has nothing to say


def children(pid: int) -> list[int]:
    """Processes that a process has started and that have not ended."""
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # the thread has ended meanwhile
            found += map(int, (thread / "children").read_text().split())
    return found


def ignored(pid: int, number: signal.Signals) -> bool:
    """Whether a process ignores a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    (mask,) = re.findall(r"SigIgn:\s*([0-9a-f]+)", status)
    return bool(int(mask, 16) >> (number - 1) & 1)
