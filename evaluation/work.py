"""A worker's part of a few questions: open the images, answer with every method, report errors.

A worker needs only the model and the images; answers are judged by the process that writes the
records. So a worker may be another process, also on another machine.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from sinkscope.config import GenerationSettings
from sinkscope.evaluation.answering import Answer
from sinkscope.evaluation.base import Picture
from sinkscope.evaluation.methods import Method
from sinkscope.evaluation.provenance import host
from sinkscope.evaluation.question_batches import ModelQuestion, PreparedQuestion, answer_questions
from sinkscope.models.loading import ModelHandle


@dataclass(frozen=True)
class Plan:
    """The settings that all questions share.

    Attributes:
        methods: all of them, in order.
        settings: of each answer.
        min_pixels, max_pixels: the protocol's.
        retries: how often a question is asked again after an error that may be temporary.
        batch_tokens: maximum number of tokens of a batch; 0: one question at a time.
    """

    methods: tuple[Method, ...]
    settings: GenerationSettings
    min_pixels: int | None = None
    max_pixels: int | None = None
    retries: int = 1
    batch_tokens: int = 0


@dataclass(frozen=True)
class Work:
    """What a worker needs of one question."""

    pictures: tuple[Picture, ...]
    prompt: str
    system: str | None = None


@dataclass(frozen=True)
class WorkResult:
    """The result: one answer for each method, or an error.

    Attributes:
        prompt_hash: hash of the prompt; "" if it could not be built.
        answers: in the order of the methods; empty with an error.
        error: in words; None if there was none.
        host: the machine that answered.
    """

    prompt_hash: str = ""
    answers: tuple[Answer, ...] = ()
    error: str | None = None
    host: Mapping[str, Any] = field(default_factory=dict)


def work(plan: Plan, handle: ModelHandle, given: Sequence[Work]) -> tuple[WorkResult, ...]:
    """Answer the few questions of one batch.

    An error of one question is part of its result and does not affect the others. After an error of
    the whole batch (a full device, a file system that is not available) each question is asked
    alone, up to `plan.retries` times.
    """
    done: dict[int, WorkResult] = {}
    ready: dict[int, PreparedQuestion] = {}
    for index, one in enumerate(given):
        prepared = _prepared(plan, handle, one)
        if isinstance(prepared, WorkResult):
            done[index] = prepared
        else:
            ready[index] = prepared
    where = host(handle)
    try:
        answers = answer_questions(handle, list(ready.values()), plan.methods, plan.batch_tokens)
        for (index, prepared), answer in zip(ready.items(), answers, strict=True):
            done[index] = WorkResult(prepared.question.fingerprint(), answer, None, where)
    except Exception as fault:
        first = _words(fault)
        _free()
        for index, prepared in ready.items():
            tries = max(plan.retries, 1 if len(ready) > 1 else 0)
            done[index] = _alone(plan, handle, prepared, tries, first)
    return tuple(done[index] for index in range(len(given)))


def _prepared(plan: Plan, handle: ModelHandle, given: Work) -> PreparedQuestion | WorkResult:
    """The question with the model's inputs, or a result with the error."""
    error = ""
    for _ in range(plan.retries + 1):
        try:
            images = tuple(picture() for picture in given.pictures)
            question = ModelQuestion(
                images,
                given.prompt,
                plan.settings,
                given.system,
                plan.min_pixels,
                plan.max_pixels,
            )
            return PreparedQuestion(question, question.inputs(handle))
        except ValueError as fault:  # an image, a prompt, a setting: the same the next time
            return WorkResult("", (), str(fault), host(handle))
        except Exception as fault:  # whatever it is, the other questions can still be asked
            error = _words(fault)
    return WorkResult("", (), error, host(handle))


def _alone(
    plan: Plan, handle: ModelHandle, one: PreparedQuestion, tries: int, error: str
) -> WorkResult:
    """One question by itself, after its batch has failed."""
    prompt_hash, where = one.question.fingerprint(), host(handle)
    for _ in range(tries):
        try:
            (answers,) = answer_questions(handle, [one], plan.methods)
            return WorkResult(prompt_hash, answers, None, where)
        except Exception as fault:
            error = _words(fault)
        _free()
    return WorkResult(prompt_hash, (), error, where)


def _words(fault: Exception) -> str:
    message = str(fault).strip() or "no message"
    return message if isinstance(fault, ValueError) else f"{type(fault).__name__}: {message}"


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
