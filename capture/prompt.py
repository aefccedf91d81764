"""Attention of the PROMPT's own tokens: what each of them looked at while it was read.

Row convention: row r is the query row AT prompt position `positions[r]`. It shows what that token
gathered; for the last position it is also row 0 of a `GenerationTrace`, which produced the first
answer token.

One pass over the prompt with the fused kernel, and the wanted rows beside it a few at a time, so
that memory is the result's own plus a fixed rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from capture.forecast import check_payload, row_bytes
from capture.recorder import RowFanOut, TraceRecorder
from capture.run import captured, on_device
from capture.sinks import SinkObserver
from capture.trace import LayerSinks
from config import GenerationSettings
from models.attention import ForwardPlan, running
from models.family import PromptInputs, PromptLayout
from models.info import ModelInfo
from models.loading import ModelHandle


@dataclass(frozen=True)
class PromptToken:
    """One token of the prompt."""

    id: int
    text: str


@dataclass(frozen=True)
class PromptTrace:
    """Rows of prompt tokens. `attention_processor` takes it like a `GenerationTrace`.

    Attributes:
        positions: the R prompt positions, rising.
        tokens: the tokens at these positions.
        layout: roles of the prompt's positions.
        attention: float16 (R, L, H, V) on the CPU: softmax weight of each vision token; 0 for
            vision tokens that come after the position.
        layers, heads: indices in the model of the captured layers (L) and heads (H);
            heads is (MEAN_HEAD,) where only the mean over them was kept.
        shares: float32 (R, L, H, S + 1): attention mass on each segment; the last column, which an
            answer would have, is 0. Sums to 1.
        entropy: float32 (R, L, H): entropy in nats of the whole row.
        sinks: per layer; empty where no sink dimensions are known.
        model: what made it.
    """

    positions: tuple[int, ...]
    tokens: tuple[PromptToken, ...]
    layout: PromptLayout
    attention: torch.Tensor
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    shares: torch.Tensor
    entropy: torch.Tensor
    sinks: tuple[LayerSinks, ...]
    model: ModelInfo


def read_prompt(
    handle: ModelHandle,
    inputs: PromptInputs,
    positions: Sequence[int] | None,
    settings: GenerationSettings,
) -> PromptTrace:
    """See `attention_extractor.prompt_rows`. The handle's lock must be held."""
    layers, heads = captured(handle, settings)
    wanted = _positions(inputs.layout, positions)
    check_payload(
        len(wanted) * row_bytes(handle, inputs, settings),
        f"The attention of {len(wanted)} prompt tokens",
        "fewer positions, a smaller image (max_pixels), or less of the attention (layers, heads, "
        "reduce_heads)",
    )
    pinned = handle.device.type == "cuda"
    recorders = [
        TraceRecorder(
            inputs.layout,
            layers,
            heads,
            len(run),
            reduce_heads=settings.reduce_heads,
            pinned=pinned,
            first=run.start,
        )
        for run in _runs(wanted)
    ]
    profile = handle.profile
    observer = None if profile is None else SinkObserver(profile.dims, profile.tau)
    plan = ForwardPlan(RowFanOut(recorders), None, inputs.layout.length, observer, batch=1)
    plan.all_rows_from, plan.all_rows_to = wanted[0], wanted[-1] + 1
    with running(handle.stack, plan), torch.no_grad():
        handle.model(**on_device(inputs.tensors, handle.device), use_cache=False, logits_to_keep=1)
    parts = [recorder.finish(recorder.tokens) for recorder in recorders]
    # One run of positions, the usual case, is handed on without a copy.
    attention, shares, entropy = (
        parts[0] if len(parts) == 1 else tuple(torch.cat(p) for p in zip(*parts, strict=True))
    )
    return PromptTrace(
        positions=wanted,
        tokens=tuple(PromptToken(inputs.token_ids[p], inputs.token_texts[p]) for p in wanted),
        layout=inputs.layout,
        attention=attention,
        layers=layers,
        heads=recorders[0].heads,
        shares=shares,
        entropy=entropy,
        sinks=() if observer is None else observer.found(),
        model=handle.info,
    )


def _positions(layout: PromptLayout, positions: Sequence[int] | None) -> tuple[int, ...]:
    if positions is None:
        start = layout.grids[-1].stop if layout.grids else 0
        return tuple(range(start, layout.length))
    wanted = tuple(sorted(set(positions)))
    if not wanted or wanted[0] < 0 or wanted[-1] >= layout.length:
        raise ValueError(
            f"positions is {list(positions)!r}; allowed: at least one prompt position from 0 to "
            f"{layout.length - 1}."
        )
    return wanted


def _runs(positions: Sequence[int]) -> list[range]:
    """Stretches of neighbouring positions."""
    runs: list[range] = []
    for position in positions:
        if runs and position == runs[-1].stop:
            runs[-1] = range(runs[-1].start, position + 1)
        else:
            runs.append(range(position, position + 1))
    return runs
