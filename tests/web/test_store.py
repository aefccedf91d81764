"""Runs in memory and on disk."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import sinkscope.web.runs.store
from sinkscope.web.runs.payload import build_payload
from sinkscope.web.runs.standalone import build_standalone
from sinkscope.web.runs.store import Run, RunStore, new_id, open_run, save_run
from tests.web.synthetic import make_pair, make_trace

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


def test_a_run_comes_back_after_a_restart(tmp_path: Path) -> None:
    run = Run(make_pair(), same_text=True)
    RunStore(tmp_path, 10_000_000).put(run)
    again = RunStore(tmp_path, 10_000_000).get(run.id)
    assert again is not None and again.id == run.id and again.same_text
    for name, trace in run.traces.items():
        assert again.traces[name].text == trace.text
        assert again.traces[name].attention.equal(trace.attention)


def test_memory_stays_within_its_budget(tmp_path: Path) -> None:
    runs = [Run({"baseline": make_trace(seed=n)}) for n in range(4)]
    store = RunStore(tmp_path, int(2.5 * runs[0].memory))
    for run in runs:
        store.put(run)
    assert store.memory <= 2.5 * runs[0].memory
    assert all(store.get(run.id) is not None for run in runs)  # the others come from disk


def test_a_run_larger_than_the_budget_is_still_shown(tmp_path: Path) -> None:
    run = Run({"baseline": make_trace()})
    store = RunStore(tmp_path, 1)
    store.put(run)
    assert store.get(run.id) is run


def test_disk_stays_within_its_budget_and_keeps_the_newest(tmp_path: Path) -> None:
    runs = [Run({"baseline": make_trace(seed=n)}) for n in range(3)]
    save_run(runs[0], tmp_path / "size")
    size = sum(f.stat().st_size for f in (tmp_path / "size").iterdir())
    store = RunStore(tmp_path / "runs", 1, disk_bytes=int(1.5 * size))
    for run in runs:
        store.put(run)
    assert [f.name for f in (tmp_path / "runs").iterdir()] == [runs[-1].id]


def test_a_run_that_is_open_keeps_its_files(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs", 10_000_000, disk_bytes=1)
    first, second = (Run({"baseline": make_trace(seed=n)}) for n in range(2))
    store.put(first)
    store.put(second)
    assert {f.name for f in (tmp_path / "runs").iterdir()} == {first.id, second.id}


def test_the_example_never_leaves_the_memory_and_is_not_written(tmp_path: Path) -> None:
    example = Run({"baseline": make_trace()}, kind="example")
    store = RunStore(tmp_path / "runs", 1)
    store.put(example, keep_on_disk=False)
    store.put(Run({"baseline": make_trace(seed=1)}))
    assert store.get(example.id) is example
    assert not (tmp_path / "runs" / example.id).exists()


@pytest.mark.parametrize(
    "bad", ["", "..", "../../etc", "a/b", "x" * 65, 7, None, {"a": 1}, "ab\n" * 8]
)
def test_an_id_is_never_a_path(tmp_path: Path, bad: object) -> None:
    assert RunStore(tmp_path, 1000).get(bad) is None


def test_unknown_and_damaged_runs(tmp_path: Path) -> None:
    store = RunStore(tmp_path, 1000)
    assert store.get(new_id()) is None
    run = Run({"baseline": make_trace()})
    save_run(run, tmp_path / run.id)
    (tmp_path / run.id / "baseline.safetensors").write_bytes(b"cut off")
    assert store.get(run.id) is None
    with pytest.raises(ValueError, match="baseline"):
        open_run(tmp_path / run.id)


def test_deleting(tmp_path: Path) -> None:
    run = Run({"baseline": make_trace()})
    store = RunStore(tmp_path, 10_000_000)
    store.put(run)
    store.delete(run.id)
    assert store.get(run.id) is None and not (tmp_path / run.id).exists()


def test_a_full_disk_leaves_the_run_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(run: Run, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "baseline.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    run = Run({"baseline": make_trace()})
    store = RunStore(tmp_path, 10_000_000)
    monkeypatch.setattr(sinkscope.web.runs.store, "save_run", full)
    assert store.put(run) == "kept in memory only: No space left on device"
    assert store.get(run.id) is run
    assert not (tmp_path / run.id).exists()
    monkeypatch.undo()
    assert store.put(run) is None
    assert (tmp_path / run.id / "run.json").is_file()


def test_a_folder_that_disappears_while_the_rest_is_trimmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, kept = Run({"baseline": make_trace()}), Run({"baseline": make_trace(seed=1)})
    store = RunStore(tmp_path, 10_000_000)
    store.put(gone)
    read = Path.iterdir

    def racing(self: Path) -> Any:
        names = list(read(self))
        if self == tmp_path:
            store_of_another_app.delete(gone.id)
        return iter(names)

    store_of_another_app = RunStore(tmp_path, 10_000_000)
    monkeypatch.setattr(Path, "iterdir", racing)
    assert store.put(kept) is None
    assert not (tmp_path / gone.id).exists()
    assert (tmp_path / kept.id).is_dir()


def test_ids_differ() -> None:
    assert len({new_id() for _ in range(1000)}) == 1000


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5])
def test_a_run_of_an_earlier_version_opens(tmp_path: Path, version: int) -> None:
    run_id = new_id()
    shutil.copytree(FIXTURES / f"run_v{version}", tmp_path / run_id)
    run = RunStore(tmp_path, 10_000_000).get(run_id)
    assert run is not None
    assert (tuple(run.traces), run.kind, run.same_text) == (("baseline", "var"), "run", False)
    assert run.created == 1795000000.0 + {4: 3}.get(version, version)
    assert run.traces["var"].var is not None
    assert build_payload(run)
    assert build_standalone(run)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "pair"}, "is invalid"),
        ({"kind": ["run"]}, "is invalid"),
        ({"same_text": "no"}, "is invalid"),
        ({"created": float("nan")}, "is invalid"),
        ({"created": -1}, "is invalid"),
        ({"created": 1e300}, "is invalid"),
        ({"created": "yesterday"}, "cannot be read"),
        ({"variants": 7}, "cannot be read"),
        ({"variants": ["var"]}, "no baseline"),
    ],
)
def test_a_description_that_was_changed(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    run = Run(make_pair())
    save_run(run, tmp_path / run.id)
    described = tmp_path / run.id / "run.json"
    described.write_text(json.dumps({**json.loads(described.read_text()), **change}))
    with pytest.raises(ValueError, match=f"^The stored run is damaged: .*{words}"):
        open_run(tmp_path / run.id)
    assert RunStore(tmp_path, 10_000_000).get(run.id) is None
    assert (tmp_path / run.id / "baseline.safetensors").is_file()  # nothing is deleted for it


def test_answers_of_two_prompts_are_no_run(tmp_path: Path) -> None:
    run = Run(make_pair())
    save_run(run, tmp_path / run.id)
    make_trace(rows=6, columns=6).save(tmp_path / run.id / "var.safetensors")
    with pytest.raises(ValueError, match="two answers have different prompts"):
        open_run(tmp_path / run.id)


def test_an_answer_that_no_file_can_hold_stays_in_memory(tmp_path: Path) -> None:
    trace = make_trace()
    run = Run({"baseline": dataclasses.replace(trace, entropy=trace.entropy.double())})
    store = RunStore(tmp_path, 10_000_000)
    assert "its entropy is torch.float64" in (store.put(run) or "")
    assert store.get(run.id) is run
    assert not (tmp_path / run.id).exists()
