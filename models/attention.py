"""SinkScope's attention function: plain SDPA, plus the wanted attention rows and VAR where a run
asks for them.

The story of one forward pass:

1. `running(stack, plan)` hooks a plan into the model for the length of one run. Before each forward
   pass the hook advances the plan's position and hands the plan down as a keyword argument; nothing
   is kept on the model.
2. Each layer calls `attention_forward`. Without a plan, or with one that wants no rows here, it IS
   plain SDPA. With one that does:
   - prefill (several queries): the output comes from the fused kernel; the exact softmax row is
     computed for the last query alone. A fused kernel never shows its weights, but one row costs
     next to nothing.
   - decode (one query): the row is computed once and multiplied with V; it is the output, not an
     extra.
   - an intervention (VAR) may replace rows, and correct the fused output at prefill.

No [heads, N, N] tensor exists at any point. Measured ratios: docs/LOG.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from models.family import TextStack
from models.kernels import attention_rows, rows_times_values

NAME = "sinkscope"
PLAN_KEY = "sinkscope_plan"
CHUNK_BYTES = 1 << 23  # float32 rows of one layer that exist at once where many are recorded


class RowRecorder(Protocol):
    """Receives attention rows as they are computed."""

    def record(self, layer: int, rows: torch.Tensor, first_position: int) -> None:
        """`rows` float32 (B, H, R, K): softmax weights of the queries at first_position ..
        first_position + R - 1."""
        ...


class StreamObserver(Protocol):
    """Sees the residual stream of the prompt."""

    def observe(self, layer: int, hidden: torch.Tensor, start: int) -> None:
        """`hidden` (B, N, D): the residual stream at the INPUT of `layer` for prompt positions
        start .. start + N - 1."""
        ...


class RowIntervention(StreamObserver, Protocol):
    """Changes attention in some layers (VAR)."""

    def acts_on(self, layer: int) -> bool: ...

    def rows(self, layer: int, weights: torch.Tensor, first_position: int) -> torch.Tensor:
        """New rows float32 (B, H, R, K) for the given ones; the same tensor where nothing
        changes."""
        ...

    def correct(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        output: torch.Tensor,
        scaling: float,
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """The layer's output (B, H, N, D) at prefill, corrected; query (B, H, N, D), key and value
        (B, Hkv, K, D)."""
        ...


class QueryKeeper(Protocol):
    """Receives queries and keys, for rows to be computed later."""

    def keep(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, scale: float, first_position: int
    ) -> None:
        """`query` (B, H, R, D) of the positions from first_position on, `key` (B, Hkv, K, D) of all
        positions so far; both rotated."""
        ...


@dataclass
class ForwardPlan:
    """What one run wants from attention. Made for the run and gone with it.

    Attributes:
        recorder: gets rows, or None.
        intervention: changes rows, or None; it observes the residual stream too.
        observer: looks at the residual stream without changing anything, or None.
        prompt_length: positions below it are prompt: the residual stream is observed there only.
        all_rows_from, all_rows_to: at prefill record every row of these positions (the second
            excluded; None: to the end); all_rows_from None records the last row only.
        keeper: gets queries and keys, or None.
        batch: how many sequences the recorder expects; None leaves it unchecked.
        chunk: how many query rows at most are computed at once where many are recorded; fewer where
            they would take more than `CHUNK_BYTES`.
        start, length: position and number of the queries in the current forward pass; the hook
            advances them.
    """

    recorder: RowRecorder | None
    intervention: RowIntervention | None
    prompt_length: int
    observer: StreamObserver | None = None
    all_rows_from: int | None = None
    chunk: int = 128
    start: int = 0
    length: int = 0
    all_rows_to: int | None = None
    batch: int | None = None
    keeper: QueryKeeper | None = None

    def begin_forward(self, queries: int, batch: int = 1) -> None:
        """A forward pass over `queries` new positions of `batch` sequences begins.

        Raises:
            ValueError: the pass belongs to a way of generating whose rows explain no token: beam
                search, or assisted decoding.
        """
        if self.batch is not None and batch != self.batch:
            raise ValueError(
                f"The model was called with a batch of {batch}, but {self.batch} is being "
                "recorded. Beam search and num_return_sequences cannot be captured; use greedy "
                "decoding or sampling (temperature above 0)."
            )
        self.start += self.length
        self.length = queries
        if self.start >= self.prompt_length and queries > 1:
            raise ValueError(
                f"The model was called with {queries} answer tokens at once. Assisted decoding and "
                "prompt look-up cannot be captured, for some of these tokens are thrown away "
                "again; use greedy decoding or sampling (temperature above 0)."
            )

    def recorded(self) -> range:
        """Which queries of the current forward pass are recorded, counted from its first."""
        if self.all_rows_from is None:
            return range(self.length - 1, self.length)
        stop = self.start + self.length if self.all_rows_to is None else self.all_rows_to
        low = min(max(0, self.all_rows_from - self.start), self.length)
        return range(low, min(max(low, stop - self.start), self.length))


def install(model: PreTrainedModel) -> None:
    """Make `attention_forward` the text model's attention; the vision tower keeps SDPA.

    The mask function is registered beside it: without one the mask would be None and left padding
    silently ignored.

    Raises:
        ValueError: the model cannot run with plain SDPA, so no row could be compared to its output.
    """
    if getattr(model, "_supports_sdpa", True) is False:
        raise ValueError(
            f"{type(model).__name__} runs with its own attention kernels only (it does not support "
            "SDPA), so its attention cannot be captured. Use a model that supports SDPA."
        )
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation({"text_config": NAME})


@contextmanager
def running(stack: TextStack, plan: ForwardPlan) -> Iterator[ForwardPlan]:
    """Apply `plan` to every forward pass of the model inside the `with`; undone whatever
    happens."""

    def hand_down(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        batch, queries, _ = kwargs["inputs_embeds"].shape
        plan.begin_forward(queries, batch)
        return args, {**kwargs, PLAN_KEY: plan}

    def observe(layer: int) -> Any:
        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if plan.start < plan.prompt_length:
                hidden = args[0] if args else kwargs["hidden_states"]
                for watcher in watchers:
                    watcher.observe(layer, hidden[:, : plan.prompt_length - plan.start], plan.start)

        return look

    watchers = [watcher for watcher in (plan.observer, plan.intervention) if watcher is not None]
    handles = [stack.language_model.register_forward_pre_hook(hand_down, with_kwargs=True)]
    try:
        if watchers:
            for index, layer in enumerate(stack.layers):
                handles.append(layer.register_forward_pre_hook(observe(index), with_kwargs=True))
        yield plan
    finally:
        for handle in handles:
            handle.remove()


def attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention with the signature of transformers' AttentionInterface.

    Args:
        query: (B, H, N, D).
        key, value: (B, Hkv, K, D), before any repetition for grouped queries.
        attention_mask: None (causal), or bool / additive float (B, 1 or H, N, K).

    Returns:
        The output (B, N, H, D), and None.
    """
    plan: ForwardPlan | None = kwargs.pop(PLAN_KEY, None)
    if plan is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )

    layer: int = module.layer_idx  # type: ignore[assignment]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    end = plan.start + plan.length
    intervention = (
        plan.intervention
        if plan.intervention is not None and plan.intervention.acts_on(layer)
        else None
    )
    recorder = plan.recorder
    if plan.keeper is not None:
        filled = _filled(key, value, attention_mask, end)[0]
        plan.keeper.keep(layer, query, filled, scale, plan.start)
    if recorder is None and intervention is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )

    if plan.length > 1:  # prefill, or a chunk of it
        output = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )[0]
        key, value, mask = _filled(key, value, attention_mask, end)
        if intervention is not None:
            output = intervention.correct(
                layer, query, key, value, output.transpose(1, 2), scale, mask
            ).transpose(1, 2)
        if recorder is not None:
            wanted, chunk = plan.recorded(), _chunk(plan.chunk, query, key)
            for low in range(wanted.start, wanted.stop, chunk):
                high = min(low + chunk, wanted.stop)
                rows = attention_rows(
                    query[:, :, low:high], key, scale, _mask_rows(mask, low, high), plan.start + low
                )
                if intervention is not None:
                    rows = intervention.rows(layer, rows, plan.start + low)
                recorder.record(layer, rows, plan.start + low)
        return output, None

    key, value, mask = _filled(key, value, attention_mask, end)
    rows = attention_rows(query, key, scale, mask, plan.start)
    if intervention is not None:
        rows = intervention.rows(layer, rows, plan.start)
    if recorder is not None:
        recorder.record(layer, rows, plan.start)
    return rows_times_values(rows, value).transpose(1, 2), None


def _chunk(most: int, query: torch.Tensor, key: torch.Tensor) -> int:
    """How many query rows to compute at once."""
    row = query.shape[0] * query.shape[1] * key.shape[2] * 4
    return max(1, min(most, CHUNK_BYTES // row))


def _filled(
    key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, end: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Cut off the positions that a StaticCache has allocated but not filled; their keys are zeros,
    not tokens."""
    if key.shape[2] > end:
        key, value = key[:, :, :end], value[:, :, :end]
    if mask is not None and mask.shape[-1] > end:
        mask = mask[..., :end]
    return key, value, mask


def _mask_rows(mask: torch.Tensor | None, low: int, high: int) -> torch.Tensor | None:
    return None if mask is None else mask[:, :, low:high]
