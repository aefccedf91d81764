"""What a probe or an intervention is told about the run it is attached to."""

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
    """The forward pass that is running: its first position and how many there are.

    Everything else about a run is fixed; this advances. `passes` counts the passes so far.
    """

    start: int = 0
    length: int = 0
    passes: int = 0
    _made: tuple[object, Tensor] | None = field(default=None, repr=False)

    def positions(self, first: int, count: int, device: torch.device, origin: int = 0) -> Tensor:
        """int64 (count,): the positions first, first + 1, ... counted from `origin`.

        Made once for all layers that ask for the same. Who records a step as a graph overrides
        this by a tensor that the step itself advances; what is written at these positions then
        follows without reading the host.
        """
        what = (first, count, device, origin)
        if self._made is None or self._made[0] != what:
            made = torch.arange(first - origin, first - origin + count, device=device)
            self._made = (what, made)
        return self._made[1]


@dataclass(frozen=True)
class RunInfo:
    """A run, as `capture.session.attached` sets it up.

    Attributes:
        model: sizes, dtype and device.
        layouts: of the prompt, one per batch row.
        length: prompt positions, with the padding of a batch of prompts (on the left).
        new_tokens: most positions that may follow the prompt.
        device: where inputs go.
        start: positions that a shared prefix holds already.
        known_dims, known: of a prefix: the sink dimensions scored, and layer -> float32 (start,),
            or (batch, start) where rows continue from prefixes of their own.
        step: the forward pass that is running.
        book: sink scores of the layer that is running, shared by all who ask.
        columns: where rows continue from prefixes of their own, which are padded so that all end at
            `start`: of each row, int64, at which position each token of its prompt stands.
        room: positions that a cache of fixed size has room for, where that is more than there may
            be; the others hold nothing.
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
        """Most positions there can be: prompt and new tokens, or what a fixed cache has."""
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
