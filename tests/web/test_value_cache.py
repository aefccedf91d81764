"""The values of a run are built once, and built again if their files are missing."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from sinkscope.web.runs import inspector, value_cache
from sinkscope.web.runs.inspector import cached, path_of
from sinkscope.web.runs.store import Run
from sinkscope.web.runs.value_cache import RunValueCache
from tests.web.synthetic import make_trace


def _run() -> Run:
    return Run({"baseline": make_trace()})


@pytest.fixture
def component(tmp_path: Path) -> gr.HTML:
    made = gr.HTML()
    made.GRADIO_CACHE = str(tmp_path / "files")
    return made


class _Built:
    def __init__(self, component: gr.HTML) -> None:
        self.component, self.runs, self.now = component, [], 0.0

    def __call__(self, run: Run) -> dict[str, Any]:
        self.runs.append(run.id)
        return inspector.run_value(run, self.component)


@pytest.fixture
def built(component: gr.HTML) -> _Built:
    return _Built(component)


@pytest.fixture
def values(built: _Built) -> RunValueCache:
    return RunValueCache(built, lambda: built.now)


def test_a_run_is_built_once(values: RunValueCache, built: _Built) -> None:
    one, other = _run(), _run()
    first = values(one)
    assert values(other)["run"] == other.id
    assert values(one) == first
    assert built.runs == [one.id, other.id]


def test_again_where_a_file_is_gone(values: RunValueCache, built: _Built) -> None:
    run = _run()
    for leads in ("data", "images"):
        value = values(run)
        one = value[leads] if leads == "data" else value[leads][0]
        path = path_of(one["url"])
        path.unlink()
        assert values(run) == value
        assert path.is_file()
    assert len(built.runs) == 3


def test_again_before_gradio_removes_the_files(values: RunValueCache, built: _Built) -> None:
    run = _run()
    values(run)
    built.now = value_cache.FRESH_SECONDS + 1
    values(run)
    assert len(built.runs) == 2


def test_the_least_recently_used_one_leaves(built: _Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(value_cache, "MOST", 2)
    values = RunValueCache(built, lambda: built.now)
    a, b, c = _run(), _run(), _run()
    for run in (a, b, a, c, a, b):
        values(run)
    assert built.runs == [a.id, b.id, c.id, b.id]


def test_a_file_that_is_being_read_is_not_written_over(component: gr.HTML) -> None:
    """Two browsers open one run: the second request must not cut off the first download."""
    data = bytes(range(256)) * 4000
    path = path_of(cached(data, "run.bin", component)["url"])
    short, over = [], threading.Event()

    def read() -> None:
        while not over.is_set():
            if len(path.read_bytes()) != len(data):
                short.append(True)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(200):
        assert path_of(cached(data, "run.bin", component)["url"]) == path
    over.set()
    reader.join()
    assert not short
    assert [p.name for p in path.parent.iterdir()] == ["run.bin"]


def test_a_damaged_copy_is_made_again(component: gr.HTML) -> None:
    path = path_of(cached(b"whole", "a b%.bin", component)["url"])
    path.write_bytes(b"who")
    assert path_of(cached(b"whole", "a b%.bin", component)["url"]).read_bytes() == b"whole"
