"""What a worker does with one question: open its images, ask every method, say what went wrong.

Nothing here judges: a worker needs the model and the images, the rest stays with whoever writes the
records. So a worker may be another process, on another machine.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from sinkscope.config import GenerationSettings
from sinkscope.evaluation.asking import Answer, Ask, ask
from sinkscope.evaluation.base import Picture
from sinkscope.evaluation.methods import Method
from sinkscope.evaluation.provenance import host
from sinkscope.models.loading import ModelHandle


@dataclass(frozen=True)
class Plan:
    """What is the same for every question.

    Attributes:
        methods: all of them, in order.
        settings: of each answer.
        min_pixels, max_pixels: the protocol's.
        retries: how often a question is asked again after an error that may pass.
    """

    methods: tuple[Method, ...]
    settings: GenerationSettings
    min_pixels: int | None = None
    max_pixels: int | None = None
    retries: int = 1


@dataclass(frozen=True)
class Work:
    """One question as a worker needs it."""

    pictures: tuple[Picture, ...]
    prompt: str
    system: str | None = None


@dataclass(frozen=True)
class Done:
    """What came of it: one answer a method, or an error.

    Attributes:
        prompt_hash: of what was asked; "" where it could not be put together.
        answers: in the order of the methods; empty with an error.
        error: in words; None where all went well.
        host: where it was made.
    """

    prompt_hash: str = ""
    answers: tuple[Answer, ...] = ()
    error: str | None = None
    host: Mapping[str, Any] = field(default_factory=dict)


def work(plan: Plan, handle: ModelHandle, given: Work) -> Done:
    """Ask one question. Never raises for a question's sake: a fault of one is none of the others.

    A full device and errors of a file system are tried again, up to `plan.retries` times.
    """
    where, prompt_hash, error = host(handle), "", ""
    for _ in range(plan.retries + 1):
        try:
            images = tuple(picture() for picture in given.pictures)
            asked = Ask(
                images,
                given.prompt,
                plan.settings,
                given.system,
                plan.min_pixels,
                plan.max_pixels,
            )
            prompt_hash = asked.fingerprint()
            return Done(prompt_hash, ask(handle, asked, plan.methods), None, where)
        except ValueError as fault:  # an image, a prompt, a setting: the same the next time
            return Done(prompt_hash, (), str(fault), where)
        except Exception as fault:  # whatever it is, the other questions can still be asked
            error = f"{type(fault).__name__}: {str(fault).strip() or 'no message'}"
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return Done(prompt_hash, (), error, where)
