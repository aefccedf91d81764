"""Texts on the page before a run and before a load."""

from __future__ import annotations

import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from sinkscope.capture.run_times import RunTimes
from sinkscope.config import AppSettings, ModelSettings, Settings
from sinkscope.models.footprint import Footprint
from sinkscope.web.explore import forecast
from sinkscope.web.explore.forecast import Forecaster, of_load, seconds_words, size_words
from sinkscope.web.explore.model_events import load_forecasting
from sinkscope.web.runs.loaded_model import LoadedModel
from sinkscope.web.runs.request import Request
from sinkscope.web.server.uploads import NO_UPLOAD
from tests.web.scripted import ScriptedEngine, fake_handle
from tests.web.test_load import OFFERED, START, wanted

KNOWN = {"owner/big": 8_000_000_000}


@pytest.fixture
def photo_path(tmp_path: Path, uploads: Path) -> str:
    path = tmp_path / "photo.png"
    Image.new("RGB", (60, 40), "teal").save(path)
    return str(path)


def make(**options: Any) -> tuple[Forecaster, LoadedModel]:
    loaded = LoadedModel()
    loaded.use(fake_handle())
    return Forecaster(Settings(), loaded, options.get("estimate", ScriptedEngine.estimate)), loaded


def test_a_run(photo_path: str) -> None:
    made, _ = make()
    said = made.of_run(Request(photo_path, "Hello", values={"max_new_tokens": 20}))
    assert (
        said["text"] == "6 vision tokens · up to 20 kB of attention · up to about 2.0 s (estimate)"
    )
    assert said["kind"] == "quiet"
    said = made.of_run(Request(photo_path, "Hello", compare=True, values={"max_new_tokens": 20}))
    assert (
        said["text"] == "6 vision tokens · up to 40 kB of attention · up to about 4.0 s (estimate)"
    )


def test_nothing_to_say_without_image_prompt_or_model(photo_path: str) -> None:
    made, _ = make()
    assert made.of_run(Request(None, "Hello"))["text"] == ""
    assert made.of_run(Request(photo_path, "  "))["text"] == ""
    assert Forecaster(Settings(), LoadedModel()).of_run(Request(photo_path, "Hello"))["text"] == ""


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("photo", "heavy"), "What helps: fewer new tokens"),
        (Request("photo", "Hello", values={"max_new_tokens": 0}), "max_new_tokens is 0"),
        (Request("/nowhere.png", "Hello"), NO_UPLOAD),
    ],
)
def test_what_will_not_go_is_said_before(photo_path: str, request_: Request, words: str) -> None:
    made, _ = make()
    image = photo_path if request_.image == "photo" else request_.image
    said = made.of_run(dataclasses.replace(request_, image=image))
    assert said["kind"] == "warn" and words in said["text"]


def test_an_image_is_read_once_a_model(photo_path: str) -> None:
    made, loaded = make()
    made.of_run(Request(photo_path, "Hello"))
    Path(photo_path).unlink()
    assert made.of_run(Request(photo_path, "Hello", compare=True))["kind"] == "quiet"
    loaded.use(fake_handle())
    assert made.of_run(Request(photo_path, "Hello"))["kind"] == "warn"


def test_finished_runs_say_more_than_an_estimate(photo_path: str) -> None:
    seen = []

    def estimate(*arguments: Any, **options: Any) -> Any:
        seen.append(options)
        plain = ScriptedEngine.estimate(*arguments, **options)
        return dataclasses.replace(plain, measured=True)

    loaded, run_times = LoadedModel(), RunTimes()
    loaded.use(fake_handle())
    made = Forecaster(Settings(), loaded, estimate, run_times)
    said = made.of_run(Request(photo_path, "Hello", compare=True, same_text=True))
    assert said["text"].endswith(" · up to about 13 s (by earlier runs)")
    made.of_run(Request(photo_path, "Hello", same_text=True))
    assert [tuple(one.values()) for one in seen] == [(2, True, run_times), (1, False, run_times)]


def test_memory_is_not_looked_at_while_a_run_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise ValueError("It does not fit.")

    monkeypatch.setattr(forecast, "check_memory", full)
    monkeypatch.setattr(forecast, "forecast", lambda *a, **k: "made")
    handle: Any = SimpleNamespace(lock=threading.Lock())
    options: Any = {"answers": 1, "same_text": False, "run_times": RunTimes()}
    with handle.lock:
        assert forecast.estimate_run(handle, None, None, **options) == "made"  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not fit"):
        forecast.estimate_run(handle, None, None, **options)  # type: ignore[arg-type]


