"""The reduced rows of a step, kept on the device for a block of tokens and copied to the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sinkscope.capture import host_copies
from sinkscope.capture.engine.recording import needs_host_copy
from sinkscope.capture.recorder import SMALLEST, TraceRecorder
from sinkscope.models.family import PromptLayout

BLOCK_BYTES = 1 << 26  # bytes of a block of tokens on the device, and of pinned memory on the host
REDUCED_BYTES = 1 << 25  # bytes of rows that are reduced at once
REDUCED_COPIES = 4  # copies of rows in that: a logarithm, float64, the image's columns
MOST_BLOCK = 256  # tokens
COLUMN_STEP = 64  # images of similar size share a recorded step


@dataclass(frozen=True)
class Shape:
    """Sizes of the data kept for one token: L layers, B rows of the batch, H heads.

    Attributes:
        layers, batch, heads: as above; heads is 1 where their mean is kept.
        columns: vision columns, rounded up to `COLUMN_STEP`.
        segments: of the prompt, and one for the answer.
    """

    layers: int
    batch: int
    heads: int
    columns: int
    segments: int

    @staticmethod
    def of(layout: PromptLayout, layers: int, batch: int, heads: int) -> Shape:
        """For one layout."""
        columns = -(-layout.vision_tokens // COLUMN_STEP) * COLUMN_STEP
        return Shape(layers, batch, heads, columns, len(layout.segments) + 1)

    @property
    def token_bytes(self) -> int:
        """Bytes of one token: float16 columns, float32 shares and entropy."""
        return self.layers * self.batch * self.heads * (2 * self.columns + 4 * self.segments + 4)

    def block(self, tokens: int) -> int:
        """How many tokens of an answer of `tokens` are kept on the device before they are copied.
        Answers of similar length have equal blocks."""
        about = min(MOST_BLOCK, 1 << (tokens - 1).bit_length())
        return max(1, min(about, BLOCK_BYTES // max(1, self.token_bytes)))

    def working_bytes(self, kept_heads: int, keys: int, tokens: int) -> int:
        """The memory of a step on the device: the block, rows of `kept_heads` heads over `keys`
        keys, and the buffers of the reduction."""
        layer = self.batch * kept_heads * keys * 4
        reduced = max(REDUCED_COPIES * layer, REDUCED_BYTES)
        block = self.block(tokens) * self.token_bytes
        return block + self.layers * layer + min(reduced, self.layers * layer * REDUCED_COPIES)


class History:
    """The newest tokens' reduced rows, in a block on the device.

    Args:
        shape: of a token.
        tokens: T, of the block.
        capacity: K, of the rows.
        device: where the rows are.
        mean: keep the mean over the heads.

    Attributes:
        slot: int64 (1,), where the next token goes.
        attention, shares, entropy: (T, L, B, H, columns) float16, (T, L, B, H, segments) and
            (T, L, B, H) float32.
    """

    def __init__(
        self, shape: Shape, tokens: int, capacity: int, device: torch.device, mean: bool
    ) -> None:
        self.tokens, self._mean = tokens, mean
        size = (tokens, shape.layers, shape.batch, shape.heads)
        self.attention = torch.zeros(*size, shape.columns, dtype=torch.float16, device=device)
        self.shares = torch.zeros(*size, shape.segments, device=device)
        self.entropy = torch.zeros(size, device=device)
        self.slot = torch.zeros(1, dtype=torch.long, device=device)
        self._columns = torch.zeros(shape.columns, dtype=torch.long, device=device)
        self._segments = torch.zeros(capacity, shape.segments, dtype=torch.float64, device=device)

    def begin(self, layout: PromptLayout) -> None:
        """Set the image's columns and the segments for the run that begins."""
        self.slot.zero_()
        vision = layout.vision_positions()
        columns = torch.zeros(len(self._columns), dtype=torch.long)
        columns[: len(vision)] = vision
        self._columns.copy_(columns)
        segments = torch.zeros(self._segments.shape, dtype=torch.float64)
        for index, segment in enumerate(layout.segments):
            segments[segment.start : segment.stop, index] = 1
        segments[layout.length :, -1] = 1
        self._segments.copy_(segments)

    def note(self, rows: Tensor) -> None:
        """Part of the step: reduce float32 rows (L, B, H', K) into the block, as many layers at a
        time as `REDUCED_BYTES` allows."""
        some = max(1, REDUCED_BYTES // (REDUCED_COPIES * 4 * max(1, rows[0].numel())))
        for low in range(0, len(rows), some):
            self._note(rows[low : low + some], slice(low, low + some))
        self.slot.add_(1)

    def _note(self, rows: Tensor, layers: slice) -> None:
        logs = rows.clamp_min(SMALLEST).log_()
        entropy = logs.mul_(rows).sum(-1).neg_().clamp_min_(0)
        if self._mean:
            rows, entropy = rows.mean(2, keepdim=True), entropy.mean(2, keepdim=True)
        # In float64: a product of float32 may be set to round its inputs (TF32).
        shares = torch.matmul(rows.double(), self._segments).float()
        if len(self._columns):
            seen = rows.index_select(-1, self._columns).half()
            self.attention[:, layers].index_copy_(0, self.slot, seen[None])
        self.shares[:, layers].index_copy_(0, self.slot, shares[None])
        self.entropy[:, layers].index_copy_(0, self.slot, entropy[None])

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.attention, self.shares, self.entropy

    @property
    def nbytes(self) -> int:
        """Bytes of the block."""
        return sum(part.numel() * part.element_size() for part in self.parts)


class HistoryCopies:
    """Copies one run's history to its recorders, a block at a time.

    On a GPU a full block is copied to pinned memory after the step that filled it, and from there
    into the recorders while the next step runs.

    Args:
        history: of the step.
        recorders: one per batch row.
        columns: how many vision columns there are.
        first: the answer token that the first step's row explains.
    """

    def __init__(
        self, history: History, recorders: Sequence[TraceRecorder], columns: int, first: int = 1
    ) -> None:
        self._history, self._recorders, self._columns = history, recorders, columns
        self._first, self._waiting = first, 0
        self._needs_host_copy = needs_host_copy(history.slot.device)
        self._sent: tuple[int, list[Tensor], torch.cuda.Event | None] | None = None
        self._pinned: list[Tensor] | None = None

    def count_step(self) -> None:
        """Count a step that was launched."""
        self._waiting += 1
        if self._waiting == self._history.tokens:
            self._send()

    def copy_all(self) -> None:
        """Copy everything into the recorders before returning."""
        if self._waiting:
            self._send()
        self.collect()

    def collect(self) -> None:
        """Move finished copies into the recorders."""
        if self._sent is None:
            return
        first, parts, event = self._sent
        self._sent = None
        if event is not None:
            event.synchronize()
        attention, shares, entropy = parts
        for row, recorder in enumerate(self._recorders):
            recorder.put(
                first,
                attention[:, :, row, :, : self._columns],
                shares[:, :, row],
                entropy[:, :, row],
            )

    def _send(self) -> None:
        self.collect()
        count, self._waiting = self._waiting, 0
        parts = [part[:count] for part in self._history.parts]
        event = None
        if self._needs_host_copy:
            if self._pinned is None:
                self._pinned = [pinned_like(part) for part in self._history.parts]
            for part, pinned in zip(parts, self._pinned, strict=True):
                pinned[:count].copy_(part, non_blocking=True)
            event = host_copies.record_event(parts[0].device)
            parts = [pinned[:count] for pinned in self._pinned]
        self._sent = (self._first, parts, event)
        self._first += count
        self._history.slot.zero_()
        if event is None:  # the next step writes into the same memory
            self.collect()


def pinned_like(values: Tensor) -> Tensor:
    """Memory on the host for a copy of a tensor, which a GPU can write to."""
    size = values.numel() * values.element_size()
    return host_copies.pinned_bytes(size).view(values.dtype).view(values.shape)
