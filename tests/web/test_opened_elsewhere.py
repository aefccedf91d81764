"""Sinks, Experiments, Evaluate: uploads are decoded only in the separate process."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from sinkscope.config import AppSettings, Settings
from sinkscope.evaluation.data import open_data
from sinkscope.evaluation.tasks.jsonl import TASK
from sinkscope.jobs.job import Job
from sinkscope.jobs.runner import Runner
from sinkscope.web.evaluate.run import EvaluateHandlers
from sinkscope.web.evaluate.upload import keep_questions
from sinkscope.web.experiments.request import MINE, ExperimentRequest
from sinkscope.web.experiments.run import ExperimentsHandlers
from sinkscope.web.runs.inspector import html_component
from sinkscope.web.runs.loaded_model import LoadedModel
from sinkscope.web.sinks.request import IMAGES, Picture, SinksRequest
from sinkscope.web.sinks.run import SinksFunctions, SinksHandlers

SEES: Any = SimpleNamespace(
    info=SimpleNamespace(id="fake", revision="", dtype="float32"),
    family=SimpleNamespace(sees_images=True),
)


class EnoughError(Exception):
    """Raised when the code under test has done its part."""


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Hashes of the files that Pillow opened in this process."""
    seen: set[str] = set()
    own = Image.open

    def watched(file: Any, *given: Any, **more: Any) -> Any:
        if isinstance(file, str | Path):
            seen.add(sha256(Path(file).read_bytes()).hexdigest())
        else:
            at = file.tell()
            file.seek(0)
            seen.add(sha256(file.read()).hexdigest())
            file.seek(at)
        return own(file, *given, **more)

    monkeypatch.setattr(Image, "open", watched)
    return seen


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Picture, ...]:
    """Two uploads of different pixels, with an image inside a file of questions beside them."""
    folder = tmp_path / "uploads"
    folder.mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    made = []
    for number in range(2):
        path = folder / f"{number}.png"
        noise = np.random.default_rng(number).integers(0, 255, (40, 60, 3), np.uint8)
        Image.fromarray(noise).save(path)
        made.append(Picture(path.name, path))
    return tuple(made)


def asking(photos: tuple[Picture, ...]) -> Picture:
    rows = [{"image": one.name, "question": "What?", "answer": "Noise"} for one in photos]
    path = photos[0].path.with_name("rows.jsonl")
    path.write_text("\n".join(map(json.dumps, rows)))
    return Picture(path.name, path)


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def look(samples: Any, photos: tuple[Picture, ...], hashes: set[str], seen: set[str]) -> None:
    """The samples have the uploads' pixels, and this process has not read the uploads."""
    found = [sample.open_images()[0] for sample in samples]
    assert len(found) == 2 and not hashes & seen
    wanted = sorted(pixels(one.path).tobytes() for one in photos)
    assert sorted(np.asarray(image).tobytes() for image in found) == wanted


@pytest.mark.parametrize("with_questions", [False, True])
@pytest.mark.parametrize("tab", ["sinks", "experiments"])
def test_the_samples_of_a_run(
    tab: str,
    with_questions: bool,
    photos: tuple[Picture, ...],
    opened: set[str],
    tmp_path: Path,
) -> None:
    hashes = {sha256(one.path.read_bytes()).hexdigest() for one in photos}
    given = (*photos, asking(photos)) if with_questions else photos

    def engine(handle: Any, *more: Any, **hooks: Any) -> Any:
        samples = more[0] if tab == "sinks" else more[1]
        look(samples.samples, photos, hashes, opened)
        raise EnoughError

    loaded = LoadedModel()
    loaded.use(SEES)
    settings = Settings(app=AppSettings(cache_dir=str(tmp_path / "cache")))
    handlers: Any
    work: Callable[[], Any]
    if tab == "sinks":
        handlers = SinksHandlers(settings, loaded, Runner(2), SinksFunctions(find=engine))
        request = SinksRequest(IMAGES, given, samples=2, held_out=0)
        work = lambda: handlers._work(request, Job())  # noqa: E731
    else:
        handlers = ExperimentsHandlers(settings, loaded, Runner(2), engine)
        own = {"layer": 0.0}
        wanted = ExperimentRequest(
            "decompose-output", MINE, given, experiment_settings=own, samples=2
        )
        work = lambda: handlers._work(wanted, "x" * 22, Job())  # noqa: E731
    try:
        with pytest.raises(EnoughError):
            work()
    finally:
        handlers.images.close()
    left = [path.name for path in (tmp_path / "uploads").iterdir()]
    assert not [name for name in left if name.startswith("scratch-")]


def test_the_questions_of_an_evaluation(
    photos: tuple[Picture, ...], opened: set[str], tmp_path: Path
) -> None:
    hashes = {sha256(one.path.read_bytes()).hexdigest() for one in photos}
    settings = Settings(app=AppSettings(cache_dir=str(tmp_path / "cache")))
    handlers = EvaluateHandlers(settings, LoadedModel(), Runner(2))
    with gr.Blocks():
        handlers.component = html_component("evaluate", None)
    try:
        path, count = keep_questions(
            (*photos, asking(photos)), tmp_path / "data", settings.images, 10, handlers._decoded
        )
    finally:
        handlers.images.close()
    assert count == 2 and not hashes & opened
    read = list(TASK.read(open_data(str(path), None, TASK.tables)))
    look_at = [SimpleNamespace(open_images=lambda one=one: [one.pictures[0]()]) for one in read]
    look(look_at, photos, hashes, opened)
