"""How probable an answer is while some of the prompt's tokens are hidden from all later ones.

The evidence about sinks that does not use attention: a token that means nothing can be hidden and
the answer stays as probable as it was.

1. `read_answer` passes prompt and answer through the model once, unchanged (teacher forcing). It
   keeps what the text model was called with, so that the vision tower is paid once a sample; an
   observer and a keeper may look on (`models.attention.ForwardPlan`).
2. `hidden_log_probabilities` passes the same embeddings through the text model again, several sets
   of hidden tokens as one batch. Hidden are KEYS: a mask takes them from every later query of every
   head. The token's own row still sees itself, so no row is ever empty, and what is left of a row
   is a softmax over the tokens that remain; nothing is set to zero afterwards.

Hiding changes what the tokens in between say as well, so by default nothing can be reused of the
plain pass. With `from_queries="after_image"` only queries behind the last image are kept from
seeing the hidden tokens (as VAR acts only there): keys and values up to there are computed once and
shared, and what the hidden tokens have told their neighbours in the image stays.

The handle's lock must be held around both.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from sinkscope.capture.run import on_device
from sinkscope.models.attention import PLAN_KEY, ForwardPlan, running
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle
from sinkscope.sinks.validate_settings import FromQueries

BATCH_TOKENS = 4096  # tokens of all batch rows together that pass through the text model at once


@dataclass(frozen=True)
class ToldAnswer:
    """A prompt and an answer to it, as the model reads them.

    Attributes:
        inputs: the prompt.
        answer: the answer's T token ids.
        log_probabilities: float32 (T,) on the CPU, nats: the plain model's, of each answer token
            after the prompt and the tokens before it.
        keywords: what the text model was called with, one row, for N + T - 1 positions.
    """

    inputs: PromptInputs
    answer: tuple[int, ...]
    log_probabilities: Tensor
    keywords: Mapping[str, Any]

    @property
    def length(self) -> int:
        """Positions that pass through the model: the last answer token predicts nothing."""
        return self.inputs.layout.length + len(self.answer) - 1


def answer_tokens(handle: ModelHandle, text: str, most: int) -> tuple[int, ...]:
    """The first `most` tokens of an answer's text; special tokens written in it stay plain text."""
    coded = handle.processor.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
    return tuple(coded["input_ids"][:most])


def read_answer(
    handle: ModelHandle,
    inputs: PromptInputs,
    answer: Sequence[int],
    plan: ForwardPlan | None = None,
) -> ToldAnswer:
    """One plain forward pass over a prompt and an answer to it.

    Args:
        handle: a loaded model; its lock must be held.
        inputs: from `handle.prepare`.
        answer: token ids, at least one.
        plan: looks on; it must want nothing that changes the output.

    Raises:
        ValueError: there is no answer token, or the model's output is not a number.
    """
    if not answer:
        raise ValueError(
            "The answer has no token; there is nothing whose probability could change."
        )
    seen: dict[str, Any] = {}

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.update({name: value for name, value in kwargs.items() if name != PLAN_KEY})

    plan = plan or ForwardPlan(None, None, inputs.layout.length)
    hook = handle.stack.language_model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        with running(handle.stack, plan), torch.no_grad():
            logits = handle.model(
                **on_device(_with_answer(inputs, answer), handle.device),
                use_cache=False,
                logits_to_keep=len(answer),
            ).logits
    finally:
        hook.remove()
    kept = {name: seen[name] for name in seen if name not in ("past_key_values", "use_cache")}
    return ToldAnswer(inputs, tuple(answer), _log_probabilities(logits, answer)[0], kept)


