"""The budget of the store counts images, files, and the copies served to the page."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from sinkscope.config import AppSettings, ImageLimits, Settings
from sinkscope.web.explore.handlers import Handlers
from sinkscope.web.runs.inspector import html_component
from sinkscope.web.runs.loaded_model import LoadedModel
from sinkscope.web.runs.request import Request
from sinkscope.web.runs.store import BYTES_A_PIXEL, Run, RunStore, open_run, save_run
from tests.web.scripted import ScriptedEngine, fake_handle
from tests.web.synthetic import make_pair, make_trace

RUNS = 12
SIDE = 700  # of a photo that is kept at 300 x 300
KEPT = 0.09  # megapixels


def noise(number: int, side: int = SIDE) -> Image.Image:
    """A photo that hardly compresses."""
    random = np.random.default_rng(number)
    return Image.fromarray(random.integers(0, 256, (side, side, 3), np.uint8))


def bytes_under(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_twelve_runs_of_large_photos_stay_within_memory_and_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads, runs = tmp_path / "uploads", tmp_path / "runs"
    uploads.mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(uploads))
    loaded = LoadedModel()
    loaded.use(fake_handle())
    settings = Settings(
        app=AppSettings(cache_dir=str(tmp_path)), images=ImageLimits(kept_megapixels=KEPT)
    )
    memory, disk = 2_000_000, 6_000_000
    store = RunStore(runs, memory, disk)
    handlers = Handlers(settings, loaded, store, ScriptedEngine().engine())
    with gr.Blocks():
        handlers.component = html_component("inspector", None)
    try:
        for number in range(RUNS):
            photo = uploads / f"{number}.png"
            noise(number).save(photo)
            value = list(handlers.generate(Request(str(photo), "What is it?"), "s"))[-1]
            assert value["phase"] == "ready"
            photo.unlink()
            run = store.get(value["run"])
            assert run is not None and run.first.images[0].size == (300, 300)
            assert store.memory <= memory
            held = sum(r.nbytes + BYTES_A_PIXEL * 300 * 300 for r in store._runs.values())
            assert store.memory == held
            assert bytes_under(runs) + bytes_under(uploads) == store.disk <= disk
    finally:
        handlers.images.close()
    assert 2 <= len(list(runs.iterdir())) < RUNS


def test_an_image_counts_once_however_many_answers_have_it(tmp_path: Path) -> None:
    run = Run(make_pair(image=noise(0)))
    assert run.memory == run.nbytes + BYTES_A_PIXEL * SIDE * SIDE
    save_run(run, tmp_path)
    again = open_run(tmp_path)
    assert again.memory == run.memory
    assert again.traces["var"].images[0] is again.traces["baseline"].images[0]
    assert again.first.images[0].tobytes() == noise(0).tobytes()


def test_images_drive_older_runs_out_of_memory(tmp_path: Path) -> None:
    runs = [Run({"baseline": make_trace(image=noise(n), seed=n)}) for n in range(3)]
    store = RunStore(tmp_path, runs[0].nbytes * 3 + 1_000_000)  # enough for all tensors
    for run in runs:
        store.put(run)
    assert list(store._runs) == [runs[-1].id]


def test_copies_drive_older_runs_off_the_disk(tmp_path: Path) -> None:
    runs = [Run({"baseline": make_trace(seed=n)}) for n in range(3)]
    save_run(runs[0], tmp_path / "size")
    size = bytes_under(tmp_path / "size")
    store = RunStore(tmp_path / "runs", 1, disk_bytes=5 * size)
    copies = [tmp_path / f"copy{n}" for n in range(3)]
    for run, copy in zip(runs, copies, strict=True):
        store.put(run)
        copy.write_bytes(bytes(2 * size))
        store.keep_copies(run, copy)
        assert store.disk <= 5 * size
    assert [copy.exists() for copy in copies] == [False, False, True]
    assert [store.get(run.id) is not None for run in runs] == [False, False, True]
