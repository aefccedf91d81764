"""Runs that wait for each other, and settings in the form that sliders give."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sinkscope.attention_extractor import compare, generate
from sinkscope.capture import forecast as forecasting
from sinkscope.config import GenerationSettings, VARSettings
from sinkscope.models.loading import ModelHandle, load_model

pytestmark = pytest.mark.tiny
SHORT = GenerationSettings(max_new_tokens=2)


@pytest.fixture(scope="module")
def handle(tiny_folder: Path) -> ModelHandle:
    return load_model(str(tiny_folder), device="cpu", dtype="float32")


@pytest.mark.parametrize(
    "run",
    [
        lambda handle, inputs: generate(handle, inputs, SHORT),
        lambda handle, inputs: compare(handle, inputs, SHORT, VARSettings(dims=(3,), tau=2.0)),
    ],
    ids=["generate", "compare"],
)
def test_another_runs_memory_refuses_none(
    handle: ModelHandle,
    photo: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[[ModelHandle, Any], Any],
) -> None:
    """Memory of the previous run is free again when this run's turn comes."""
    inputs = handle.prepare([photo], "What?")
    asked = []

    def free(device: Any) -> int:
        asked.append(busy.is_set())
        return 10 if busy.is_set() else 10**12

    busy, made = threading.Event(), []
    monkeypatch.setattr(forecasting, "available_memory", free)
    busy.set()
    with handle.lock:
        waiting = threading.Thread(target=lambda: made.append(run(handle, inputs)))
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive() and asked == []
        busy.clear()
    waiting.join(60)
    assert len(made) == 1 and asked


def test_a_mistake_does_not_wait(handle: ModelHandle, photo: Image.Image) -> None:
    inputs = handle.prepare([photo], "What?")
    with handle.lock, pytest.raises(ValueError, match=r"layers has \[99\]"):
        generate(handle, inputs, GenerationSettings(layers=(99,)))


@pytest.mark.parametrize("number", [int, np.float32, np.float64, np.int64])
def test_a_slider_may_give_whole_numbers(
    handle: ModelHandle, photo: Image.Image, number: Callable[[int], Any]
) -> None:
    inputs = handle.prepare([photo], "What?")
    one, two = number(1), number(2)
    sampled = GenerationSettings(2, temperature=one, top_p=one, repetition_penalty=two)
    trace = generate(handle, inputs, sampled, VARSettings(dims=(3,), tau=two, keep=one))
    assert len(trace.tokens) == 2 and trace.settings["temperature"] == 1.0
    json.dumps(dict(trace.settings))
