"""One run of the model: a batch of answers to one prompt, each with its own VAR settings or none.

`generate` is a batch of one, a free-running comparison a batch of two that continues from a shared
prefix, and `retell` passes a given text through the model once instead of generating it. All three
hook the same things in (the plan, the recorders, the probes) and make the same `GenerationTrace`.
The handle's lock must be held around each.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import StoppingCriteriaList

from capture.prefix import Prefix
from capture.prompt import kept_positions, prompt_trace
from capture.recorder import RowFanOut, TraceRecorder
from capture.run import (
    captured,
    decide,
    distribution_errors_named,
    on_device,
    seeded,
    watching,
)
from capture.sinks import SinkObserver
from capture.tokens import TextPieces, TokenProbe, describe_token
from capture.trace import GeneratedToken, GenerationTrace
from config import GenerationSettings, VARSettings
from models.attention import ForwardPlan, RowRecorder, running
from models.family import PromptInputs
from models.loading import ModelHandle
from var_patch import VARIntervention, describe, patch

OnRowToken = Callable[[int, int, GeneratedToken], None]  # batch row, index, token


def answer(
    handle: ModelHandle,
    inputs: PromptInputs,
    settings: GenerationSettings,
    var: Sequence[VARSettings | None],
    *,
    prefix: Prefix | None = None,
    mark: VARSettings | None = None,
    on_token: OnRowToken | None = None,
    stop: threading.Event | None = None,
) -> list[GenerationTrace]:
    """Generate one answer a batch row.

    Args:
        handle: a loaded model.
        inputs: the prompt, the same for every row.
        settings: length, sampling, what to capture.
        var: VAR settings of each row; None is the plain model.
        prefix: continue from it instead of from nothing; needed for more than one row.
        mark: whose dimensions and threshold mark the sinks in the traces; None: those of the row
            that has VAR, else the model's profile. With a prefix they must be its dimensions.
        on_token: called with row, index and token as each is chosen.
        stop: set it to end the run after the current token.

    Returns:
        One trace a row, each cut at its own end.

    Raises:
        ValueError: a layer, head, dimension or threshold that this model does not have.
    """
    rows = len(var)
    if rows > 1 and prefix is None:
        raise ValueError(f"var has {rows} rows; more than one needs a prefix to continue from.")
    intervention = _intervention(handle, inputs, settings.max_new_tokens, var, prefix)
    mark = mark or next((own for own in var if own is not None), None)
    observer = _observer(handle, mark, prefix)
    decoding = decide(handle, settings, inputs.layout.length)
    probes = [
        TokenProbe(handle.processor.tokenizer, batch_row=row, on_token=_for_row(on_token, row))
        for row in range(rows)
    ]
    recorders = [
        _recorder(handle, inputs, settings, settings.max_new_tokens, row) for row in range(rows)
    ]
    asked = kept_positions(inputs.layout, settings)
    readers = [_reader(handle, inputs, settings, asked, row) for row in range(rows)]
    plan = _plan(inputs, recorders, readers, asked, intervention, observer, prefix)
    began = time.perf_counter()
    with (
        running(handle.stack, plan),
        watching(handle, probes),
        seeded(settings.seed, handle.device),
        distribution_errors_named(settings),
        torch.no_grad(),
    ):
        start = _start(handle, inputs, rows, prefix)
        ending = decoding.ending(handle, probes, stop)
        handle.model.generate(
            **start,
            generation_config=decoding.config,
            stopping_criteria=StoppingCriteriaList([ending]),
        )
    seconds = time.perf_counter() - began
    return [
        _trace(
            handle,
            inputs,
            settings,
            tuple(probes[row].tokens),
            recorders[row],
            observer,
            ending.finish(row),
            seconds,
            None if own is None or intervention is None else (own, intervention, row),
            readers[row],
            asked,
            decoding.about,
        )
        for row, own in enumerate(var)
    ]


def retell(
    handle: ModelHandle,
    inputs: PromptInputs,
    settings: GenerationSettings,
    var: VARSettings,
    told: GenerationTrace,
    prefix: Prefix,
) -> GenerationTrace:
    """What the model with VAR thinks of a given answer: one pass over it, nothing generated.

    Row t and probability t are those that generating token t after the same tokens would have had.

    Args:
        handle: a loaded model.
        inputs: the prompt of `told`.
        settings: what to capture.
        var: VAR settings.
        told: the answer, as a trace of the plain model.
        prefix: of the same prompt.

    Returns:
        A trace with the tokens of `told` and the probabilities, ranks and attention under VAR.
    """
    count = len(told.tokens)
    intervention = _intervention(handle, inputs, count, [var], prefix)
    assert intervention is not None
    observer = _observer(handle, var, prefix)
    recorder = _recorder(handle, inputs, settings, count, 0)
    asked = kept_positions(inputs.layout, settings)
    reader = _reader(handle, inputs, settings, asked, 0)
    plan = _plan(inputs, [recorder], [reader], asked, intervention, observer, prefix)
    if plan.all_rows_from is None:
        plan.all_rows_from = inputs.layout.length - 1
    ids = torch.tensor([[*inputs.token_ids, *(token.id for token in told.tokens[:-1])]])
    began = time.perf_counter()
    with running(handle.stack, plan), torch.no_grad():
        cache = prefix.fork(handle, 1)
        logits = handle.model(
            input_ids=ids[:, prefix.length :].to(handle.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=count,
        ).logits[0]
    tokenizer, pieces = handle.processor.tokenizer, TextPieces(handle.processor.tokenizer)
    tokens = tuple(
        describe_token(tokenizer, pieces, row, token.id)
        for row, token in zip(logits, told.tokens, strict=True)
    )
    seconds = time.perf_counter() - began
    made_by = (var, intervention, 0)
    return _trace(
        handle,
        inputs,
        settings,
        tokens,
        recorder,
        observer,
        told.finish,
        seconds,
        made_by,
        reader,
        asked,
        told.extra.get("decoding", {}),
    )


def _start(
    handle: ModelHandle, inputs: PromptInputs, rows: int, prefix: Prefix | None
) -> dict[str, Any]:
    """What `generate` begins with: the whole prompt, or its ids and the keys of the prefix."""
    if prefix is None:
        return dict(on_device(inputs.tensors, handle.device))
    text = ("input_ids", "attention_mask")
    tensors = on_device(
        {name: inputs.tensors[name].repeat(rows, 1) for name in text}, handle.device
    )
    return {**tensors, "past_key_values": prefix.fork(handle, rows)}


def _intervention(
    handle: ModelHandle,
    inputs: PromptInputs,
    new_tokens: int,
    var: Sequence[VARSettings | None],
    prefix: Prefix | None,
) -> VARIntervention | None:
    if all(own is None for own in var):
        return None
    known = None if prefix is None else prefix.scores
    return patch(var, inputs.layout, handle.info, new_tokens, known)


def _observer(
    handle: ModelHandle, var: VARSettings | None, prefix: Prefix | None
) -> SinkObserver | None:
    """Marks sinks by VAR's dimensions, else by the model's profile; None where neither is known."""
    if var is not None:
        observer = SinkObserver(var.dims, var.tau, var.dialect, var.layers or ())
    elif handle.profile is not None:
        observer = SinkObserver(handle.profile.dims, handle.profile.tau)
    else:
        return None
    if prefix is not None:
        observer.begin_with(prefix.scores)
    return observer


def _recorder(
    handle: ModelHandle,
    inputs: PromptInputs,
    settings: GenerationSettings,
    tokens: int,
    row: int,
) -> TraceRecorder:
    return TraceRecorder(
        inputs.layout,
        *captured(handle, settings),
        tokens,
        batch_row=row,
        reduce_heads=settings.reduce_heads,
        pinned=handle.device.type == "cuda",
    )


def _reader(
    handle: ModelHandle,
    inputs: PromptInputs,
    settings: GenerationSettings,
    asked: range,
    row: int,
) -> TraceRecorder | None:
    """Keeps the rows of the prompt's own tokens in passing; None where none are wanted."""
    if not asked:
        return None
    return TraceRecorder(
        inputs.layout,
        *captured(handle, settings),
        len(asked),
        batch_row=row,
        reduce_heads=settings.reduce_heads,
        pinned=handle.device.type == "cuda",
        first=asked.start,
    )


