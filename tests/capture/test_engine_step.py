"""What a recording needs of a step, and what becomes of a run when it, or the memory, is not there.

There is no GPU here. A step is run on tensors of the device `meta`, which have sizes and no values,
so that anything that reads one is found; trial runs and replays are played on the CPU.
"""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sinkscope.attention_extractor import GenerationTrace, compare, generate
from sinkscope.capture.decoding import engine_words
from sinkscope.capture.engine import answering, choice
from sinkscope.capture.engine.cache import FixedCache
from sinkscope.capture.engine.choosing import (
    Rule,
    asked_of_generate,
    chosen_behind,
    processors_of,
)
from sinkscope.capture.engine.recording import Recording, RecordingFailedError, try_out
from sinkscope.capture.engine.step import DecodeStep
from sinkscope.capture.engine.store import NAME, StepStore, kept_bytes, let_go
from sinkscope.capture.run import decide
from sinkscope.config import GenerationSettings, VARSettings
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle, load_model

pytestmark = pytest.mark.tiny

GREEDY = GenerationSettings(max_new_tokens=6, engine="graph")
SAMPLED = dataclasses.replace(GREEDY, temperature=1.2, top_p=0.9, repetition_penalty=1.2, seed=3)
VAR = VARSettings((3, 40), tau=0.5, keep=0.3, layers=(1, 2), min_image_mass=0, max_sink_share=1)


@pytest.fixture(scope="module")
def shared(tiny_folder: Path) -> ModelHandle:
    made = load_model(str(tiny_folder), device="cpu", dtype="float32")
    made.model.generation_config.eos_token_id = None
    return made


@pytest.fixture
def handle(shared: ModelHandle) -> ModelHandle:
    let_go(shared)
    return shared


@pytest.fixture(scope="module")
def inputs(shared: ModelHandle, photo: Image.Image) -> PromptInputs:
    return shared.prepare([photo], "What is there?")


def ids(trace: GenerationTrace) -> list[int]:
    return [token.id for token in trace.tokens]


def looped(settings: GenerationSettings) -> GenerationSettings:
    return dataclasses.replace(settings, engine="loop")


def steps_of(handle: ModelHandle) -> list[DecodeStep]:
    store: StepStore = handle.kept[NAME]
    return list(store._steps.values())


class _Copies(TorchDispatchMode):
    """Notes operations that read a value, or whose tensors are on several devices."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.count += 1
        name = str(func)
        places = {t.device.type for t in _tensors((args, kwargs, out)) if t.dim() or "copy" in name}
        if len(places) > 1 or "_local_scalar_dense" in name or "nonzero" in name:
            self.found.append(f"{name} on {sorted(places)}")
        return out


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def without_values(step: DecodeStep, model: torch.nn.Module) -> None:
    """Put everything that the step holds, and the model, on `meta`."""
    known: dict[int, Any] = {}

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in known:
                known[id(value)] = (
                    torch.empty_strided(
                        value.shape, value.stride(), dtype=value.dtype, device="meta"
                    ),
                    value,
                )
            return known[id(value)][0]
        if isinstance(value, dict):
            return {
                moved(k) if isinstance(k, torch.device) else k: moved(v) for k, v in value.items()
            }
        if isinstance(value, list | tuple) and type(value) in (list, tuple):
            return type(value)(moved(v) for v in value)
        if isinstance(value, torch.device):
            return torch.device("meta")
        if (
            id(value) not in known
            and type(value).__module__.startswith("sinkscope.")
            and hasattr(value, "__dict__")
        ):
            known[id(value)] = (value, value)
            for name, held in list(vars(value).items()):
                if name not in ("_stack", "_embed", "_forward"):
                    new = moved(held)
                    if new is not held:
                        object.__setattr__(value, name, new)
        return value

    moved(step)
    for layer in step.cache.layers:
        for name in ("keys", "values", "at"):
            setattr(layer, name, moved(getattr(layer, name)))
        layer.device = torch.device("meta")
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None:
                module._parameters[name] = torch.nn.Parameter(moved(weight), False)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = moved(buffer)


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_step_reads_nothing_and_copies_nothing_between_devices(
    tiny_folder: Path, photo: Image.Image, settings: GenerationSettings, monkeypatch: Any
) -> None:
    """With VAR in one row of two; all that a recording may not do is found here."""
    handle = load_model(str(tiny_folder), device="cpu", dtype="float32")
    inputs = handle.prepare([photo], "What is there?")
    monkeypatch.setattr(DecodeStep, "end", lambda self: None)  # leave it as it is in the middle
    compare(handle, inputs, settings, VAR)
    (step,) = steps_of(handle)
    without_values(step, handle.model)
    with torch.no_grad(), _Copies() as copies:
        step()
        step()
    assert copies.count > 200
    assert copies.found == []
    assert {t.device.type for t in step.moving()} == {"meta"}
    with _Copies() as copies:  # it finds what it must
        step.position.copy_(torch.zeros(1, dtype=torch.long))
        for read in (step.position.item, step.position.cpu, step.position.tolist):
            with pytest.raises(Exception, match="meta"):
                read()
    assert copies.found


def played(
    step: Callable[[], None], moving: Sequence[Tensor], device: torch.device, warm_ups: int
) -> Recording:
    """`record` without a GPU: tried out, put back, and then run anew each time."""
    assert warm_ups == 1
    try_out(step, moving, device, 2)
    again = weakref.ref(step)  # a graph does not hold what was recorded
    return Recording(lambda: again()(), 1000)  # type: ignore[misc]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Recordings are played; how many were made."""
    made: list[int] = []

    def record(step: Any, *about: Any) -> Recording:
        made.append(id(step))
        return played(step, *about)

    monkeypatch.setattr(answering, "can_record", lambda device: True)
    monkeypatch.setattr(answering, "runs_ahead", lambda device: True)
    monkeypatch.setattr(answering, "record", record)
    return made


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_trying_a_step_out_changes_nothing(
    handle: ModelHandle, inputs: PromptInputs, settings: GenerationSettings, recorded: list[int]
) -> None:
    for _ in range(2):
        steps = compare(handle, inputs, settings, VAR)
        loop = compare(handle, inputs, looped(settings), VAR)
        for mine, theirs in ((steps.baseline, loop.baseline), (steps.var, loop.var)):
            assert mine.extra["engine"] == {"asked": "graph", "used": "graph"}
            assert ids(mine) == ids(theirs)
            torch.testing.assert_close(mine.shares, theirs.shares, rtol=0, atol=1e-6)
        assert steps.var.var is not None and loop.var.var is not None
        for a, b in zip(steps.var.var["layers"], loop.var.var["layers"], strict=True):
            assert (a["moved"], a["selected"]) == pytest.approx((b["moved"], b["selected"]))
    assert len(recorded) == 1


