"""Keeping the reduced attention rows of a run, row by row, while the model generates.

Three things are kept of each row: the vision columns (float16), the mass on every prompt segment
and on the answer so far, and the row's entropy. They go into buffers allocated before the run, so
memory matches the forecast and no row outlives its step.

A recorder must be cheap compared with the layer whose row it gets. So rows of several layers
are staged and read together (one operation on a few megabytes instead of one per layer), and vision
columns and segments are read as contiguous ranges: gathering columns by index, or summing segments
with a matrix product, took 15 to 25 times as long (docs/LOG.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sinkscope.capture.host_copies import BufferSize, HostCopies, ReducedRows
from sinkscope.capture.probes.base import Reader
from sinkscope.capture.trace import MEAN_HEAD
from sinkscope.models.family import PromptLayout
from sinkscope.models.sites import SiteSelection

STAGED_BYTES = 1 << 22  # bytes of staged rows; bounds the memory in addition to the buffers
STAGED_ON_A_GPU = 1 << 25  # on a GPU each reading is several more launches
SMALLEST = torch.finfo(torch.float32).tiny  # log(0) times 0 would be NaN


@dataclass(frozen=True)
class _Block:
    """Staged rows of consecutive layers: answer tokens from `first` on, layer slots from `slot`
    on, one `shape` (1, H, R, K)."""

    first: int
    slot: int
    shape: torch.Size
    device: torch.device


class TraceRecorder(Reader):
    """Collects rows of ONE sequence (one batch row); `capture.probes.trace_rows` attaches it to a
    run.

    Args:
        layout: of the prompt (of length N).
        layers, heads: indices in the model to keep, in order.
        tokens: maximum number of rows; row t is the query at position N - 1 + t.
        first: position of the query that is row 0, where that is not N - 1.
        batch_row: which row of the batch to read.
        reduce_heads: keep the mean over these heads instead of each.
        pinned: rows are on a GPU; kept values are copied through pinned memory, one copy per token,
            so that nothing waits for it (`capture.host_copies`).
    """

    def __init__(
        self,
        layout: PromptLayout,
        layers: Sequence[int],
        heads: Sequence[int],
        tokens: int,
        *,
        batch_row: int = 0,
        reduce_heads: bool = False,
        pinned: bool = False,
        first: int | None = None,
    ) -> None:
        self.layout = layout
        self._first = layout.length - 1 if first is None else first
        self.layers = tuple(layers)
        self._read_heads = list(heads)
        self._reduce_heads = reduce_heads
        self.heads = (MEAN_HEAD,) if reduce_heads else tuple(heads)  # of the trace
        self.batch_row = batch_row
        self._slot = {layer: index for index, layer in enumerate(self.layers)}
        self.tokens = tokens
        self.reads = (SiteSelection("rows", self.layers, range(self._first, self._first + tokens)),)
        size = (tokens, len(self.layers), len(self.heads))
        # The operating system hands out these pages as they are written: a short answer costs
        # little.
        self._attention = torch.empty(*size, layout.vision_tokens, dtype=torch.float16)
        self._shares = torch.empty(*size, len(layout.segments) + 1, dtype=torch.float32)
        self._entropy = torch.empty(*size, dtype=torch.float32)
        self._vision = layout.vision_stretches()
        self._copies = HostCopies() if pinned else None
        self._most_staged = STAGED_ON_A_GPU if pinned else STAGED_BYTES
        self._rows = 0
        self._staged: list[torch.Tensor] = []  # each (1, H, R, K)
        self._block: _Block | None = None

    def see(self, site: str, layer: int, values: Any, positions: Sequence[int]) -> None:
        """Rows of a layer."""
        self.record(layer, values.detach(), positions[0])

    def record(self, layer: int, rows: torch.Tensor, first_position: int) -> None:
        """Keep the rows (B, H, R, K) of one layer that explain answer tokens; others are
        dropped.

        Raises:
            ValueError: the batch has no such row.
        """
        slot = self._slot.get(layer)
        if slot is None:
            return
        first = first_position - self._first
        low, high = max(0, -first), min(rows.shape[2], self.tokens - first)
        if low >= high:
            return
        if self.batch_row >= rows.shape[0]:
            raise ValueError(
                f"A run records batch row {self.batch_row}, but the batch has {rows.shape[0]}."
            )
        some = high - low < rows.shape[2]
        if rows.shape[0] > 1 or some:
            rows = rows[self.batch_row : self.batch_row + 1, :, low:high]
            if some:  # a view would keep all the others in memory while it is staged
                rows = rows.clone()
        block = self._block
        if not (
            block is not None
            and block.first == first + low
            and block.slot + len(self._staged) == slot
            and block.shape == rows.shape
            and block.device == rows.device
        ):  # another step, a gap in the layers, or another GPU
            self._read_staged()
            self._block = _Block(first + low, slot, rows.shape, rows.device)
        self._staged.append(rows)
        size = rows.numel() * rows.element_size() * len(self._staged)
        if size >= self._most_staged or slot == len(self.layers) - 1:
            self._read_staged()

    def put(
        self, first: int, attention: torch.Tensor, shares: torch.Tensor, entropy: torch.Tensor
    ) -> None:
        """Keep rows that were reduced elsewhere, of answer tokens from `first` on.

        Args:
            first: index of the first of T of them.
            attention: (T, L, H, V).
            shares: (T, L, H, S + 1).
            entropy: (T, L, H). All on the CPU, with the layers and heads of this recorder.
        """
        stop = first + len(entropy)
        self._attention[first:stop].copy_(attention)
        self._shares[first:stop].copy_(shares)
        self._entropy[first:stop].copy_(entropy)
        self._rows = max(self._rows, stop)

    def recorded(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What was kept for the first `tokens` answer tokens.

        Returns:
            attention float16 (T, L, H, V), shares float32 (T, L, H, S + 1), entropy float32 (T, L,
            H), on the CPU.
        """
        self._read_staged()
        if self._copies is not None:
            self._copies.start()
            self._copies.deliver(wait=True)
        if tokens > self._rows:
            raise RuntimeError(
                f"{tokens} tokens were generated but only {self._rows} attention rows were "
                "recorded."
            )
        return self._attention[:tokens], self._shares[:tokens], self._entropy[:tokens]

    def _read_staged(self) -> None:
        """Reduce the staged rows, and release them."""
        block, staged = self._block, self._staged
        self._block, self._staged = None, []
        if block is None or not staged:
            return
        if self._copies is not None:
            self._copies.deliver(wait=False)
        rows = torch.cat(staged).float()  # (l, H, R, K)
        count = len(staged)
        staged.clear()
        if self._read_heads != list(range(rows.shape[1])):
            rows = rows[:, self._read_heads]
        # entropy = - sum of a log a; torch.special.entr says the same in twice the time on a CPU
        logs = rows.clamp_min(SMALLEST).log_()
        entropy = logs.mul_(rows).sum(-1).neg_().clamp_min_(0)  # (l, H, R)
        if self._reduce_heads:
            rows, entropy = rows.mean(1, keepdim=True), entropy.mean(1, keepdim=True)
        length = self.layout.length
        spans = [(s.start, s.stop) for s in self.layout.segments] + [(length, rows.shape[3])]
        shares = torch.stack([rows[..., a:b].sum(-1) for a, b in spans], dim=-1)  # (l, H, R, S + 1)
        kept = self._place(block, count)
        for columns, positions in self._vision:
            kept.attention[..., columns].copy_(rows[..., positions].movedim(2, 0))
        kept.shares.copy_(shares.movedim(2, 0))
        kept.entropy.copy_(entropy.movedim(2, 0))
        if self._copies is not None and block.slot + count == len(self.layers):
            self._copies.start()
        self._rows = max(self._rows, block.first + rows.shape[2])

    def _place(self, block: _Block, count: int) -> ReducedRows:
        """The output buffer of `count` staged layers: a part of the buffers, or memory on the
        device that is copied there."""
        rows = block.shape[2]
        slots, to = slice(block.slot, block.slot + count), slice(block.first, block.first + rows)
        destination = ReducedRows(self._attention[to], self._shares[to], self._entropy[to])
        if self._copies is None:
            return destination.layers(slots)
        layers = len(self.layers)
        if rows > 1:  # of a prompt: rows come block by block in each layer, and share no copy
            destination, slots, layers = destination.layers(slots), slice(0, count), count
        size = BufferSize(
            rows, layers, len(self.heads), self.layout.vision_tokens, self._shares.shape[-1]
        )
        return self._copies.buffer(size, block.device, block.first, slots, destination)
