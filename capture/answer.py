"""One run of the model: a batch of answers to one prompt, each with its own VAR settings or none.

`generate` is a batch of one, a free-running comparison a batch of two that continues from a shared
prefix, and `score_answer` passes a given text through the model once instead of generating it. All
three attach the same probes (`capture.answer_probes`) and make the same `GenerationTrace`. Tokens
are made by transformers' `generate` or by steps of our own (`capture.engine`). The handle's lock
must be held around each.
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

from sinkscope.capture.answer_probes import AnswerProbes
from sinkscope.capture.engine.answering import NoStepsError, StepRun, answer_by_steps
from sinkscope.capture.engine.choice import EngineChoice, choose_engine
from sinkscope.capture.engine.store import kept_bytes, let_go
from sinkscope.capture.prefix import Prefix
from sinkscope.capture.probes.answer_tokens import AnswerTokens
from sinkscope.capture.prompt import prompt_trace
from sinkscope.capture.run import (
    Decoding,
    Ending,
    decide,
    distribution_errors_named,
    on_device,
    seeded,
)
from sinkscope.capture.session import Session, attached
from sinkscope.capture.tokens import TokenProbe, described, weigh_all, with_texts
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
    on_stage: Callable[[str], None] | None = None,
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
        on_stage: called with what is done, in words, where the next token will take long for it.
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
    request = _AnswerRequest(
        handle, inputs, settings, tuple(var), prefix, mark, _ReportOnce(on_token), on_stage, stop
    )
    choice = choose_engine(handle, settings)
    try:
        return request.by_steps(choice) if choice.used == "graph" else request.by_loop(choice)
    except NoStepsError as error:
        choice = EngineChoice(settings.engine, "loop", str(error))
    except torch.OutOfMemoryError:
        if choice.used == "loop" and not kept_bytes(handle):
            raise
        if choice.used == "graph":
            choice = EngineChoice(settings.engine, "loop", "its memory did not fit on the device")
    # Here the traceback holds no tensors of the run any more.
    let_go(handle)
    if handle.device.type == "cuda":
        torch.cuda.empty_cache()
    return request.by_loop(choice)


class _ReportOnce:
    """Hands tokens on, each once, also where an answer is made a second time."""

    def __init__(self, on_token: OnRowToken | None) -> None:
        self._on_token = on_token
        self._reported: dict[int, int] = {}

    def of_row(self, row: int) -> Callable[[int, GeneratedToken], None] | None:
        """For one batch row; None where nobody is told."""
        on_token = self._on_token
        if on_token is None:
            return None

        def report_token(index: int, token: GeneratedToken) -> None:
            if index >= self._reported.get(row, 0):
                self._reported[row] = index + 1
                on_token(row, index, token)

        return report_token


@dataclass(frozen=True)
class _AnswerRequest:
    """One call of `answer`, and the two ways to do it."""

    handle: ModelHandle
    inputs: PromptInputs
    settings: GenerationSettings
    var: tuple[VARSettings | None, ...]
    prefix: Prefix | None
    mark: VARSettings | None
    once: _ReportOnce
    on_stage: Callable[[str], None] | None
    stop: threading.Event | None

    def by_loop(self, choice: EngineChoice) -> list[GenerationTrace]:
        """By transformers' `generate`."""
        handle, settings = self.handle, self.settings
        decoding = decide(handle, settings, self.inputs.layout.length)
        probes, interventions = self._probes(), self._interventions()
        answers = [
            AnswerTokens(handle.tokenizer, row, self.once.of_row(row))
            for row in range(len(self.var))
        ]
        began = time.perf_counter()
        with (
            attached(
                handle,
                self.inputs,
                [*probes.all(), *answers],
                interventions,
                batch=len(self.var),
                new_tokens=settings.max_new_tokens,
                prefix=self.prefix,
            ) as session,
            seeded(settings.seed, handle.device),
            distribution_errors_named(settings),
        ):
            start = begin_with(handle, self.inputs, len(self.var), self.prefix)
            ending = decoding.ending(handle, [session[one] for one in answers], self.stop)
            handle.generate(
                **start,
                generation_config=decoding.config,
                stopping_criteria=StoppingCriteriaList([ending]),
            )
        token_probes = [session[one] for one in answers]
        finished = _FinishedRun(
            handle, self.inputs, settings, session, probes, time.perf_counter() - began
        )
        return self._traces(
            finished, interventions, token_probes, _RunDetails(choice, decoding, ending)
        )

    def by_steps(self, choice: EngineChoice) -> list[GenerationTrace]:
        """By the steps of `capture.engine`."""
        handle, settings = self.handle, self.settings
        decoding = decide(handle, settings, self.inputs.layout.length)
        probes, interventions = self._probes(), self._interventions()
        token_probes = [
            TokenProbe(handle.tokenizer, batch_row=row, on_token=self.once.of_row(row))
            for row in range(len(self.var))
        ]
        ending = decoding.ending(handle, token_probes, self.stop)
        run = StepRun(
            inputs=self.inputs,
            settings=settings,
            prefix=self.prefix,
            decoding=decoding,
            rows=probes.rows,
            others=tuple(probes.of_prompt),
            interventions=tuple(interventions),
            tokens=tuple(token_probes),
            ending=ending,
            on_stage=self.on_stage,
        )
        began = time.perf_counter()
        with distribution_errors_named(settings):
            steps = answer_by_steps(handle, run)
        seconds = time.perf_counter() - began
        used = "graph" if steps.recorded else "step"
        finished = _FinishedRun(handle, self.inputs, settings, steps.session, probes, seconds)
        details = _RunDetails(EngineChoice(choice.asked, used, steps.why), decoding, ending)
        return self._traces(finished, interventions, token_probes, details)

    def _probes(self) -> AnswerProbes:
        settings, rows = self.settings, len(self.var)
        tokens = settings.max_new_tokens
        return AnswerProbes.of(self.handle, self.inputs, settings, tokens, rows, self.mark)

    def _interventions(self) -> list[VAR]:
        return [VAR(self.var)] if any(own is not None for own in self.var) else []

    def _traces(
        self,
        finished: _FinishedRun,
        by: Sequence[VAR],
        token_probes: Sequence[TokenProbe],
        details: _RunDetails,
    ) -> list[GenerationTrace]:
        extra = {"decoding": details.decoding.about, **details.choice.about()}
        return [
            _trace(
                finished,
                row,
                _RowAnswer(
                    token_probes[row].finished(),
                    details.ending.finish_reason(row),
                    extra,
                    None if own is None else (own, by[0]),
                ),
            )
            for row, own in enumerate(self.var)
        ]


