"""The trace of a given answer: the text is read in one pass of the plain model, not generated."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sinkscope.capture.answer import score_answer
from sinkscope.capture.prefix import forward_prefix
from sinkscope.capture.prompt import NoReferenceError, reference_row
from sinkscope.capture.run import captured_indices, memory_errors_named
from sinkscope.capture.trace import GenerationTrace
from sinkscope.config import GenerationSettings
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle


@dataclass(frozen=True)
class _TokenId:
    id: int


@dataclass(frozen=True)
class _GivenTokens:
    """The part of an answer that `score_answer` uses."""

    tokens: tuple[_TokenId, ...]
    finish_reason: str = "given"
    extra: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(ids: Sequence[int]) -> Any:
        return _GivenTokens(tuple(map(_TokenId, ids)))


def given_answer(
    handle: ModelHandle, inputs: PromptInputs, settings: GenerationSettings, text: str
) -> GenerationTrace:
    """Score a given answer to a prompt with an image.

    Row t and probability t are those that generating token t after the same tokens would have had.

    Args:
        handle: a loaded model; its lock is taken.
        inputs: the prompt.
        settings: what to capture.
        text: the answer; special tokens written in it stay plain text.

    Raises:
        ValueError: the text is empty, or a layer or head that the model does not have.
    """
    captured_indices(handle, settings)
    tokenizer = handle.tokenizer
    answer = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    if not answer:
        raise ValueError("The given answer is empty, so there is no token to explain.")
    dims = () if handle.profile is None else handle.profile.dims
    with handle.lock, memory_errors_named(inputs, settings):
        prefix = forward_prefix(handle, inputs, dims)
        trace = score_answer(handle, inputs, settings, None, _GivenTokens.of(answer), prefix)
        reference, extra = None, {}
        if settings.reference:
            try:
                reference = reference_row(handle, inputs, settings, prefix)
            except NoReferenceError as error:
                extra = {"no_reference": str(error)}
    return dataclasses.replace(trace, reference=reference, extra={**trace.extra, **extra})
