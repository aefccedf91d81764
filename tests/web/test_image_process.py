"""Uploads are decoded in another process, in turn, one at a time, and can be stopped.

A slow decoder stands in for a hostile file: `SLOW` scans of a JPEG, with the limit of scans lifted.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from sinkscope.config import ImageLimits
from sinkscope.jobs.job import Stopped
from sinkscope.models.images import ImageError, open_image
from sinkscope.web.explore.forecast import Forecaster
from sinkscope.web.explore.handlers import Handlers
from sinkscope.web.runs.image_process import SHOWN_MEGAPIXELS, ImageProcess, limits_for
from sinkscope.web.runs.loaded_model import LoadedModel
from sinkscope.web.runs.request import Request
from sinkscope.web.server.uploads import UploadError
from tests.pictures import encode, flat_png, many_scans, photo
from tests.web.scripted import ScriptedEngine, fake_handle
from tests.web.test_handlers import engine, handlers, picture

__all__ = ["engine", "handlers", "picture"]

LIMITS = ImageLimits()
LIFTED = ImageLimits(max_scans=10_000, decode_seconds=60)


@pytest.fixture(scope="module")
def process() -> Iterator[ImageProcess]:
    made = ImageProcess(LIMITS)
    yield made
    made.close()


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file that takes many seconds to decode."""
    path = tmp_path_factory.mktemp("slow") / "slow.jpg"
    path.write_bytes(many_scans(3000, (3000, 3000)))
    return str(path)


def saved(folder: Path, data: bytes, name: str = "upload") -> str:
    path = folder / name
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize(
    "data",
    [
        encode(photo(301, 203)),
        encode(photo(301, 203), "JPEG", quality=90),
        encode(photo(301, 203), "JPEG", progressive=True),
        encode(photo(301, 203).convert("RGBA").rotate(20), "WEBP", lossless=True),
    ],
    ids=["png", "jpeg", "progressive", "transparent"],
)
def test_the_pixels_are_those_of_this_process(
    process: ImageProcess, uploads: Path, tmp_path: Path, data: bytes
) -> None:
    image = process.open_upload(saved(tmp_path, data), LIMITS)
    here = open_image(data)
    assert (image.mode, image.size) == ("RGB", here.size)
    assert image.tobytes() == here.tobytes()
    assert process.helper.pid not in (None, os.getpid())


def test_errors_are_the_sentences_of_open_image(
    process: ImageProcess, uploads: Path, tmp_path: Path
) -> None:
    for data in (b"", b"a text", encode(photo(60, 40))[:900], flat_png(9000, 9000)):
        with pytest.raises(ImageError) as here:
            open_image(data, LIMITS, "cat.png")
        with pytest.raises(ImageError) as there:
            process.open_upload(saved(tmp_path, data), LIMITS, "cat.png")
        assert str(there.value) == str(here.value)
    with pytest.raises(UploadError):
        process.open_upload(str(tmp_path / "gone.png"), LIMITS)
    with pytest.raises(UploadError):
        process.open_upload("/etc/hostname", LIMITS)


def test_a_limit_of_time_and_the_next_image_opens(
    process: ImageProcess, uploads: Path, slow: str, tmp_path: Path
) -> None:
    begun = time.monotonic()
    limits = dataclasses.replace(LIFTED, decode_seconds=0.5)
    with pytest.raises(
        ImageError, match=r"cat\.jpg takes longer to decode than the allowed 0\.5 seconds"
    ):
        process.open_upload(slow, limits, "cat.jpg")
    assert time.monotonic() - begun < 5
    assert process.open_upload(saved(tmp_path, encode(photo(9, 7))), LIMITS).size == (9, 7)


def test_a_limit_of_memory(uploads: Path, tmp_path: Path) -> None:
    """50 megapixels of RGB take 200 MB: more than is left beside Python in 300."""
    small = ImageProcess(ImageLimits(decode_megabytes=300))
    path = saved(tmp_path, flat_png(7000, 7000))
    try:
        with pytest.raises(ImageError, match=r"memory|MB"):
            small.open_upload(path, LIMITS)
        assert small.open_upload(saved(tmp_path, encode(photo(9, 7))), LIMITS).size == (9, 7)
    finally:
        small.close()


def test_stop_ends_a_decoder_that_listens_to_nothing(
    process: ImageProcess, uploads: Path, slow: str
) -> None:
    stop = threading.Event()
    threading.Timer(0.7, stop.set).start()
    begun = time.monotonic()
    with pytest.raises(Stopped):
        process.open_upload(slow, LIFTED, stop=stop)
    assert time.monotonic() - begun < 5


