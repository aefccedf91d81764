"""Keeping what a run's attention rows say, row by row, while the model generates.

Of each row three things stay: the vision columns (float16), the mass on every prompt segment and on
the answer so far, and the row's entropy. They are copied off the device at once, into buffers made
before the run, so that memory is what the forecast said and no row outlives its step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from models.family import PromptLayout


class TraceRecorder:
    """Collects rows of ONE sequence (one batch row); `models.attention.RowRecorder` in the plan of
    a run.

    Args:
        layout: of the prompt (of length N).
        layers, heads: indices in the model to keep, in order.
        tokens: most rows to expect; row t is the query at position N - 1 + t.
        batch_row: which row of the batch to read.
        pinned: keep the buffers in pinned memory, so that copies off a GPU do not wait.
    """

    def __init__(
        self,
        layout: PromptLayout,
        layers: Sequence[int],
        heads: Sequence[int],
        tokens: int,
        *,
        batch_row: int = 0,
        pinned: bool = False,
    ) -> None:
        self.layout = layout
        self.layers = tuple(layers)
        self.heads = tuple(heads)
        self.batch_row = batch_row
        self._slot = {layer: index for index, layer in enumerate(self.layers)}
        self._tokens = tokens
        size = (tokens, len(self.layers), len(self.heads))
        # On a CPU the operating system hands out these pages as they are written, so a short answer
        # costs little.
        self._attention = torch.empty(
            *size, layout.vision_tokens, dtype=torch.float16, pin_memory=pinned
        )
        self._shares = torch.empty(
            *size, len(layout.segments) + 1, dtype=torch.float32, pin_memory=pinned
        )
        self._entropy = torch.empty(*size, dtype=torch.float32, pin_memory=pinned)
        self._pinned = pinned
        self._rows = 0
        self._on_device: dict[
            torch.device, tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
        ] = {}

    def record(self, layer: int, rows: torch.Tensor, first_position: int) -> None:
        """Keep the rows (B, H, R, K) of one layer that explain answer tokens; rows of the prompt
        before them are dropped."""
        slot = self._slot.get(layer)
        if slot is None:
            return
        first = first_position - (self.layout.length - 1)
        low, high = max(0, -first), min(rows.shape[2], self._tokens - first)
        if low >= high:
            return
        vision, members, heads = self._indices(rows.device, rows.shape[1])
        kept = rows[self.batch_row, :, low:high].float()  # (H, R, K)
        if heads is not None:
            kept = kept[heads]
        prompt = kept[..., : self.layout.length]
        shares = torch.cat(
            [prompt @ members, kept[..., self.layout.length :].sum(-1, keepdim=True)], dim=-1
        )
        to = slice(first + low, first + high)
        copies = (
            (self._attention, prompt[..., vision]),
            (self._shares, shares),
            (self._entropy, torch.special.entr(kept).sum(-1)),
        )
        for buffer, value in copies:
            buffer[to, slot].copy_(
                value.transpose(0, 1).to(buffer.dtype), non_blocking=self._pinned
            )
        self._rows = max(self._rows, first + high)

    def finish(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What was kept for the first `tokens` answer tokens.

        Returns:
            attention float16 (T, L, H, V), shares float32 (T, L, H, S + 1), entropy float32 (T, L,
            H), on the CPU.
        """
        if tokens > self._rows:
            raise RuntimeError(
                f"{tokens} tokens were generated but only {self._rows} attention rows were "
                "recorded."
            )
        for device in self._on_device:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        return tuple(
            _owned(buffer[:tokens], self._pinned)
            for buffer in (self._attention, self._shares, self._entropy)
        )  # type: ignore[return-value]

    def _indices(
        self, device: torch.device, model_heads: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """On `device`: vision positions (V,), membership of prompt positions in segments (N, S),
        kept heads (None: all)."""
        found = self._on_device.get(device)
        if found is None:
            members = torch.zeros(self.layout.length, len(self.layout.segments))
            for index, segment in enumerate(self.layout.segments):
                members[segment.start : segment.stop, index] = 1.0
            heads = (
                None
                if self.heads == tuple(range(model_heads))
                else torch.tensor(self.heads, device=device)
            )
            found = (self.layout.vision_positions().to(device), members.to(device), heads)
            self._on_device[device] = found
        return found


def _owned(view: torch.Tensor, pinned: bool) -> torch.Tensor:
    """A part of a buffer, free of what the answer did not need: pinned pages are scarce, plain ones
    were never touched."""
    return view.clone() if pinned else view