def _plan(
    inputs: PromptInputs,
    recorders: Sequence[TraceRecorder],
    readers: Sequence[TraceRecorder | None],
    asked: range,
    intervention: VARIntervention | None,
    observer: SinkObserver | None,
    prefix: Prefix | None,
) -> ForwardPlan:
    all_of_them = [*recorders, *(reader for reader in readers if reader is not None)]
    recorder: RowRecorder = all_of_them[0] if len(all_of_them) == 1 else RowFanOut(all_of_them)
    start = 0 if prefix is None else prefix.length
    length, batch = inputs.layout.length, len(recorders)
    return ForwardPlan(
        recorder,
        intervention,
        length,
        observer,
        all_rows_from=asked.start if asked else None,
        start=start,
        batch=batch,
    )


def _for_row(on_token: OnRowToken | None, row: int) -> Callable[[int, GeneratedToken], None] | None:
    if on_token is None:
        return None
    return lambda index, token: on_token(row, index, token)


def _trace(
    handle: ModelHandle,
    inputs: PromptInputs,
    settings: GenerationSettings,
    tokens: tuple[GeneratedToken, ...],
    recorder: TraceRecorder,
    observer: SinkObserver | None,
    finish: str,
    seconds: float,
    var: tuple[VARSettings, VARIntervention, int] | None,
    reader: TraceRecorder | None,
    asked: range,
    decoding: Mapping[str, Any],
) -> GenerationTrace:
    sinks = () if observer is None else observer.found()
    attention, shares, entropy = recorder.finish(len(tokens))
    report = None
    if var is not None:
        own, intervention, row = var
        report = {
            "settings": dataclasses.asdict(own),
            **dataclasses.asdict(intervention.report(row, len(tokens))),
        }
    return GenerationTrace(
        tokens=tokens,
        layout=inputs.layout,
        images=inputs.images,
        prompt=inputs.prompt,
        prompt_tokens=inputs.token_texts,
        attention=attention,
        layers=recorder.layers,
        heads=recorder.heads,
        shares=shares,
        entropy=entropy,
        sinks=sinks,
        applied=() if var is None else (describe(var[0]),),
        model=handle.info,
        settings=dataclasses.asdict(settings),
        seed=settings.seed,
        finish=finish,
        seconds=seconds,
        var=report,
        extra={"decoding": decoding},
        prompt_rows=None
        if reader is None
        else prompt_trace(handle, inputs, asked, [reader], sinks),
    )
