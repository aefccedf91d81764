"""How probable an answer is while some of the prompt's tokens are hidden from all later ones.

This is evidence about sinks that does not use attention: if a token carries no information, hiding
it leaves the answer as probable as before.

1. `read_answer` passes prompt and answer through the model once, unchanged (teacher forcing). It
   keeps the text model's inputs, so that the vision tower runs only once per sample; probes may
   read along.
2. `hidden_log_probabilities` passes the same embeddings through the text model again, several sets
   of hidden tokens as one batch (`interventions.hide`).

Hiding also changes what the tokens in between compute, so by default nothing of the plain pass can
be reused. With `from_queries="after_image"`, only queries after the last image cannot see the
hidden tokens (VAR too acts only there). Keys and values up to there are then computed once and
shared, but information that hidden tokens passed to other tokens of the image remains.

The handle's lock must be held around both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor
from transformers import DynamicCache

from sinkscope.capture.log_probabilities import answer_log_probabilities
from sinkscope.capture.prefix import fork_cache
from sinkscope.capture.probes.base import Probe
from sinkscope.capture.probes.text_inputs import TextInputs
from sinkscope.capture.run import on_device
from sinkscope.capture.session import Session, attached
from sinkscope.interventions.hide import HideKeys
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle
from sinkscope.sinks.validating.settings import FromQueries

BATCH_TOKENS = 4096  # tokens of all batch rows together that pass through the text model at once


@dataclass(frozen=True)
class ForcedAnswer:
    """A prompt and an answer to it, as the model reads them.

    Attributes:
        inputs: the prompt.
        answer: the answer's T token ids.
        log_probabilities: float32 (T,) on the CPU, nats: those of the plain model, of each answer
            token after the prompt and the tokens before it.
        keywords: the text model's keyword arguments, one row, for N + T - 1 positions.
        session: results of the probes of the pass.
    """

    inputs: PromptInputs
    answer: tuple[int, ...]
    log_probabilities: Tensor
    keywords: Mapping[str, Any]
    session: Session = field(repr=False, compare=False)

    @property
    def length(self) -> int:
        """Number of positions passed through the model: the last answer token predicts nothing."""
        return self.inputs.layout.length + len(self.answer) - 1


def answer_tokens(handle: ModelHandle, text: str, most: int) -> tuple[int, ...]:
    """The first `most` tokens of an answer's text; special tokens written in it are plain text."""
    coded = handle.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
    return tuple(coded["input_ids"][:most])


def read_answer(
    handle: ModelHandle,
    inputs: PromptInputs,
    answer: Sequence[int],
    probes: Sequence[Probe] = (),
) -> ForcedAnswer:
    """One plain forward pass over a prompt and an answer to it.

    Args:
        handle: a loaded model; its lock must be held.
        inputs: from `handle.prepare`.
        answer: token ids, at least one.
        probes: read along; their results are in the result's `session`.

    Raises:
        ValueError: there is no answer token, or the model's output is not finite.
    """
    if not answer:
        raise ValueError(
            "The answer has no token; there is nothing whose probability could change."
        )
    call = TextInputs()
    with attached(handle, inputs, [call, *probes], new_tokens=len(answer) - 1) as session:
        logits = handle.model(
            **on_device(_with_answer(inputs, answer), handle.device),
            use_cache=False,
            logits_to_keep=len(answer),
        ).logits
    logs = answer_log_probabilities(logits, answer)[0]
    return ForcedAnswer(inputs, tuple(answer), logs, session[call], session)


