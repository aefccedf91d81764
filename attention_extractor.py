"""Generating an answer while keeping the attention behind every token of it.

`generate` runs transformers' own `generate`, unmodified, with three things hooked in for the length
of the run and taken
out again whatever happens: a plan for the attention function (`models.attention`), a recorder of
rows (`capture.recorder`) and a probe of the logits (`capture.tokens`). It returns a frozen
`GenerationTrace`.

Which row explains which token is stated in `capture.trace` and tested in
`tests/test_row_convention.py`.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable

from transformers import StoppingCriteriaList

from capture.recorder import TraceRecorder
from capture.run import (
    Chosen,
    RunOutOfMemoryError,
    StopAtOnce,
    captured,
    finish_of,
    generation_config,
    memory_errors_named,
    on_device,
    seeded,
    watching,
)
from capture.sinks import SinkObserver
from capture.tokens import TokenProbe
from capture.trace import GeneratedToken, GenerationTrace
from config import GenerationSettings, VARSettings
from models.attention import ForwardPlan, running
from models.family import PromptInputs
from models.loading import ModelHandle

__all__ = ["GenerationTrace", "RunOutOfMemoryError", "generate"]

OnToken = Callable[[int, GeneratedToken], None]


def generate(
    handle: ModelHandle,
    inputs: PromptInputs,
    settings: GenerationSettings | None = None,
    var: VARSettings | None = None,
    *,
    on_token: OnToken | None = None,
    stop: threading.Event | None = None,
) -> GenerationTrace:
    """Generate an answer with its attention.

    Args:
        handle: a loaded model; its lock is taken for the length of the run.
        inputs: from `handle.prepare`.
        settings: length, sampling, what to capture.
        var: apply VAR with these settings; None is the plain model.
        on_token: called from this thread with index and token as each is chosen.
        stop: set it from another thread to end the run after the current token; the partial trace
            is returned.

    Returns:
        The trace. `trace.attention[t]` is the query row of the forward pass that predicted token t
        (method.md).

    Raises:
        ValueError: a setting that this model does not have (a layer, a head, a VAR dimension).
        RunOutOfMemoryError: the device is full.
    """
    settings = settings or GenerationSettings()
    layers, heads = captured(handle, settings)
    observer = _observer(handle, var)
    stopper = StopAtOnce(stop)
    probe = TokenProbe(handle.processor.tokenizer, on_token=on_token)
    began = time.perf_counter()
    with handle.lock, memory_errors_named(inputs, settings):
        recorder = TraceRecorder(
            inputs.layout,
            layers,
            heads,
            settings.max_new_tokens,
            pinned=handle.device.type == "cuda",
        )
        plan = ForwardPlan(recorder, None, inputs.layout.length, observer)
        with (
            running(handle.stack, plan),
            watching(handle, [probe]),
            seeded(settings.seed, handle.device),
        ):
            handle.model.generate(
                **on_device(inputs.tensors, handle.device),
                generation_config=generation_config(handle, settings),
                stopping_criteria=StoppingCriteriaList([Chosen([probe]), stopper]),
            )
        attention, shares, entropy = recorder.finish(len(probe.tokens))
    return GenerationTrace(
        tokens=tuple(probe.tokens),
        layout=inputs.layout,
        images=inputs.images,
        prompt=inputs.prompt,
        prompt_tokens=inputs.token_texts,
        attention=attention,
        layers=layers,
        heads=heads,
        shares=shares,
        entropy=entropy,
        sinks=() if observer is None else observer.found(),
        applied=(),
        model=handle.info,
        settings=dataclasses.asdict(settings),
        seed=settings.seed,
        finish=finish_of(handle, probe, stopper),
        seconds=time.perf_counter() - began,
    )


def _observer(handle: ModelHandle, var: VARSettings | None) -> SinkObserver | None:
    """Watches for sinks with VAR's own dimensions, else with the model's profile; None where
    neither is known."""
    if var is not None:
        return SinkObserver(var.dims, var.tau, var.dialect)
    if handle.profile is not None:
        return SinkObserver(handle.profile.dims, handle.profile.tau)
    return None