def test_whoever_waits_behind_a_slow_image_can_leave(
    process: ImageProcess, uploads: Path, slow: str, tmp_path: Path
) -> None:
    """The second waits for the first, but its Stop does not."""
    first, second = threading.Event(), threading.Event()

    def decode() -> None:
        with pytest.raises(Stopped):
            process.open_upload(slow, LIFTED, stop=first)

    thread = threading.Thread(target=decode)
    thread.start()
    time.sleep(0.5)
    threading.Timer(0.5, second.set).start()
    begun = time.monotonic()
    with pytest.raises(Stopped):
        process.open_upload(saved(tmp_path, encode(photo(9, 7))), LIMITS, stop=second)
    assert 0.3 < time.monotonic() - begun < 10
    first.set()
    thread.join(10)
    assert not thread.is_alive()


def test_one_image_at_a_time(
    process: ImageProcess, uploads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, own = saved(tmp_path, encode(photo(9, 7))), process.helper.do
    under_way: list[int] = []
    most: list[int] = []

    def do(*task: Any) -> Any:
        under_way.append(1)
        most.append(len(under_way))
        time.sleep(0.1)
        try:
            return own(*task)
        finally:
            under_way.pop()

    monkeypatch.setattr(process.helper, "do", do)
    threads = [threading.Thread(target=process.open_upload, args=(path, LIMITS)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == [1] * 4


def test_stop_beside_generate_ends_the_image(
    handlers: Handlers, slow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    object.__setattr__(handlers.settings, "images", LIFTED)
    values = []
    begun = time.monotonic()
    for value in handlers.generate(Request(slow, "Hello"), "s"):
        values.append(value)
        if value["phase"] == "streaming" and time.monotonic() - begun > 0.5:
            handlers.stop("s")
    assert time.monotonic() - begun < 8
    assert values[-1]["phase"] == "error" and "nothing was generated" in values[-1]["message"]
    handlers.images.close()


def test_nothing_is_decoded_before_the_turn(
    handlers: Handlers, engine: ScriptedEngine, picture: str
) -> None:
    opened: list[str] = []
    own = handlers.images.open_upload

    def open_upload(*arguments: Any, **more: Any) -> Image.Image:
        opened.append(threading.current_thread().name)
        return own(*arguments, **more)

    handlers.images.open_upload = open_upload  # type: ignore[method-assign]
    engine.hold()
    first = handlers.generate(Request(picture, "Hello"), "a")
    next(first)
    assert engine.begun.wait(20)
    waiting = handlers.generate(Request(picture, "Hello"), "b")
    assert next(waiting)["phase"] == "queued"
    assert len(opened) == 1
    engine.release()
    list(first)
    assert list(waiting)[-1]["phase"] == "ready"
    assert opened == ["job answer"] * 2
    handlers.images.close()


def test_a_forecast_decodes_nothing(
    uploads: Path, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decoded(*_: Any, **__: Any) -> None:
        raise AssertionError("decoded")

    loaded, seen = LoadedModel(), []
    handle = fake_handle()
    prepare = handle.prepare
    handle.prepare = lambda images, prompt: seen.append(images[0].size) or prepare(images, prompt)
    loaded.use(handle)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    from sinkscope.config import Settings

    forecaster = Forecaster(Settings(), loaded, ScriptedEngine.estimate)
    assert "vision tokens" in forecaster.of_run(Request(picture, "Hello"))["text"]
    assert seen == [(60, 40)]


def test_photos_are_kept_at_what_the_model_can_use_or_what_is_shown() -> None:
    handle = fake_handle()
    assert limits_for(LIMITS, None) is LIMITS and limits_for(LIMITS, handle) is LIMITS
    for most, kept in ((78_400, SHOWN_MEGAPIXELS), (6_000_000, 6.0), (50_000_000, 12.845056)):
        handle.most_pixels = most
        assert limits_for(LIMITS, handle).kept_megapixels == pytest.approx(kept)


def test_a_run_of_a_large_photo(handlers: Handlers, tmp_path: Path) -> None:
    assert handlers.loaded.handle is not None
    handlers.loaded.handle.most_pixels = 78_400  # type: ignore[misc]
    path = saved(tmp_path, flat_png(4000, 2000))
    value = list(handlers.generate(Request(path, "Hello"), "s"))[-1]
    run = handlers.store.get(value["run"])
    assert run is not None
    image = run.first.images[0]
    assert image.size == (2262, 1131)
    assert np.asarray(image)[500, 500].tolist() == [200, 30, 90]
    handlers.images.close()


def test_many_scans_are_refused_at_once(handlers: Handlers, slow: str) -> None:
    begun = time.monotonic()
    with pytest.raises(gr.Error, match="JPEG of more than 32 scans, the most allowed"):
        list(handlers.generate(Request(slow, "Hello"), "s"))
    assert time.monotonic() - begun < 10
    handlers.images.close()
