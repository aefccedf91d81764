"""The trace of a given answer: the text is read in one pass of the plain model, not generated."""

from __future__ import annotations

import dataclasses
import time

import torch

from sinkscope.capture.answer import _Probes, _trace
from sinkscope.capture.prefix import forward_prefix
from sinkscope.capture.prompt import NoReferenceError, reference_row
from sinkscope.capture.run import captured, memory_errors_named
from sinkscope.capture.session import attached
from sinkscope.capture.tokens import describe_token, with_texts
from sinkscope.capture.trace import GenerationTrace
from sinkscope.config import GenerationSettings
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle
from sinkscope.models.token_texts import TextPieces


def given_answer(
    handle: ModelHandle, inputs: PromptInputs, settings: GenerationSettings, text: str
) -> GenerationTrace:
    """What the model thinks of a given answer to a prompt with an image.

    Row t and probability t are those that generating token t after the same tokens would have had.

    Args:
        handle: a loaded model; its lock is taken.
        inputs: the prompt.
        settings: what to capture.
        text: the answer; special tokens written in it stay plain text.

    Raises:
        ValueError: the text is empty, or a layer or head that the model does not have.
    """
    captured(handle, settings)
    tokenizer = handle.tokenizer
    answer = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    if not answer:
        raise ValueError("The given answer is empty, so there is no token to explain.")
    dims = () if handle.profile is None else handle.profile.dims
    began = time.perf_counter()
    with handle.lock, memory_errors_named(inputs, settings):
        prefix = forward_prefix(handle, inputs, dims)
        probes = _Probes.of(handle, inputs, settings, len(answer), 1, None)
        ids = torch.tensor([[*inputs.token_ids, *answer[:-1]]])
        with attached(
            handle, inputs, probes.all(), new_tokens=len(answer), prefix=prefix
        ) as session:
            logits = handle.model(
                input_ids=ids[:, prefix.length :].to(handle.device),
                past_key_values=prefix.fork(handle, 1),
                use_cache=True,
                logits_to_keep=len(answer),
            ).logits[0]
        pieces = TextPieces(tokenizer)
        described = [
            describe_token(pieces, row, token) for row, token in zip(logits, answer, strict=True)
        ]
        reference, said = None, {}
        if settings.reference:
            try:
                reference = reference_row(handle, inputs, settings, prefix)
            except NoReferenceError as error:
                said = {"no_reference": str(error)}
        trace = _trace(
            handle,
            inputs,
            settings,
            with_texts(described, pieces),
            session,
            probes,
            0,
            "given",
            time.perf_counter() - began,
            None,
            {},
        )
        return dataclasses.replace(trace, reference=reference, extra={**trace.extra, **said})