def test_one_recording_serves_other_settings_prompts_and_lengths(
    handle: ModelHandle, photo: Image.Image, recorded: list[int]
) -> None:
    """What differs is written into its tensors; only what is fixed in it makes another one."""

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
    both("What is there?", VAR)  # the first is still there
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
    gc.disable()  # a model that is let go gives its memory back at once
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
    told: list[int] = []
    steps = generate(handle, inputs, SAMPLED, VAR, on_token=lambda i, token: told.append(token.id))
    assert steps.extra["engine"] == {
        "asked": "graph",
        "used": "step",
        "why": "the step cannot be recorded: RuntimeError: operation not permitted",
    }
    loop = generate(handle, inputs, looped(SAMPLED), VAR)
    assert told == ids(steps) == ids(loop)
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
    told: list[tuple[int, int]] = []
    made = generate(
        handle, inputs, SAMPLED, VAR, on_token=lambda index, token: told.append((index, token.id))
    )
    assert made.extra["engine"] == {
        "asked": "graph",
        "used": "loop",
        "why": "its memory did not fit on the device",
    }
    assert told == list(enumerate(ids(made)))  # each once
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


def test_known_settings_choose_as_generate_would(handle: ModelHandle, inputs: PromptInputs) -> None:
    prompt = inputs.tensors["input_ids"]
    for changes in (
        {},
        {"repetition_penalty": 1.3},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 1.4, "top_p": 0.5, "top_k": 7, "repetition_penalty": 0.8},
    ):
        settings = GenerationSettings(**changes)  # type: ignore[arg-type]
        decoding = decide(handle, settings, inputs.layout.length)
        asked = asked_of_generate(handle, decoding.config, prompt)
        known = processors_of(handle, decoding.config, decoding.about["used"], prompt)
        sampled = bool(decoding.config.do_sample)
        mine, theirs = Rule.of(known, sampled), Rule.of(asked, sampled)
        assert mine is not None and theirs is not None and mine.key == theirs.key
        scores = torch.randn(1, 500, generator=torch.Generator().manual_seed(1)) * 3
        ids = torch.randint(0, 500, (1, 60), generator=torch.Generator().manual_seed(2))
        seen = torch.zeros(1, 500, dtype=torch.bool).scatter_(1, ids, True)
        for seed in range(20):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                one = mine.choose(scores.clone(), seen)
                torch.manual_seed(seed)
                assert int(one) == int(chosen_behind(asked, sampled, ids, scores))


def test_the_text_model_can_be_compiled(
    handle: ModelHandle, inputs: PromptInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced as for a compiler, which this test leaves out: it would take minutes."""
    compile_, traced = torch.compile, list[int]()

    def backend(graph: Any, examples: Any) -> Any:
        traced.append(1)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda f, **k: compile_(f, backend=backend, **k))
    settings = dataclasses.replace(GREEDY, compile=True)
    made = generate(handle, inputs, settings, VAR)
    again = generate(handle, inputs, settings, dataclasses.replace(VAR, keep=0.9))
    assert len(traced) == 1  # whole, and once
    for mine, var in ((made, VAR), (again, dataclasses.replace(VAR, keep=0.9))):
        loop = generate(handle, inputs, looped(GREEDY), var)
        assert ids(mine) == ids(loop)
        torch.testing.assert_close(mine.shares, loop.shares, rtol=0, atol=1e-6)
