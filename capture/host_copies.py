"""From a GPU to the host: the kept parts of attention rows are copied once per token.

Each copy is a launch, a block of pinned memory and an event; three of them for every few layers
cost more than the data they move. So the parts of a token are written side by side into one buffer
on the device, and the buffer crosses when the last layer has written its part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ReducedRows:
    """What is kept of some rows.

    Attributes:
        attention: float16 (R, L, H, V).
        shares: float32 (R, L, H, S + 1).
        entropy: float32 (R, L, H).
    """

    attention: Tensor
    shares: Tensor
    entropy: Tensor

    def layers(self, slots: slice) -> ReducedRows:
        """Views of some layers."""
        return ReducedRows(self.attention[:, slots], self.shares[:, slots], self.entropy[:, slots])

    def copy_(self, other: ReducedRows) -> None:
        """Take over the values of `other`."""
        self.attention.copy_(other.attention)
        self.shares.copy_(other.shares)
        self.entropy.copy_(other.entropy)


@dataclass(frozen=True)
class BufferSize:
    """The amount kept: rows, layers, heads, vision tokens, and segments with the answer's."""

    rows: int
    layers: int
    heads: int
    vision: int
    segments: int

    def views(self, data: Tensor) -> ReducedRows:
        """Views of `bytes`; float32 first, because it has to begin at a multiple of 4."""
        many = self.rows * self.layers * self.heads
        shape = (self.rows, self.layers, self.heads)
        shares, entropy = 4 * many * self.segments, 4 * many * (self.segments + 1)
        return ReducedRows(
            data[entropy:].view(torch.float16).view(*shape, self.vision),
            data[:shares].view(torch.float32).view(*shape, self.segments),
            data[shares:entropy].view(torch.float32).view(*shape),
        )

    @property
    def bytes(self) -> int:
        return self.rows * self.layers * self.heads * (4 * (self.segments + 1) + 2 * self.vision)


@dataclass(frozen=True)
class PendingCopy:
    """A copy in progress.

    Attributes:
        event: recorded after it.
        values: what it writes to, on the host.
        slots: which layers of it count.
        destination: their destination.
    """

    event: torch.cuda.Event
    values: ReducedRows
    slots: slice
    destination: ReducedRows


@dataclass
class _OpenBuffer:
    """A buffer that is being written: size, device and first row; layers `start` to `stop`."""

    key: tuple[BufferSize, torch.device, int]
    start: int
    stop: int
    destination: ReducedRows


class HostCopies:
    """The copies of one recorder, in the order in which they were sent.

    Attributes:
        started: how many there were.
    """

    def __init__(self) -> None:
        self.started = 0
        self._buffers: dict[tuple[BufferSize, torch.device], Tensor] = {}
        self._under_way: list[PendingCopy] = []
        self._open: _OpenBuffer | None = None

    def buffer(
        self, size: BufferSize, device: torch.device, first: int, slots: slice, to: ReducedRows
    ) -> ReducedRows:
        """The buffer on the device for the kept parts of the layers `slots`.

        An open buffer is sent first, unless these layers continue it. A buffer is reused for the
        next token: its copy is queued before the next token is written.

        Args:
            size: of all layers together.
            device: where the rows are.
            first: index of the first row.
            slots: layers, neighbours.
            to: destination of all layers.
        """
        key = (size, device, first)
        if self._open is not None and self._open.key == key and self._open.stop == slots.start:
            self._open.stop = slots.stop
        else:
            self.start()
            self._open = _OpenBuffer(key, slots.start, slots.stop, to)
        if (size, device) not in self._buffers:
            self._buffers[size, device] = torch.empty(size.bytes, dtype=torch.uint8, device=device)
        return size.views(self._buffers[size, device]).layers(slots)

    def start(self) -> None:
        """Start the copy of what has been written."""
        if self._open is None:
            return
        (size, device, _), slots = self._open.key, slice(self._open.start, self._open.stop)
        # The caching allocator of pinned memory gives the same few blocks again and again.
        arriving = pinned_bytes(size.bytes)
        arriving.copy_(self._buffers[size, device], non_blocking=True)
        self._under_way.append(
            PendingCopy(record_event(device), size.views(arriving), slots, self._open.destination)
        )
        self._open = None
        self.started += 1

    def deliver(self, wait: bool) -> None:
        """Move finished copies to their destination; choosing a token waits for the GPU anyway, so
        the copies of earlier steps are finished."""
        while self._under_way:
            one = self._under_way[0]
            if wait:
                one.event.synchronize()
            elif not one.event.query():
                return
            one.destination.layers(one.slots).copy_(one.values.layers(one.slots))
            self._under_way.pop(0)


def pinned_bytes(size: int) -> Tensor:
    """Bytes on the host that a GPU can write to."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


def record_event(device: torch.device) -> torch.cuda.Event:
    """An event after all that was launched on a device."""
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event
