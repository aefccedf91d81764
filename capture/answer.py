"""One run of the model: a batch of answers to one prompt, each with its own VAR settings or none.

`generate` is a batch of one, a free-running comparison a batch of two that continues from a shared
prefix, and `score_answer` passes a given text through the model once instead of generating it. All
three attach the same probes (`_Probes`) and make the same `GenerationTrace`. The handle's lock must
be held around each.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, StoppingCriteriaList

from sinkscope.capture.prefix import Prefix
from sinkscope.capture.probes.answer_tokens import AnswerTokens
from sinkscope.capture.probes.base import Probe
from sinkscope.capture.probes.sink_scores import SinkScores
from sinkscope.capture.probes.trace_rows import TraceRows
from sinkscope.capture.prompt import kept_positions, prompt_trace
from sinkscope.capture.run import (
    captured,
    decide,
    distribution_errors_named,
    on_device,
    seeded,
)
from sinkscope.capture.session import Session, attached
from sinkscope.capture.tokens import describe_token, with_texts
from sinkscope.capture.trace import GeneratedToken, GenerationTrace
from sinkscope.config import GenerationSettings, VARSettings
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle
from sinkscope.models.token_texts import TextPieces
from sinkscope.var_patch import VAR, describe

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
    mark = mark or next((own for own in var if own is not None), None)
    decoding = decide(handle, settings, inputs.layout.length)
    probes = _Probes.of(handle, inputs, settings, settings.max_new_tokens, rows, mark)
    answers = [AnswerTokens(handle.tokenizer, row, _for_row(on_token, row)) for row in range(rows)]
    interventions = [VAR(tuple(var))] if any(own is not None for own in var) else []
    began = time.perf_counter()
    with (
        attached(
            handle,
            inputs,
            [*probes.all(), *answers],
            interventions,
            batch=rows,
            new_tokens=settings.max_new_tokens,
            prefix=prefix,
        ) as session,
        seeded(settings.seed, handle.device),
        distribution_errors_named(settings),
    ):
        start = begin_with(handle, inputs, rows, prefix)
        ending = decoding.ending(handle, [session[one] for one in answers], stop)
        handle.model.generate(
            **start,
            generation_config=decoding.config,
            stopping_criteria=StoppingCriteriaList([ending]),
        )
    ran = _Ran(handle, inputs, settings, session, probes, time.perf_counter() - began)
    return [
        _trace(
            ran,
            row,
            _Said(
                session[answers[row]].finished(),
                ending.finish(row),
                decoding.about,
                None if own is None else (own, interventions[0]),
            ),
        )
        for row, own in enumerate(var)
    ]


def score_answer(
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
    probes = _Probes.of(handle, inputs, settings, count, 1, var)
    intervention = VAR((var,))
    ids = torch.tensor([[*inputs.token_ids, *(token.id for token in told.tokens[:-1])]])
    began = time.perf_counter()
    with attached(
        handle, inputs, probes.all(), [intervention], new_tokens=count, prefix=prefix
    ) as session:
        logits = handle.model(
            input_ids=ids[:, prefix.length :].to(handle.device),
            past_key_values=prefix.fork(handle, 1),
            use_cache=True,
            logits_to_keep=count,
        ).logits[0]
    pieces = TextPieces(handle.tokenizer)
    described = [
        describe_token(pieces, row, token.id)
        for row, token in zip(logits, told.tokens, strict=True)
    ]
    tokens = with_texts(described, pieces)
    ran = _Ran(handle, inputs, settings, session, probes, time.perf_counter() - began)
    decoding = told.extra.get("decoding", {})
    return _trace(ran, 0, _Said(tokens, told.finish, decoding, (var, intervention)))


def begin_with(
    handle: ModelHandle, inputs: PromptInputs, rows: int, prefix: Prefix | None
) -> dict[str, Any]:
    """What `generate` begins with: the whole prompt, or its ids and the keys of the prefix.

    The cache is one that keeps every key: that which transformers would make drops those that a
    sliding window has left behind, and rows would be shorter than the prompt. The mask hides them
    as before, so the numbers are the same.
    """
    if prefix is None:
        return {**on_device(inputs.tensors, handle.device), "past_key_values": DynamicCache()}
    text = ("input_ids", "attention_mask")
    tensors = on_device(
        {name: inputs.tensors[name].repeat(rows, 1) for name in text}, handle.device
    )
    return {**tensors, "past_key_values": prefix.fork(handle, rows)}


@dataclass(frozen=True)
class _Probes:
    """What a trace is made of.

    Attributes:
        rows: the rows that explain the answer, one probe a batch row.
        prompt_rows: those of the prompt's own tokens, likewise; none where none are wanted.
        asked: the positions of these.
        marks: sink scores, by VAR's dimensions, else by the model's profile; None where neither is
            known.
    """

    rows: tuple[TraceRows, ...]
    prompt_rows: tuple[TraceRows, ...]
    asked: range
    marks: SinkScores | None

    @staticmethod
    def of(
        handle: ModelHandle,
        inputs: PromptInputs,
        settings: GenerationSettings,
        tokens: int,
        batch: int,
        mark: VARSettings | None,
    ) -> _Probes:
        layers, heads = captured(handle, settings)
        asked = kept_positions(inputs.layout, settings)

        def rows(count: int, first: int | None) -> tuple[TraceRows, ...]:
            return tuple(
                TraceRows(layers, heads, count, first, row, settings.reduce_heads)
                for row in range(batch)
            )

        marks = None
        if mark is not None:
            marks = SinkScores(mark.dims, mark.tau, mark.dialect, mark.layers or ())
        elif handle.profile is not None:
            marks = SinkScores(handle.profile.dims, handle.profile.tau)
        prompt_rows = rows(len(asked), asked.start) if asked else ()
        return _Probes(rows(tokens, None), prompt_rows, asked, marks)

    def all(self) -> list[Probe]:
        return [*self.rows, *self.prompt_rows, *([self.marks] if self.marks else [])]


def _for_row(on_token: OnRowToken | None, row: int) -> Callable[[int, GeneratedToken], None] | None:
    if on_token is None:
        return None
    return lambda index, token: on_token(row, index, token)


@dataclass(frozen=True)
class _Ran:
    """A run that is over: what was asked, what saw it, and its wall time."""

    handle: ModelHandle
    inputs: PromptInputs
    settings: GenerationSettings
    session: Session
    probes: _Probes
    seconds: float


@dataclass(frozen=True)
class _Said:
    """The answer of one batch row: its tokens, why it ended, how they were chosen, and under which
    VAR, None for the plain model."""

    tokens: tuple[GeneratedToken, ...]
    finish: str
    decoding: Mapping[str, Any]
    var: tuple[VARSettings, VAR] | None


def _trace(ran: _Ran, row: int, said: _Said) -> GenerationTrace:
    inputs, session, probes = ran.inputs, ran.session, ran.probes
    recorder = session[probes.rows[row]]
    sinks = session[probes.marks].found() if probes.marks else ()
    attention, shares, entropy = recorder.finish(len(said.tokens))
    report = None
    if said.var is not None:
        own, intervention = said.var
        report = {
            "settings": dataclasses.asdict(own),
            **dataclasses.asdict(session[intervention].report(row, len(said.tokens))),
        }
    prompt_rows = None
    if probes.prompt_rows:
        reader = session[probes.prompt_rows[row]]
        prompt_rows = prompt_trace(ran.handle.info, inputs, probes.asked, [reader], sinks)
    return GenerationTrace(
        tokens=said.tokens,
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
        applied=() if said.var is None else (describe(said.var[0]),),
        model=ran.handle.info,
        settings=dataclasses.asdict(ran.settings),
        seed=ran.settings.seed,
        finish=said.finish,
        seconds=ran.seconds,
        var=report,
        extra={"decoding": said.decoding},
        prompt_rows=prompt_rows,
    )