def hidden_log_probabilities(
    handle: ModelHandle,
    forced: ForcedAnswer,
    hidden: Tensor,
    *,
    from_queries: FromQueries = "later",
    batch_tokens: int = BATCH_TOKENS,
    between: Callable[[], None] | None = None,
) -> Tensor:
    """Log-probability of each answer token while tokens of the prompt are hidden.

    All batches have the same shape and are filled up with rows that hide nothing: in half precision
    the batch's shape already changes the last digits, and rows of one call must be comparable. To
    get the plain model in the same arithmetic, pass the empty set as one of them.

    Args:
        handle: a loaded model; its lock must be held.
        forced: from `read_answer` on the same model.
        hidden: bool (B, N) over the prompt's positions: B sets, each hidden in every layer; or
            (B, L, N), with one set for each layer.
        from_queries: `later`: no query after a hidden token sees it. `after_image`: only queries
            after the last image do not.
        batch_tokens: at most this many tokens pass through at once (but always at least one row).
        between: called before each batch; an exception raised by it ends the work.

    Returns:
        float32 (B, T) on the CPU, nats. If no row hides a token, no mask is used at all, and a
        single row is then the plain forward pass bit for bit.

    Raises:
        ValueError: a wrong shape or dtype, an unknown `from_queries`, a prompt without an image for
            `after_image`, or output that is not finite.
    """
    layers, length = len(handle.stack.layers), forced.inputs.layout.length
    good = hidden.dtype == torch.bool and hidden.shape[1:] in ((length,), (layers, length))
    if not good or not len(hidden):
        raise ValueError(
            f"hidden has shape {tuple(hidden.shape)} and dtype {hidden.dtype}; allowed: bool "
            f"(sets, {length}) or (sets, {layers}, {length})."
        )
    if from_queries not in get_args(FromQueries):
        raise ValueError(
            f"from_queries is {from_queries!r}; allowed: {', '.join(get_args(FromQueries))}."
        )
    first = 0
    if from_queries == "after_image":
        if not forced.inputs.layout.grids:
            raise ValueError("from_queries is 'after_image', but the prompt has no image.")
        first = forced.inputs.layout.after_images
    plain = not bool(hidden.any())
    shared = None if plain or not first else _prefix(handle, forced, first)
    start = 0 if shared is None else first

    most = max(1, batch_tokens // forced.length)
    rows = math.ceil(len(hidden) / math.ceil(len(hidden) / most))
    parts = []
    for low in range(0, len(hidden), rows):
        if between is not None:
            between()
        sets = hidden[low : low + rows]
        padded = sets.new_zeros((rows, *sets.shape[1:]))
        padded[: len(sets)] = sets
        keywords = _repeated(forced.keywords, rows, start)
        if shared is not None:
            keywords["past_key_values"] = fork_cache(shared, rows)
        hides = [] if plain else [HideKeys(padded.to(handle.device))]
        behind = len(forced.answer) - 1
        with attached(handle, forced.inputs, interventions=hides, batch=rows, new_tokens=behind):
            states = handle.stack.language_model(**keywords, use_cache=shared is not None)[0]
            logits = handle.stack.output_head(states[:, -len(forced.answer) :])
        parts.append(answer_log_probabilities(logits, forced.answer)[: len(sets)])
    return torch.cat(parts)


def _prefix(handle: ModelHandle, forced: ForcedAnswer, stop: int) -> Any:
    """Keys and values of positions [0, stop), from one plain pass."""
    with attached(handle, forced.inputs):
        keywords = _repeated(forced.keywords, 1, 0, stop)
        cache = DynamicCache()  # keeps all positions, also with a sliding window
        handle.stack.language_model(**keywords, past_key_values=cache, use_cache=True)
        return cache


def _repeated(
    keywords: Mapping[str, Any], rows: int, start: int, stop: int | None = None
) -> dict[str, Any]:
    """The text model's keywords for `rows` equal rows and the positions [start, stop)."""
    repeated = dict(keywords)
    positions = keywords.get("position_ids")
    for name in ("inputs_embeds", "input_ids"):  # a text model may be called with either
        if (given := keywords.get(name)) is not None:
            repeated[name] = given[:, start:stop].expand(rows, *[-1] * (given.ndim - 1))
    if positions is not None:  # (axes, 1, N), or (1, N)
        axes = [-1] * (positions.ndim - 2)
        repeated["position_ids"] = positions[..., start:stop].expand(*axes, rows, -1)
    if keywords.get("attention_mask") is not None:  # covers all keys, also those before `start`
        repeated["attention_mask"] = keywords["attention_mask"][:, :stop].expand(rows, -1)
    return repeated


def _with_answer(inputs: PromptInputs, answer: Sequence[int]) -> dict[str, Tensor]:
    """The prompt's tensors followed by the answer without its last token, as plain text."""
    ids = inputs.tensors["input_ids"]
    answer_ids = torch.tensor([list(answer[:-1])], dtype=ids.dtype)
    tensors = dict(inputs.tensors)
    for name, tensor in inputs.tensors.items():
        if tensor.shape == ids.shape:  # one number per position; 0 means "text"
            mask = torch.full_like(answer_ids, name == "attention_mask")
            fill = answer_ids if name == "input_ids" else mask
            tensors[name] = torch.cat([tensor, fill.to(tensor.dtype)], dim=1)
    return tensors
