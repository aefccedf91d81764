"""Methods' maps, stored with a run's files, and drawn from there without a model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sinkscope.drawing.files import Drawing
from sinkscope.drawing.view import View
from sinkscope.drawing.view_figure import view_figure
from sinkscope.methods.base import MapStack
from sinkscope.methods.explain import method_of
from sinkscope.methods.precomputed import PrecomputedMaps, PrecomputedStack
from sinkscope.methods.stack_file import open_stack, save_stack
from sinkscope.web.explore.export_files import ExportRequest, make_files, with_kept
from sinkscope.web.runs.drawing_process import DrawingProcess
from sinkscope.web.runs.explained_store import PATTERN, ExplainedStore, StoredMaps, _file
from sinkscope.web.runs.store import Run, RunStore
from tests.web.synthetic import make_pair


@pytest.fixture
def run() -> Run:
    return Run(make_pair())


def stack_of(run: Run, side: str = "baseline", seed: int = 0, slots: int = 1) -> MapStack:
    trace = run.traces[side]
    shape = (slots, trace.layout.vision_tokens)
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    values[0, 1] = np.nan
    axes = (("token", (1,)), ("layer", trace.layers[:slots]))[: 2 if slots > 1 else 1]
    return MapStack(values, axes, trace.layout, "nats lost", True, "none")


def key(run: Run, token: int = 1, method: str = "chefer") -> tuple[str, str, tuple[int, ...], str]:
    return run.id, "baseline", (token,), method


def files_of(folder: Path, run: Run) -> list[Path]:
    return sorted((folder / run.id).glob(PATTERN))


def test_a_stack_comes_back_from_its_file(run: Run, tmp_path: Path) -> None:
    layout = run.first.layout
    one = stack_of(run, slots=3)
    stack = dataclasses.replace(one, ratio=(one, stack_of(run, seed=1, slots=3)), least=0.1)
    save_stack(stack, tmp_path / "a.npz", {"seconds": 2.5})
    opened, about = open_stack(tmp_path / "a.npz", layout)
    assert about == {"seconds": 2.5}
    for mine, other in zip((stack, *stack.ratio), (opened, *opened.ratio), strict=True):
        np.testing.assert_array_equal(mine.values, other.values)
        same = {f.name: getattr(mine, f.name) for f in dataclasses.fields(mine)}
        for name in ("axes", "unit", "signed", "normalisation", "least"):
            assert getattr(other, name) == same[name]


@pytest.mark.parametrize("damage", ["missing", "cut", "text", "other"])
def test_a_file_that_is_none_is_refused(run: Run, tmp_path: Path, damage: str) -> None:
    path, layout = tmp_path / "a.npz", run.first.layout
    if damage != "missing":
        save_stack(stack_of(run), path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    if damage == "text":
        path.write_text("no maps")
    if damage == "other":
        layout = dataclasses.replace(layout, grids=())
    with pytest.raises(ValueError, match=r"a\.npz cannot be read as maps of a method"):
        open_stack(path, layout)


def test_results_outlive_the_app_and_go_with_the_run(run: Run, tmp_path: Path) -> None:
    runs = RunStore(tmp_path, 10**8)
    runs.put(run)
    stack = stack_of(run)
    ExplainedStore(runs).put(key(run), StoredMaps(stack, seconds=1.5))
    again = ExplainedStore(RunStore(tmp_path, 10**8))
    found = again.get(key(run), run.first)
    assert found is not None and found.stack is not None and found.seconds == 1.5
    np.testing.assert_array_equal(found.stack.values, stack.values)
    assert again.get(key(run, 2), run.first) is None
    assert again.get(key(run, method="rollout"), run.first) is None
    runs.delete(run.id)
    assert not (tmp_path / run.id).exists()
    ExplainedStore(runs).put(key(run), StoredMaps(stack))  # a job that ends later stores nothing
    assert not (tmp_path / run.id).exists()
    assert ExplainedStore(runs).get(key(run), run.first) is None


def test_a_run_without_files_keeps_them_in_memory(run: Run, tmp_path: Path) -> None:
    runs = RunStore(tmp_path, 10**8)
    runs.put(run, keep_on_disk=False)
    store = ExplainedStore(runs)
    store.put(key(run), StoredMaps(stack_of(run)))
    store.put(("x:a~y:b", "a", (1,), "chefer"), StoredMaps(stack_of(run)))
    assert store.get(key(run), run.first) is not None and list(tmp_path.iterdir()) == []


def test_the_files_of_a_run_are_bounded_and_count(run: Run, tmp_path: Path) -> None:
    runs = RunStore(tmp_path, 10**8)
    runs.put(run)
    size = StoredMaps(stack_of(run)).nbytes
    save_stack(stack_of(run), tmp_path / "one.npz")
    file = (tmp_path / "one.npz").stat().st_size
    store = ExplainedStore(runs, beside=2 * file + size)
    for token in range(6):
        store.put(key(run, token), StoredMaps(stack_of(run, seed=token)))
    kept = ExplainedStore(runs)
    assert [kept.get(key(run, k), run.first) is not None for k in range(6)][-1]
    assert 2 <= len(files_of(tmp_path, run)) <= 3
    ExplainedStore(runs, beside=size - 1).put(key(run, 9), StoredMaps(stack_of(run)))
    assert ExplainedStore(runs).get(key(run, 9), run.first) is None  # larger than the whole budget
    # They count in the store's budget: writing the newer run's maps removes the older run.
    small = RunStore(tmp_path, 10**8, disk_bytes=1)
    newer = Run(make_pair())
    RunStore(tmp_path, 10**8).put(newer)
    ExplainedStore(small).put(key(newer), StoredMaps(stack_of(newer)))
    assert not (tmp_path / run.id).exists() and (tmp_path / newer.id).exists()


def test_a_damaged_file_is_as_if_it_were_not_there(run: Run, tmp_path: Path) -> None:
    runs = RunStore(tmp_path, 10**8)
    runs.put(run)
    ExplainedStore(runs).put(key(run), StoredMaps(stack_of(run)))
    (path,) = files_of(tmp_path, run)
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    assert ExplainedStore(runs).get(key(run), run.first) is None
    path.write_bytes(whole)
    assert ExplainedStore(runs).get(key(run), run.first) is not None
    path.rename(path.with_name(_file(key(run, 2))))  # under another word's name
    assert ExplainedStore(runs).get(key(run, 2), run.first) is None


def test_a_figure_is_drawn_of_what_is_kept(run: Run, tmp_path: Path) -> None:
    """Here and in the process that draws, the same picture; and not that of attention."""
    runs = RunStore(tmp_path / "runs", 10**8)
    runs.put(run)
    kept = ExplainedStore(runs)
    for side, seed in (("baseline", 0), ("var", 1)):
        found = StoredMaps(stack_of(run, side, seed))
        kept.put((run.id, side, (1,), "chefer"), found)
    wanted = ExportRequest(
        "png", View(method="chefer", layers=(1,), whole_answer=True), first=1, last=1
    )
    (here,) = make_files(run, wanted, tmp_path, kept=kept)
    drawn = here.read_bytes()
    process = DrawingProcess(runs.file_of)
    try:
        (there,) = make_files(run, wanted, tmp_path, kept=kept, drawn_by=process)
    finally:
        process.close()
    with Image.open(there) as a:
        pixels = np.asarray(a.convert("RGB"))
    here.write_bytes(drawn)
    with Image.open(here) as b:
        np.testing.assert_array_equal(pixels, np.asarray(b.convert("RGB")))
    plain = dataclasses.replace(wanted, view=dataclasses.replace(wanted.view, method="attention"))
    (other,) = make_files(run, plain, tmp_path, kept=kept)
    assert other.read_bytes() != drawn


def test_what_was_not_computed_is_refused_by_name(run: Run, tmp_path: Path) -> None:
    kept = ExplainedStore()
    kept.put(key(run), StoredMaps(stack_of(run)))
    view = View(method="chefer")
    with pytest.raises(ValueError, match="chefer is not possible for VAR: the run was made with"):
        make_files(run, ExportRequest("pdf", view, first=1), tmp_path, kept=kept)
    make_files(run, ExportRequest("png", view, side="baseline", first=1), tmp_path, kept=kept)
    with pytest.raises(ValueError, match="chefer is not computed for this word"):
        make_files(run, ExportRequest("png", view, side="baseline", first=2), tmp_path, kept=kept)
    with pytest.raises(ValueError, match="An animation needs the maps of every word"):
        make_files(run, ExportRequest("gif", view, first=1), tmp_path, kept=kept)
    plain = View(method="relative")
    assert with_kept(run, ExportRequest("png", plain), plain, kept) is plain


def test_other_words_than_those_given_need_the_model(run: Run) -> None:
    trace = run.first
    maps = PrecomputedMaps(method_of("chefer"), (PrecomputedStack(trace, (1,), stack_of(run)),))
    view = View(method=maps)
    text = " ".join(one.get_text() for one in view_figure(trace, 1, view).texts)
    assert "One map of all layers and heads together." in text and "arXiv 2103.15679" in text
    with pytest.raises(ValueError, match="token 1 of the answer only, and token 2 would need"):
        view_figure(trace, 2, view)
    assert Drawing(view).values()["view"]["method"] == "chefer"
