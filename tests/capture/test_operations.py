"""The cost of a prefill on a GPU in addition to plain SDPA: few operations, no reads by the host.

On a GPU each operation is a launch and each read a wait, and they limit the speed of a prefill of
some thousand tokens. Both are counted exactly, on the code path for GPUs, which also runs on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sinkscope.attention_extractor import Comparison, compare, generate
from sinkscope.benchmarks.shapes import build_handle, build_prompt
from sinkscope.capture.answer import score_answer
from sinkscope.capture.probes.base import Probe
from sinkscope.capture.probes.sink_scores import SinkScores
from sinkscope.capture.probes.trace_rows import TraceRows
from sinkscope.capture.session import attached
from sinkscope.config import GenerationSettings, VARSettings
from sinkscope.models import kernels
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle
from sinkscope.var_patch import VAR
from tests.operations import Operations

pytestmark = pytest.mark.tiny
LAYERS = 3  # layers of the tiny shape
SETTINGS = GenerationSettings(max_new_tokens=4)
EVERY = VARSettings((1, 2), tau=2.0, min_image_mass=0.0, max_sink_share=1.0, layers=(0, 1, 2))


@pytest.fixture(scope="module")
def handle() -> ModelHandle:
    return build_handle("tiny", "cpu", torch.float32)


@pytest.fixture(scope="module")
def inputs(handle: ModelHandle) -> PromptInputs:
    return build_prompt(handle, 300)


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "is_on_host", lambda device: False)
    real = torch.Tensor.cpu

    def cpu(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """A copy from the device, which here counts as a read."""
        torch.ops.aten._local_scalar_dense(torch.zeros(()))
        return real(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)


def prefill(
    handle: ModelHandle, inputs: PromptInputs, probes: list[Probe], var: VARSettings | None
) -> Operations:
    """One pass over the prompt, without what comes after it."""
    changes = [] if var is None else [VAR((var,))]
    for _ in range(2):  # the first call's set-up does not count
        with attached(handle, inputs, probes, changes, new_tokens=4), Operations() as counted:
            handle.model(**inputs.tensors, use_cache=True, logits_to_keep=1)
    return counted


def capture() -> list[Probe]:
    return [TraceRows((0, 1, 2), (0, 1, 2, 3), 4), SinkScores((1, 2))]


def test_capture_reads_nothing_and_adds_few_operations(
    handle: ModelHandle, inputs: PromptInputs
) -> None:
    plain = prefill(handle, inputs, [], None)
    ours = prefill(handle, inputs, capture(), None)
    assert ours.reads == plain.reads
    # Three for the sink scores, five for the rows of each layer; the rest once for all layers.
    assert ours.count - plain.count <= 8 * LAYERS + 20, ours.names - plain.names


def test_var_reads_nothing_and_adds_few_operations(
    handle: ModelHandle, inputs: PromptInputs
) -> None:
    plain = prefill(handle, inputs, [], None)
    alone = prefill(handle, inputs, [], EVERY)
    both = prefill(handle, inputs, capture(), EVERY)
    assert alone.reads == both.reads == plain.reads
    assert alone.count - plain.count <= 39 * LAYERS + 40, alone.names - plain.names
    # Scores and rows are computed once, for both.
    assert both.count - alone.count <= 3 * LAYERS + 20, both.names - alone.names


def test_a_run_reads_a_few_numbers_a_token(handle: ModelHandle, inputs: PromptInputs) -> None:
    def counted(run: Callable[[], object]) -> Operations:
        run()
        with Operations() as operations:
            run()
        return operations

    short = counted(lambda: generate(handle, inputs, GenerationSettings(max_new_tokens=1), EVERY))
    long = counted(lambda: generate(handle, inputs, GenerationSettings(max_new_tokens=5), EVERY))
    assert (long.reads - short.reads) / 4 <= 4


def test_a_fork_copies_nothing_and_leaves_the_prefix_as_it_is(
    handle: ModelHandle, inputs: PromptInputs
) -> None:
    first = compare(handle, inputs, SETTINGS, EVERY)
    cache = first.prefix.cache.layers
    before = [(layer.keys.data_ptr(), layer.keys.clone(), layer.values.clone()) for layer in cache]
    with Operations() as counted:
        fork = first.prefix.fork(handle, 2)
    # The family's stored positions are cloned; keys and values are the prefix's own.
    assert counted.count <= 1, counted.names
    for own, layer in zip(fork.layers, cache, strict=True):
        assert own.keys.data_ptr() == layer.keys.data_ptr()
        assert own.values.data_ptr() == layer.values.data_ptr()
    assert all(layer.keys.shape[0] == 2 for layer in fork.layers)
    again = compare(handle, inputs, SETTINGS, EVERY, prefix=first.prefix)
    assert again.prefix is first.prefix
    assert torch.equal(again.var.attention, first.var.attention)
    for layer, (place, keys, values) in zip(cache, before, strict=True):
        assert layer.keys.data_ptr() == place
        assert torch.equal(layer.keys, keys) and torch.equal(layer.values, values)


def test_the_same_text_is_one_pass_with_few_reads(
    handle: ModelHandle, inputs: PromptInputs
) -> None:
    def counted(first: Comparison, tokens: int) -> Operations:
        settings = GenerationSettings(max_new_tokens=tokens)
        with handle.lock, Operations() as operations:
            score_answer(handle, inputs, settings, EVERY, first.baseline, first.prefix)
        return operations

    few, many = (
        counted(compare(handle, inputs, GenerationSettings(max_new_tokens=n), EVERY), n)
        for n in (4, 12)
    )
    assert few.reads == many.reads <= 30
    assert few.count == many.count
