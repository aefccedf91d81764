"""What a recording requires of a step, and runs for which recording or memory fails.

There is no GPU here. A step is run on tensors of the device `meta`, which have sizes but no values,
so that every operation that reads a value is found. Trial runs and replays are played on the CPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sinkscope.attention_extractor import compare, generate
from sinkscope.capture import host_copies
from sinkscope.capture.engine import answering, history
from sinkscope.capture.engine.choosing import (
    Rule,
    asked_of_generate,
    chosen_by_processors,
    processors_of,
)
from sinkscope.capture.engine.recording import RecordingFailedError, record
from sinkscope.capture.engine.step import DecodeStep
from sinkscope.capture.run import decoding_for
from sinkscope.config import GenerationSettings
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


class _Copies(TorchDispatchMode):
    """Records operations that read a value, or whose tensors are on several devices."""

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
    """Move everything that the step holds, and the model, to `meta`."""
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
    """With VAR in one row of two; finds everything that a recording must not do."""
    handle = load_model(str(tiny_folder), device="cpu", dtype="float32")
    inputs = handle.prepare([photo], "What is there?")
    monkeypatch.setattr(DecodeStep, "end", lambda self: None)  # keep the state of a run in progress
    compare(handle, inputs, settings, VAR)
    (step,) = steps_of(handle)
    without_values(step, handle.model)
    with torch.no_grad(), _Copies() as copies:
        step()
        step()
    assert copies.count > 200
    assert copies.found == []
    assert {t.device.type for t in step.changing_tensors()} == {"meta"}
    with _Copies() as copies:  # the check itself works
        step.position.copy_(torch.zeros(1, dtype=torch.long))
        for read in (step.position.item, step.position.cpu, step.position.tolist):
            with pytest.raises(Exception, match="meta"):
                read()
    assert copies.found


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


@dataclasses.dataclass
class Arrival:
    """An event after a copy; `waited` counts the waits for events."""

    waited: list[int]

    def synchronize(self) -> None:
        self.waited.append(1)


def test_the_host_waits_once_a_token_and_once_a_block(
    handle: ModelHandle, inputs: PromptInputs, recorded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[int] = []
    for part in (answering, history):
        monkeypatch.setattr(part, "needs_host_copy", lambda device: True)
    monkeypatch.setattr(
        host_copies, "pinned_bytes", lambda size: torch.empty(size, dtype=torch.uint8)
    )
    monkeypatch.setattr(host_copies, "record_event", lambda device: Arrival(waited))
    monkeypatch.setattr(history.Shape, "block", lambda self, tokens: 2)
    pair = compare(handle, inputs, GREEDY, VAR)
    tokens = GREEDY.max_new_tokens
    assert len(waited) == tokens + -(-(tokens - 1) // 2)
    loop = compare(handle, inputs, looped(GREEDY), VAR)
    for mine, theirs in ((pair.baseline, loop.baseline), (pair.var, loop.var)):
        assert ids(mine) == ids(theirs)
        torch.testing.assert_close(mine.shares, theirs.shares, rtol=0, atol=1e-6)
        torch.testing.assert_close(
            mine.attention.float(), theirs.attention.float(), rtol=1.1e-3, atol=1e-7
        )


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
        decoding = decoding_for(handle, settings, inputs.layout.length)
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
                assert int(one) == int(chosen_by_processors(asked, sampled, ids, scores))


def test_the_text_model_can_be_compiled(
    handle: ModelHandle, inputs: PromptInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced as for a compiler; the compiler itself is left out, because it would take minutes."""
    compile_, traced = torch.compile, list[int]()

    def backend(graph: Any, examples: Any) -> Any:
        traced.append(1)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda f, **k: compile_(f, backend=backend, **k))
    settings = dataclasses.replace(GREEDY, compile=True)
    stages: list[str] = []
    made = generate(handle, inputs, settings, VAR, on_stage=stages.append)
    again = generate(handle, inputs, settings, dataclasses.replace(VAR, keep=0.9))
    assert len(traced) == 1  # in one graph, and only once
    assert stages == [answering.COMPILING]
    for mine, var in ((made, VAR), (again, dataclasses.replace(VAR, keep=0.9))):
        loop = generate(handle, inputs, looped(GREEDY), var)
        assert ids(mine) == ids(loop)
        torch.testing.assert_close(mine.shares, loop.shares, rtol=0, atol=1e-6)


@pytest.fixture
def made_up_cuda(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The parts of `torch.cuda` that recording uses, as far as they can be imitated here."""
    seen: dict[str, Any] = {"set": [], "fails": None}

    class Numbers:
        def clone_state(self) -> str:
            return "state"

        def graphsafe_set_state(self, state: str) -> None:
            seen["generator"] = state

    class Graph:
        def replay(self) -> None:
            seen["replayed"] = True

    @contextmanager
    def graph(made: Graph, *, stream: Any, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local" and isinstance(stream, SimpleNamespace)
        if seen["fails"] is not None:
            raise seen["fails"]
        yield

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, part in {
        "Stream": lambda device: stream,
        "current_stream": lambda device: stream,
        "stream": lambda given: nullcontext(),
        "default_generators": (Numbers(),),
        "current_device": lambda: 0,
        "empty_cache": lambda: None,
        "memory_reserved": lambda device: 7,
        "synchronize": lambda device: None,
        "get_rng_state": lambda device: "drawn",
        "set_rng_state": lambda state, device: seen["set"].append(state),
        "CUDAGraph": Graph,
        "graph": graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, part)
    return seen


def test_recording_puts_back_what_moved(made_up_cuda: dict[str, Any]) -> None:
    moving = [torch.zeros(2), torch.arange(3)]
    ran: list[float] = []

    def step() -> None:
        ran.append(float(moving[0][0]))
        for tensor in moving:
            tensor.add_(1)

    device = torch.device("cuda", 0)
    made = record(step, moving, device, 3)
    assert ran == [0, 0, 0, 0]  # tried out three times, then recorded
    assert moving[0].tolist() == [0, 0] and moving[1].tolist() == [0, 1, 2]
    assert made.nbytes == 0 and set(made_up_cuda["set"]) == {"drawn"}
    made.replay()
    assert made_up_cuda["replayed"] and "generator" not in made_up_cuda

    made_up_cuda["fails"] = RuntimeError("\noperation not permitted when stream is capturing\nmore")
    with pytest.raises(RecordingFailedError, match="RuntimeError: operation not permitted when"):
        record(step, moving, device, 1)
    assert made_up_cuda["generator"] == "state"  # a failed capture would leave it changed
    assert moving[0].tolist() == [0, 0]
    made_up_cuda["fails"] = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        record(step, moving, device, 1)