def hidden_log_probabilities(
    handle: ModelHandle,
    told: ToldAnswer,
    hidden: Tensor,
    *,
    from_queries: FromQueries = "later",
    batch_tokens: int = BATCH_TOKENS,
    between: Callable[[], None] | None = None,
) -> Tensor:
    """Log-probability of each answer token while tokens of the prompt are hidden.

    All batches have one shape, filled up with rows that hide nothing: in half precision a batch's
    shape alone moves the last digits, and rows of one call are there to be compared. Give the empty
    set as one of them to have the plain model in the same arithmetic.

    Args:
        handle: a loaded model; its lock must be held.
        told: from `read_answer` on the same model.
        hidden: bool (B, N) over the prompt's positions: B sets, each hidden in every layer; or
            (B, L, N), each layer with its own.
        from_queries: `later`: no query behind a hidden token sees it. `after_image`: only queries
            behind the last image do not.
        batch_tokens: at most so many tokens pass through at once (always at least one row).
        between: called before each batch; what it raises ends the work.

    Returns:
        float32 (B, T) on the CPU, nats. With no token hidden in any row no mask is used at all, and
        one row alone is the plain forward pass bit for bit.

    Raises:
        ValueError: a wrong shape or dtype, an unknown `from_queries`, a prompt without an image for
            `after_image`, or output that is not a number.
    """
    layers, length = len(handle.stack.layers), told.inputs.layout.length
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
        if not told.inputs.layout.grids:
            raise ValueError("from_queries is 'after_image', but the prompt has no image.")
        first = told.inputs.layout.grids[-1].stop
    plain = not bool(hidden.any())
    shared = None if plain or not first else _prefix(handle, told, first)
    start = 0 if shared is None else first

    most = max(1, batch_tokens // told.length)
    rows = math.ceil(len(hidden) / math.ceil(len(hidden) / most))
    parts = []
    for low in range(0, len(hidden), rows):
        if between is not None:
            between()
        sets = hidden[low : low + rows]
        padded = sets.new_zeros((rows, *sets.shape[1:]))
        padded[: len(sets)] = sets
        keywords = _repeated(told.keywords, rows, start)
        if shared is not None:
            cache = copy.deepcopy(shared)
            cache.batch_repeat_interleave(rows)
            keywords["past_key_values"] = cache
        masks = None if plain else _Masks(padded.to(handle.device), told.length, start)
        with _masked(handle, masks), torch.no_grad():
            states = handle.stack.language_model(**keywords, use_cache=shared is not None)[0]
            logits = handle.stack.output_head(states[:, -len(told.answer) :])
        parts.append(_log_probabilities(logits, told.answer)[: len(sets)])
    return torch.cat(parts)


class _Masks:
    """Which query may see which key, made for a layer when it is asked for; one layer's at once."""

    def __init__(self, hidden: Tensor, length: int, start: int) -> None:
        self._hidden, self._length, self._start = hidden, length, start
        self._made: Tensor | None = None

    def of(self, layer: int) -> Tensor:
        """bool (B, 1, queries, keys), True where the query may see the key."""
        if self._hidden.ndim == 3:
            return self._mask(self._hidden[:, layer])
        if self._made is None:
            self._made = self._mask(self._hidden)
        return self._made

    def _mask(self, hidden: Tensor) -> Tensor:
        query = torch.arange(self._start, self._length, device=hidden.device)[:, None]
        key = torch.arange(self._length, device=hidden.device)
        gone = hidden.new_zeros((len(hidden), self._length))  # answer tokens are never hidden
        gone[:, : hidden.shape[1]] = hidden
        unseen = gone[:, None] & (query > key)
        return ((query >= key) & ~unseen)[:, None]


@contextmanager
def _masked(handle: ModelHandle, masks: _Masks | None) -> Iterator[None]:
    """Each decoder layer gets its own mask on top of the model's inside the `with`.

    On the layers and not through the model's `attention_mask`: positions are numbered from that.
    """

    def put_in(layer: int) -> Any:
        def change(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            states = args[0] if args else kwargs["hidden_states"]
            assert masks is not None
            mask = masks.of(layer).to(states.device)
            return args, {**kwargs, "attention_mask": _both(mask, kwargs.get("attention_mask"))}

        return change

    hooks = (
        []
        if masks is None
        else [
            module.register_forward_pre_hook(put_in(index), with_kwargs=True)
            for index, module in enumerate(handle.stack.layers)
        ]
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _both(mask: Tensor, own: Tensor | None) -> Tensor:
    """A bool mask, and what the model itself hides (a sliding window); causal is in both."""
    if own is None:
        return mask
    if own.dtype == torch.bool:
        return mask & own
    return own.masked_fill(~mask, torch.finfo(own.dtype).min)


def _prefix(handle: ModelHandle, told: ToldAnswer, stop: int) -> Any:
    """Keys and values of positions [0, stop), from one plain pass."""
    with torch.no_grad():
        keywords = _repeated(told.keywords, 1, 0, stop)
        cache = DynamicCache()  # whole also behind a sliding window
        handle.stack.language_model(**keywords, past_key_values=cache, use_cache=True)
        return cache


def _repeated(
    keywords: Mapping[str, Any], rows: int, start: int, stop: int | None = None
) -> dict[str, Any]:
    """The text model's keywords for `rows` equal rows and the positions [start, stop)."""
    made = dict(keywords)
    embeddings, positions = keywords["inputs_embeds"], keywords.get("position_ids")
    made["inputs_embeds"] = embeddings[:, start:stop].expand(rows, -1, -1)
    if positions is not None:  # (axes, 1, N), or (1, N)
        axes = [-1] * (positions.ndim - 2)
        made["position_ids"] = positions[..., start:stop].expand(*axes, rows, -1)
    if keywords.get("attention_mask") is not None:  # of all keys, those before `start` too
        made["attention_mask"] = keywords["attention_mask"][:, :stop].expand(rows, -1)
    return made


def _with_answer(inputs: PromptInputs, answer: Sequence[int]) -> dict[str, Tensor]:
    """The prompt's tensors with the answer but its last token behind them, as plain text."""
    ids = inputs.tensors["input_ids"]
    told = torch.tensor([list(answer[:-1])], dtype=ids.dtype)
    made = dict(inputs.tensors)
    for name, tensor in inputs.tensors.items():
        if tensor.shape == ids.shape:  # one number a position; 0 is "text" in what marks images
            fill = told if name == "input_ids" else torch.full_like(told, name == "attention_mask")
            made[name] = torch.cat([tensor, fill.to(tensor.dtype)], dim=1)
    return made


def _log_probabilities(logits: Tensor, answer: Sequence[int]) -> Tensor:
    """(B, T, vocabulary), any floating dtype -> float32 (B, T) on the CPU."""
    ids = torch.tensor(answer, device=logits.device)[:, None]
    rows = [torch.log_softmax(row.float(), dim=-1).gather(1, ids)[:, 0] for row in logits]
    found = torch.stack(rows).cpu()
    if not bool(torch.isfinite(found).all()):
        raise ValueError(
            "The model's output is not a number. In float16 large activations overflow; load the "
            "model in bfloat16 or float32. Otherwise its weights are damaged."
        )
    return found