def test_a_burst_of_forecasts_takes_turns(
    photo_path: str,
) -> None:
    inside, most, lock = 0, 0, threading.Lock()

    def estimate(*_: Any, **__: Any) -> Any:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.02)
        with lock:
            inside -= 1
        raise ValueError("counted")

    made, _ = make(estimate=estimate)
    asked = Request(photo_path, "Hello")
    with ThreadPoolExecutor(12) as pool:
        said = list(pool.map(lambda _: made.of_run(asked), range(12)))
    assert most == forecast.AT_ONCE
    assert {one["text"] for one in said} == {"counted"}


def test_a_load_of_the_bundled_model() -> None:
    said = of_load(ModelSettings(device="cpu", dtype="bfloat16"), KNOWN)
    assert said["kind"] == "quiet"
    assert "million parameters in bfloat16" in said["text"]
    assert "of the computer's memory, where" in said["text"]


def test_a_load_that_will_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    big = Footprint(8 * 10**9, 32 * 10**9, "float32", torch.device("cpu"))
    monkeypatch.setattr(forecast, "footprint", lambda settings: big)
    monkeypatch.setattr(forecast, "available_memory", lambda device: 20 * 10**9)
    said = of_load(ModelSettings("owner/big"), KNOWN)
    assert said["kind"] == "warn"
    assert said["text"] == (
        "8.0 billion parameters in float32: 32 GB of the computer's memory, where 20 GB are free. "
        "It does not fit: bfloat16, a smaller model or another device helps."
    )
    on_gpu = dataclasses.replace(big, device=torch.device("cuda", 0))
    monkeypatch.setattr(forecast, "footprint", lambda settings: on_gpu)
    assert "spread over all GPUs" in of_load(ModelSettings("owner/big"), KNOWN)["text"]


def test_a_model_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    said = of_load(ModelSettings("owner/big"), KNOWN)
    assert said["kind"] == "warn" and "give the folder of a downloaded copy" in said["text"]
    monkeypatch.setattr(forecast, "may_ask_hub", lambda settings: True)
    monkeypatch.setattr(forecast, "available_memory", lambda device: 10**12)
    said = of_load(ModelSettings("owner/big", device="cpu"), KNOWN)
    assert said["text"].startswith("Not on this machine yet: Load fetches 16 GB from the hub. 8.0")
    assert "32 GB of the computer's memory" in said["text"]
    said = of_load(ModelSettings("owner/other", device="cpu"), KNOWN)
    assert said["text"] == "Not on this machine yet: Load fetches it from the hub first."


def test_strangers_learn_nothing_of_this_machines_folders() -> None:
    start = Settings(model=START, app=AppSettings(host="0.0.0.0", auth="me:secret"))
    ahead = load_forecasting(LoadedModel(), start, OFFERED, {})
    for model in ("/etc", "/nowhere"):
        said = ahead(model=model, device="auto", dtype="auto", revision="")
        assert said["text"] == (
            f"model is {model!r}; on a server that other machines can reach, allowed: demo, "
            "other/name, owner/name."
        )


def test_revisions() -> None:
    assert wanted("owner/name", revision=None).revision == "abc"
    assert wanted("owner/name", revision=" abc ").revision == "abc"
    assert wanted("owner/name", revision="").revision is None
    assert wanted("third/name", revision="v1.0/x").revision == "v1.0/x"
    assert wanted("third/name", revision="").revision is None
    for wrong in ("../../x", "a b", "x" * 201, "a\0"):
        with pytest.raises(ValueError, match="revision is"):
            wanted("third/name", revision=wrong)
    open_to_all = Settings(model=START, app=AppSettings(host="0.0.0.0", auth="me:secret"))
    assert wanted("owner/name", open_to_all, revision="abc").revision == "abc"
    with pytest.raises(ValueError, match="that of the start"):
        wanted("demo", open_to_all, revision="refs/pr/1")


def test_sizes_in_words() -> None:
    assert [size_words(n) for n in (0, 999, 1000, 9_960, 999_600, 1.2e6, 15e9, 2e12)] == [
        "0.0 B", "999 B", "1.0 kB", "10 kB", "1.0 MB", "1.2 MB", "15 GB", "2.0 TB",
    ]  # fmt: skip
    assert [seconds_words(n) for n in (0.001, 2, 12.4, 240, 36_000)] == [
        "0.1 s", "2.0 s", "12 s", "4 min", "10 h",
    ]  # fmt: skip
