"""Steps that are kept for later runs, and runs for which recording or memory fails. Recordings are
played on the CPU (`recorded`)."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sinkscope.attention_extractor import forecast, generate
from sinkscope.capture import forecast as forecasting
from sinkscope.capture.decoding import engine_words
from sinkscope.capture.engine import answering, choice
from sinkscope.capture.engine.cache import FixedCache
from sinkscope.capture.engine.recording import Recording, RecordingFailedError
from sinkscope.capture.engine.step import DecodeStep
from sinkscope.capture.engine.store import StepStore, kept_bytes, release_steps
from sinkscope.config import GenerationSettings, VARSettings
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle, load_model
from tests.capture.steps import (
    GREEDY,
    SAMPLED,
    VAR,
    handle,
    ids,
    inputs,
    looped,
    shared,
    steps_of,
)

__all__ = ["handle", "inputs", "shared"]

pytestmark = pytest.mark.tiny


def test_one_recording_serves_other_settings_prompts_and_lengths(
    handle: ModelHandle, photo: Image.Image, recorded: list[int]
) -> None:
    """Values that differ are written into the step's tensors; other fixed parts need a new step."""

    def both(prompt: str, var: VARSettings | None, **changes: Any) -> None:
        inputs = handle.prepare([photo], prompt)
        settings = dataclasses.replace(SAMPLED, **changes)
        steps = generate(handle, inputs, settings, var)
        loop = generate(handle, inputs, looped(settings), var)
        assert ids(steps) == ids(loop)
        torch.testing.assert_close(steps.shares, loop.shares, rtol=0, atol=1e-6)
        torch.testing.assert_close(
            steps.attention.float(), loop.attention.float(), rtol=1.1e-3, atol=1e-7
        )
        if var is not None and steps.var is not None and loop.var is not None:
            for a, b in zip(steps.var["layers"], loop.var["layers"], strict=True):
                assert a["moved"] == pytest.approx(b["moved"], abs=1e-6)
                assert a["selected"] == b["selected"]

    both("What is there?", VAR)
    both("What is there?", dataclasses.replace(VAR, keep=0.9))
    both("What is there?", dataclasses.replace(VAR, tau=2.0, max_sink_share=0.5))
    both("What is there?", dataclasses.replace(VAR, control="random", seed=4))
    both("And what is here?", VAR, seed=9)
    both("And what is here?", VAR, max_new_tokens=5)
    assert len(recorded) == 1
    both("What is there?", dataclasses.replace(VAR, dialect="paper"))
    both("What is there?", None)
    both("What is there?", None, layers=(0, 2))
    assert len(recorded) == 4
    both("What is there?", VAR)  # the first step is still kept
    assert len(recorded) == 4