@dataclass(frozen=True)
class _RunDetails:
    """How an answer was made: which way, how tokens were chosen, and what ended it."""

    choice: EngineChoice
    decoding: Decoding
    ending: Ending


def score_answer(
    handle: ModelHandle,
    inputs: PromptInputs,
    settings: GenerationSettings,
    var: VARSettings | None,
    plain: GenerationTrace,
    prefix: Prefix,
) -> GenerationTrace:
    """What the model with VAR thinks of a given answer: one pass over it, nothing generated.

    Row t and probability t are those that generating token t after the same tokens would have had.

    Args:
        handle: a loaded model.
        inputs: the prompt of `plain`.
        settings: what to capture.
        var: VAR settings; None: the plain model.
        plain: the answer, as a trace of the plain model.
        prefix: of the same prompt.

    Returns:
        A trace with the tokens of `plain` and the probabilities, ranks and attention under VAR.
    """
    count = len(plain.tokens)
    probes = AnswerProbes.of(handle, inputs, settings, count, 1, var)
    intervention = VAR((var,))
    ids = torch.tensor([[*inputs.token_ids, *(token.id for token in plain.tokens[:-1])]])
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
    answer_ids = [token.id for token in plain.tokens]
    weights = weigh_all(logits, answer_ids)
    made = [described(pieces, own, i) for own, i in zip(weights, answer_ids, strict=True)]
    tokens = with_texts(made, pieces)
    finished = _FinishedRun(handle, inputs, settings, session, probes, time.perf_counter() - began)
    extra = {"decoding": plain.extra.get("decoding", {})}
    return _trace(finished, 0, _RowAnswer(tokens, plain.finish, extra, (var, intervention)))


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
class _FinishedRun:
    """A run that is over: what was asked, what saw it, and its wall time."""

    handle: ModelHandle
    inputs: PromptInputs
    settings: GenerationSettings
    session: Session
    probes: AnswerProbes
    seconds: float


@dataclass(frozen=True)
class _RowAnswer:
    """The answer of one batch row: its tokens, why it ended, what else a trace says of it, and
    under which VAR, None for the plain model."""

    tokens: tuple[GeneratedToken, ...]
    finish_reason: str
    extra: Mapping[str, Any]
    var: tuple[VARSettings | None, VAR] | None


def _trace(finished: _FinishedRun, row: int, row_answer: _RowAnswer) -> GenerationTrace:
    inputs, session, probes = finished.inputs, finished.session, finished.probes
    recorder = session[probes.rows[row]]
    sinks = session[probes.marks].found() if probes.marks else ()
    attention, shares, entropy = recorder.finish(len(row_answer.tokens))
    report = None
    own, intervention = row_answer.var or (None, None)
    if own is not None and intervention is not None:
        report = {
            "settings": dataclasses.asdict(own),
            **dataclasses.asdict(session[intervention].report(row, len(row_answer.tokens))),
        }
    prompt_rows = None
    if probes.prompt_rows:
        reader = session[probes.prompt_rows[row]]
        prompt_rows = prompt_trace(finished.handle.info, inputs, probes.asked, [reader], sinks)
    return GenerationTrace(
        tokens=row_answer.tokens,
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
        applied=() if own is None else (describe(own),),
        model=finished.handle.info,
        settings=dataclasses.asdict(finished.settings),
        seed=finished.settings.seed,
        finish=row_answer.finish_reason,
        seconds=finished.seconds,
        var=report,
        extra=row_answer.extra,
        prompt_rows=prompt_rows,
    )
