"""SinkScope's attention function: plain SDPA, plus the requests of a run for single layers.

One forward pass:

1. `capture.session.attached` makes a `ForwardPlan` for the length of a run. Before each forward
   pass it advances the plan's step and passes the plan on as a keyword argument; nothing is kept
   on the model.
2. Each layer calls `attention_forward`. Without a plan, or in a layer and pass without requests, it
  IS plain SDPA. Otherwise:
   - masks of interventions are added to the model's own;
   - prefill (several queries): the output comes from the fused kernel. The exact softmax rows are
     computed only for the requested queries: a fused kernel never exposes its weights, but a few
     rows cost very little. For interventions that change rows, the output of their range of queries
     is recomputed from the changed rows, a few at a time; a single intervention may have a faster
     correction.
   - decode (one query): the row is computed once and multiplied with V; it is the output, not an
     extra.

A decode step over keys of fixed capacity has its own plan, `models.static_step.StepPlan`.

Interventions change rows in the order in which the session lists them; probes see the result. No
[heads, N, N] tensor exists at any point. Measured ratios: docs/LOG.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sinkscope.models.kernels import attention_rows, rows_times_values
from sinkscope.models.plan import PLAN_KEY, FastCorrection, ForwardPlan, RowChange, SiteReader
from sinkscope.models.sites import QueriesKeys
from sinkscope.models.static_step import StepPlan

NAME = "sinkscope"
CHUNK = 128  # maximum number of query rows computed at once
CHUNK_BYTES = 1 << 23  # fewer where they would take more: float32 rows of one layer


def install(model: PreTrainedModel) -> None:
    """Make `attention_forward` the text model's attention; the vision tower keeps SDPA.

    The mask function is registered with it: without one the mask would be None and left padding
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
    # A model whose config is that of its text model takes the name, others take it per part.
    parts = getattr(model.config, "sub_configs", {})
    text = model.config.get_text_config()
    key = next((part for part in parts if getattr(model.config, part, None) is text), None)
    model.set_attn_implementation(NAME if key is None else {key: NAME})


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention with the signature of transformers' AttentionInterface.

    Args:
        query: (B, H, N, D).
        key, value: (B, Hkv, K, D), before any repetition for grouped queries.
        attention_mask: None (causal), or bool / additive float (B, 1 or H, N, K).

    Returns:
        The output (B, N, H, D), and None.
    """
    plan: ForwardPlan | StepPlan | None = kwargs.pop(PLAN_KEY, None)
    layer: int = module.layer_idx  # type: ignore[assignment]  # set by transformers
    if isinstance(plan, StepPlan):
        return plan.attend(layer, query, key, value, scaling), None
    layer_plan = None if plan is None else plan.layers.get(layer)
    if plan is None or layer_plan is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )

    start, length = plan.step.start, plan.step.length
    end = start + length
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    for hides in layer_plan.masks:
        visible = hides.mask(layer, range(start, end), key.shape[2], query.device)
        if visible is not None:
            attention_mask = _both(visible, attention_mask)
    for at, looker in layer_plan.keys:
        if wanted := at.positions_in(start, length):
            some = query if len(wanted) == length else query[:, :, _index(wanted, start)]
            looker.see("queries_keys", layer, QueriesKeys(some, key[:, :, :end], scale), wanted)
    seen = [
        (positions, looker)
        for at, looker in layer_plan.rows
        if (positions := at.positions_in(start, length))
    ]
    changes = [
        change
        for change in layer_plan.changes
        if change.row_positions.start < end and change.row_positions.stop > start
    ]
    if length == 1 and (seen or changes):  # decode
        key, value, mask = _filled(key, value, attention_mask, end)
        rows = attention_rows(query, key, scale, mask, start)
        rows = _changed(layer, rows, changes, start)
        _show(layer, rows, seen, start, plan.gradients)
        return rows_times_values(rows, value).transpose(1, 2), None

    output = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )[0]
    if seen or changes:
        key, value, mask = _filled(key, value, attention_mask, end)
        work = _Prefill(layer, query, key, value, mask, scale, start, plan.gradients)
        output = work.corrected(output.transpose(1, 2), seen, changes, layer_plan.fast).transpose(
            1, 2
        )
    return output, None


@dataclass(frozen=True)
class _Prefill:
    """One layer's attention over several queries, with its requests and changes."""

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float
    start: int
    gradients: bool

    def corrected(
        self,
        output: Tensor,
        seen: Sequence[tuple[Sequence[int], SiteReader]],
        changes: Sequence[RowChange],
        fast: FastCorrection | None,
    ) -> Tensor:
        """Shows the requested rows; returns the output (B, H, N, D), corrected for changed rows."""
        end = self.start + self.query.shape[2]
        remade = [_clip(change.row_positions, self.start, end) for change in changes]
        quick = fast if len(changes) == 1 and not self.gradients else None
        if quick is not None:
            output = quick.correct(
                self.layer, self.query, self.key, self.value, output, self.scale, self.mask
            )
            remade = []
        shown = [span for positions, _ in seen for span in _spans(positions)]
        # No block crosses the edge of a range that changes, nor, if the output is computed from the
        # rows that are shown, the edge of these.
        edges = {edge for span in remade for edge in (span.start, span.stop)}
        if changes:
            edges |= {c.row_positions.start for c in changes}
            edges |= {c.row_positions.stop for c in changes}
        if self.gradients:
            remade = [*remade, *shown]
            edges |= {edge for span in shown for edge in (span.start, span.stop)}
        changed_blocks: list[tuple[range, Tensor]] = []
        for block in self._blocks([*remade, *shown], edges):
            changed = None if quick is None else quick.corrected_rows(self.layer, block)
            if changed is not None:
                _show(self.layer, changed, seen, block.start, self.gradients)
                continue
            low, high = block.start - self.start, block.stop - self.start
            before = attention_rows(
                self.query[:, :, low:high],
                self.key,
                self.scale,
                None if self.mask is None else self.mask[:, :, low:high],
                block.start,
            )
            rows = _changed(self.layer, before, changes, block.start)
            _show(self.layer, rows, seen, block.start, self.gradients)
            if any(span.start <= block.start < span.stop for span in remade) and (
                self.gradients or rows is not before
            ):
                new = rows_times_values(rows, self.value)
                if not self.gradients:  # unchanged rows keep the kernel's output
                    differs = (rows != before).any(-1, keepdim=True)
                    new = torch.where(differs, new, output[:, :, low:high])
                changed_blocks.append((block, new))
        return self._with(output, changed_blocks)

    def _blocks(self, spans: Sequence[range], edges: set[int]) -> list[range]:
        """The spans' union, cut at the edges and into blocks whose rows fit `CHUNK_BYTES`."""
        row = self.query.shape[0] * self.query.shape[1] * self.key.shape[2] * 4
        most = max(1, min(CHUNK, CHUNK_BYTES // row))
        blocks = []
        for span in _union(spans):
            cuts = sorted({span.start, span.stop, *(e for e in edges if e in span)})
            for low, high in pairwise(cuts):
                blocks += [range(a, min(a + most, high)) for a in range(low, high, most)]
        return blocks

    def _with(self, output: Tensor, changed_blocks: Sequence[tuple[range, Tensor]]) -> Tensor:
        """A new output with the recomputed blocks."""
        if not changed_blocks:
            return output
        parts, done = [], 0
        for block, new in changed_blocks:
            low = block.start - self.start
            parts += [output[:, :, done:low], new]
            done = block.stop - self.start
        return torch.cat([*parts, output[:, :, done:]], dim=2)


def _changed(layer: int, rows: Tensor, changes: Sequence[RowChange], start: int) -> Tensor:
    """Rows (B, H, R, K) of the queries from `start` on, changed by all interventions on them."""
    for change in changes:
        if change.row_positions.start <= start < change.row_positions.stop:
            rows = change.rows(layer, rows, start)
    return rows


def _show(
    layer: int,
    rows: Tensor,
    seen: Sequence[tuple[Sequence[int], SiteReader]],
    start: int,
    gradients: bool,
) -> None:
    """Give each looker its part of the rows (B, H, R, K) of the queries from `start` on."""
    if gradients and not rows.requires_grad and torch.is_grad_enabled():
        rows.requires_grad_()
    stop = start + rows.shape[2]
    for positions, looker in seen:
        for span in _spans(positions):
            wanted = _clip(span, start, stop)
            if not wanted:
                continue
            part = rows
            if len(wanted) < rows.shape[2]:  # a view would keep all the others in memory
                part = rows[:, :, wanted.start - start : wanted.stop - start].clone()
            looker.see("rows", layer, part, wanted)


def _union(spans: Sequence[range]) -> list[range]:
    """Joined where they overlap or touch, in order."""
    joined: list[range] = []
    for span in sorted((s for s in spans if s), key=lambda span: span.start):
        if joined and span.start <= joined[-1].stop:
            joined[-1] = range(joined[-1].start, max(joined[-1].stop, span.stop))
        else:
            joined.append(span)
    return joined


def _spans(positions: Sequence[int]) -> list[range]:
    """Stretches of neighbours."""
    if isinstance(positions, range):
        return [positions]
    return _union([range(position, position + 1) for position in positions])


def _clip(span: range, start: int, stop: int) -> range:
    return range(max(span.start, start), max(start, min(span.stop, stop)))


def _index(positions: Sequence[int], start: int) -> slice | list[int]:
    if isinstance(positions, range):
        return slice(positions.start - start, positions.stop - start)
    return [position - start for position in positions]


def _both(mask: Tensor, other: Tensor | None) -> Tensor:
    """A bool mask, and what the model itself hides (a sliding window); causal is in both."""
    if other is None:
        return mask
    if other.dtype == torch.bool:
        return mask & other
    return other.masked_fill(~mask, torch.finfo(other.dtype).min)


def _filled(
    key: Tensor, value: Tensor, mask: Tensor | None, end: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cut off the positions that a StaticCache has allocated but not filled; their keys are zeros,
    not tokens."""
    if key.shape[2] > end:
        key, value = key[:, :, :end], value[:, :, :end]
    if mask is not None and mask.shape[-1] > end:
        mask = mask[..., :end]
    return key, value, mask
