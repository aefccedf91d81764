"""The position of a run, for everything that is written by position: on the host, or on the
device."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sinkscope.models.run_info import Step


@dataclass
class Clock(Step):
    """A `Step` whose positions come from the device once they exist there.

    Attributes:
        position: int64 (1,) of the query of the step that runs; None: the host counts.
    """

    position: Tensor | None = None
    _offsets: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def begin_step(self) -> None:
        """Before each step: positions are rebuilt, once for all layers."""
        self._offsets.clear()

    def positions(self, first: int, count: int, device: torch.device, origin: int = 0) -> Tensor:
        """See `Step.positions`; `first` is not used where the device counts, and `count` is 1."""
        if self.position is None:
            return super().positions(first, count, device, origin)
        if origin not in self._offsets:
            self._offsets[origin] = self.position - origin
        return self._offsets[origin]
