"""The information about a run that a probe or an intervention gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sinkscope.models.family import PromptLayout
from sinkscope.models.info import ModelInfo
from sinkscope.models.sink_score import ScoreBook


@dataclass
class Step:
    """The current forward pass: its first position and number of positions.

    Everything else about a run is fixed; this advances. `passes` counts the passes so far.
    """

    start: int = 0
    length: int = 0
    passes: int = 0
    _made: tuple[object, Tensor] | None = field(default=None, repr=False)

    def positions(self, first: int, count: int, device: torch.device, origin: int = 0) -> Tensor:
        """int64 (count,): the positions first, first + 1, ... counted from `origin`.

        Computed once for all layers. A recorded step overrides this by a tensor that the step
        itself advances, so values are written at these positions without reading the host.
        """
        what = (first, count, device, origin)
        if self._made is None or self._made[0] != what:
            positions = torch.arange(first - origin, first - origin + count, device=device)
            self._made = (what, positions)
        return self._made[1]


@dataclass(frozen=True)
class RunInfo:
    """A run, as `capture.session.attached` sets it up.

    Attributes:
        model: sizes, dtype and device.
        layouts: of the prompt, one per batch row.
        length: prompt positions, with the padding of a batch of prompts (on the left).
        new_tokens: maximum number of positions after the prompt.
        device: where inputs go.
        start: positions that a shared prefix holds already.
        known_dims, known: of a prefix: the sink dimensions scored, and layer -> float32 (start,),
            or (batch, start) if rows continue from their own prefixes.
        step: the current forward pass.
        book: sink scores of the current layer, shared by all readers.
        columns: if rows continue from their own prefixes, which are padded so that all end at
            `start`: for each row, int64, the column of each token of its prompt.
        room: capacity of a cache of fixed size, if that is more than the run can use; the rest
            stays empty.
    """

    model: ModelInfo
    layouts: tuple[PromptLayout, ...]
    length: int
    new_tokens: int
    device: torch.device
    start: int = 0
    known_dims: tuple[int, ...] = ()
    known: Mapping[int, Tensor] = field(default_factory=dict)
    step: Step = field(default_factory=Step)
    book: ScoreBook = field(default_factory=ScoreBook, repr=False, compare=False)
    columns: tuple[Tensor, ...] | None = None
    room: int = 0

    @property
    def batch(self) -> int:
        """Number of batch rows."""
        return len(self.layouts)

    @property
    def capacity(self) -> int:
        """The maximum number of positions: prompt and new tokens, or a fixed cache's capacity."""
        return max(self.length + self.new_tokens, self.room)

    @property
    def after_image(self) -> int:
        """Position after the last image of any batch row; 0 where there is no image."""
        if self.columns is not None:
            return self.start
        return max(
            self.length - layout.length + layout.after_images if layout.grids else 0
            for layout in self.layouts
        )

    def scores_before(self, dims: Sequence[int]) -> Mapping[int, Tensor]:
        """Sink scores of a shared prefix, layer -> float32 (start,); empty without a prefix.

        Raises:
            ValueError: the prefix was scored by other dimensions.
        """
        if self.start and tuple(dims) != self.known_dims:
            raise ValueError(
                f"dims is {tuple(dims)}, but the shared prefix was scored by {self.known_dims}; "
                "make a prefix for these dimensions."
            )
        return self.known