def test_steps_are_few_and_go_with_the_model(
    tiny_folder: Path, photo: Image.Image, recorded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = load_model(str(tiny_folder), device="cpu", dtype="float32")
    inputs = handle.prepare([photo], "What is there?")
    for layer in range(4):
        generate(handle, inputs, dataclasses.replace(GREEDY, layers=(layer,)))
    generate(handle, inputs, GREEDY)
    assert [step.key.layers for step in steps_of(handle)] == [(1,), (2,), (3,), (0, 1, 2, 3)]
    size = steps_of(handle)[-1].nbytes
    cache = 2 * 4 * 2 * 16 * steps_of(handle)[-1].key.capacity * 4  # layers, key heads, width
    assert cache + 1000 < size < kept_bytes(handle)
    small = StepStore(most_bytes=size - 1)
    small.put(steps_of(handle)[-1])
    assert len(small) == 0
    gone = [weakref.ref(step) for step in steps_of(handle)]
    model = weakref.ref(handle.model)
    gc.collect()
    gc.disable()  # a released model frees its memory at once
    try:
        del handle
        assert all(step() is None for step in gone)
    finally:
        gc.enable()
    gc.collect()
    assert model() is None


def test_a_step_that_cannot_be_recorded_runs_as_it_is(
    handle: ModelHandle, inputs: PromptInputs, recorded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*about: Any) -> Recording:
        raise RecordingFailedError("RuntimeError: operation not permitted")

    monkeypatch.setattr(answering, "record", refused)
    reported: list[int] = []
    steps = generate(
        handle, inputs, SAMPLED, VAR, on_token=lambda i, token: reported.append(token.id)
    )
    assert steps.extra["engine"] == {
        "asked": "graph",
        "used": "step",
        "why": "the step cannot be recorded: RuntimeError: operation not permitted",
    }
    loop = generate(handle, inputs, looped(SAMPLED), VAR)
    assert reported == ids(steps) == ids(loop)
    torch.testing.assert_close(steps.shares, loop.shares, rtol=0, atol=1e-6)


@pytest.mark.parametrize("after", [0, 3], ids=["at the prompt", "at the fourth token"])
def test_a_full_device_falls_back_to_the_loop(
    handle: ModelHandle, inputs: PromptInputs, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    generate(handle, inputs, dataclasses.replace(GREEDY, layers=(0,)))
    assert kept_bytes(handle) > 0
    step, calls = DecodeStep.__call__, list[int]()

    def full(*about: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def filling(self: DecodeStep) -> None:
        calls.append(1)
        if len(calls) > after - 1:
            full()
        step(self)

    if after:
        monkeypatch.setattr(DecodeStep, "__call__", filling)
    else:
        monkeypatch.setattr(FixedCache, "begin", full)
    reported: list[tuple[int, int]] = []
    made = generate(
        handle,
        inputs,
        SAMPLED,
        VAR,
        on_token=lambda index, token: reported.append((index, token.id)),
    )
    assert made.extra["engine"] == {
        "asked": "graph",
        "used": "loop",
        "why": "its memory did not fit on the device",
    }
    assert reported == list(enumerate(ids(made)))  # each token is reported once
    assert ids(made) == ids(generate(handle, inputs, looped(SAMPLED), VAR))
    assert kept_bytes(handle) == 0


def test_a_run_that_fails_leaves_no_step_behind(handle: ModelHandle, inputs: PromptInputs) -> None:
    def broken(index: int, token: Any) -> None:
        raise RuntimeError("nobody listens")

    with pytest.raises(RuntimeError, match="nobody listens"):
        generate(handle, inputs, GREEDY, on_token=broken)
    assert kept_bytes(handle) == 0
    assert ids(generate(handle, inputs, GREEDY)) == ids(generate(handle, inputs, looped(GREEDY)))


def test_which_engine_runs(handle: ModelHandle, monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(engine: str) -> tuple[str, str]:
        settings = GenerationSettings(engine=engine)  # type: ignore[arg-type]
        made = choice.choose_engine(handle, settings)
        return made.used, made.why

    assert chosen("auto") == chosen("loop") == ("loop", "")
    assert chosen("graph") == ("graph", "")
    with monkeypatch.context() as own:
        own.setattr(ModelHandle, "device", torch.device("cuda", 0))
        assert chosen("auto") == ("graph", "") and chosen("loop") == ("loop", "")
        own.setattr(handle.model, "hf_device_map", {"a": 0, "b": "cpu"}, raising=False)
        assert chosen("auto") == ("loop", "the model is spread over several devices")
    with monkeypatch.context() as own:
        own.setattr(handle.model, "is_quantized", True, raising=False)
        assert chosen("graph") == ("loop", "the model is quantised")
    with monkeypatch.context() as own:
        own.setattr(ModelHandle, "device", torch.device("mps"))
        assert chosen("auto") == ("loop", "")
        assert chosen("graph") == ("loop", "on mps there is no graph")


def test_a_loop_in_place_of_the_graph_says_why(
    handle: ModelHandle, inputs: PromptInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handle.model, "is_quantized", True, raising=False)
    made = generate(handle, inputs, GREEDY)
    assert made.extra["engine"]["why"] == "the model is quantised"
    assert made.extra["engine"]["used"] == "loop"
    assert engine_words(made) == "made by the loop, because the model is quantised"
    assert engine_words(generate(handle, inputs, looped(GREEDY))) == ""


def test_the_forecast_knows_what_a_step_takes(
    handle: ModelHandle, inputs: PromptInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(handle, inputs, GREEDY)
    (step,) = steps_of(handle)
    guess, loop = (forecast(handle, inputs, own) for own in (GREEDY, looped(GREEDY)))
    assert guess.cache_bytes == step.cache.nbytes > loop.cache_bytes
    own = step.rows.nbytes + step.history.nbytes
    assert own < guess.working_bytes < 10 * own
    # Memory of kept steps counts as free, because they can be dropped.
    need = guess.payload_bytes + guess.cache_bytes
    monkeypatch.setattr(forecasting, "available_memory", lambda device: need - kept_bytes(handle))
    forecasting.check_memory(handle, inputs, GREEDY)
    release_steps(handle)
    monkeypatch.setattr(forecasting, "available_memory", lambda device: need - 1)
    with pytest.raises(ValueError, match="max_new_tokens"):
        forecasting.check_memory(handle, inputs, GREEDY)
