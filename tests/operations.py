"""Counts what a run asks of the device: operations, and reads by the host."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

READS = (
    "_local_scalar_dense",  # .item(), .tolist(), bool(tensor)
    "nonzero",  # also used when indexing with a bool mask
    "masked_select",
    "is_nonzero",
    "equal",
    "unique_consecutive",
    "repeat_interleave",
)


class Operations(TorchDispatchMode):
    """Counts operations that launch a kernel on a GPU (all except those that only make a view), and
    among them those whose result the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        views = func.is_view or packet in (
            torch.ops.aten.slice,
            torch.ops.aten.detach,
            torch.ops.aten.promote_types,
            torch.ops.aten._unsafe_view,
        )
        if not views:
            self.names[packet.__name__] += 1
        return func(*args, **(kwargs or {}))

    @property
    def count(self) -> int:
        return sum(self.names.values())

    @property
    def reads(self) -> int:
        return sum(count for name, count in self.names.items() if name in READS)
