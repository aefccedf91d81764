"""One decode step: a function without arguments over fixed tensors.

    position, token -> text model over fixed keys, rows changed and kept -> logits -> probabilities
    -> the next token -> histories

Nothing in it reads the host, so it can be recorded and replayed. Values that differ between runs
are written into its tensors before (`begin`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sinkscope.capture.engine.cache import FixedCache
from sinkscope.capture.engine.choosing import Rule, statistics_tensor
from sinkscope.capture.engine.clock import Clock
from sinkscope.capture.engine.history import History, Shape
from sinkscope.capture.engine.recording import Recording
from sinkscope.capture.tokens import ALTERNATIVES
from sinkscope.models.family import PromptLayout
from sinkscope.models.loading import ModelHandle
from sinkscope.models.plan import PLAN_KEY, RowChange
from sinkscope.models.static_step import StepPlan


@dataclass(frozen=True)
class StepKey:
    """Everything that is fixed in a step; runs that agree in it can share one.

    Attributes:
        shape: what is kept of a token.
        capacity: of the keys.
        block: tokens of a history block.
        layers, heads: indices in the model that are kept.
        mean: the mean over the heads is kept.
        choice: `Rule.key`; None where tokens are chosen after the step.
        changes: what changes rows (`ActiveIntervention.step_key`); None is never equal to another
            run's.
        compiled: the text model is compiled.
    """

    shape: Shape
    capacity: int
    block: int
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    mean: bool
    choice: Hashable
    changes: Hashable
    compiled: bool


class DecodeStep:
    """A step and its memory.

    Args:
        handle: the model.
        key: what is fixed.
        rule: how tokens are chosen; None: they are chosen after the step, by `take`.

    Attributes:
        cache: keys and values; the prompt is passed through the model with it.
        clock: positions, for the interventions on rows; that of the run that made the step.
        rows: float32 (L, B, H', K), of the newest token.
        logits: float32 (B, vocabulary) of the newest position, where tokens are chosen after the
            step.
        statistics: float64 (B, n), what is copied to the host about the newest token
            (`choosing.statistics_tensor`).
        states: tensors of the interventions on rows, in the order of
            `ActiveIntervention.step_state`.
        ran: whether it was run before, so that all of it is compiled.
        recording: of this step, which `launch` replays; None: it is not recorded.
    """

    def __init__(self, handle: ModelHandle, key: StepKey, rule: Rule | None) -> None:
        device, shape = handle.device, key.shape
        self.key, self.rule = key, rule
        self._stack = handle.stack
        self._embed = handle.model.get_input_embeddings() if handle.family.sees_images else None
        self._forward: Callable[..., Any] = handle.stack.language_model
        if key.compiled:
            self._forward = torch.compile(handle.stack.language_model, dynamic=False)
        self.cache = FixedCache(len(handle.stack.layers), key.capacity)
        self.clock = Clock()
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.ids = torch.zeros(shape.batch, 1, dtype=torch.long, device=device)
        self.rows = torch.zeros(
            len(key.layers), shape.batch, len(key.heads), key.capacity, device=device
        )
        self.history = History(shape, key.block, key.capacity, device, key.mean)
        self.position_ids: Tensor | None = None
        self.logits: Tensor | None = None
        self.statistics: Tensor | None = None
        self.seen: Tensor | None = None
        self.states: tuple[Tensor, ...] = ()
        self.ran = False
        self.recording: Recording | None = None
        self._plan = StepPlan(
            position=self.position,
            capacity=key.capacity,
            windows=tuple(handle.stack.windows),
            kept={layer: self.rows[slot] for slot, layer in enumerate(key.layers)},
            heads=None
            if key.heads == tuple(range(handle.info.heads))
            else torch.tensor(key.heads, device=device),
        )

    def begin(
        self, layout: PromptLayout, position_ids: Tensor, logits: Tensor, ids: Tensor
    ) -> None:
        """Set the step after a prompt that was passed through the model with `cache`.

        Args:
            layout: of the prompt.
            position_ids: of the next token, int64 ((axes,) B, 1).
            logits: of the prompt's last position, (B, vocabulary).
            ids: int64 (B, N), the prompt.
        """
        if self.position_ids is None or self.position_ids.shape != position_ids.shape:
            self.position_ids, self.recording = torch.empty_like(position_ids), None
        self.position_ids.copy_(position_ids)
        self.position.fill_(layout.length)
        self.history.begin(layout)
        if self.rule is not None and self.rule.penalty is not None:
            if self.seen is None:
                self.seen = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
            self.seen.zero_().scatter_(1, ids, True)
        if self.logits is None:
            self.logits = torch.empty_like(logits, dtype=torch.float32)
            self.statistics = statistics_tensor(self.logits, self.ids[:, 0], ALTERNATIVES)
        self.logits.copy_(logits)
        self.cache.decode_at(self.position)
        self.clock.position = self.position

    def accepts(self, states: Sequence[Tensor]) -> bool:
        """Whether another run's values can be written into the tensors of the interventions."""
        return [(t.shape, t.dtype) for t in states] == [(t.shape, t.dtype) for t in self.states]

    def set_interventions(
        self,
        changes: Mapping[int, Sequence[RowChange]],
        states: Sequence[Tensor],
        clock: Clock,
        first: int,
    ) -> None:
        """Set the interventions on rows, the tensors that they read and write, the clock that gives
        them positions, and the first position. A recording with others is dropped."""
        self.recording = None
        self._plan.changes, self._plan.first_position = changes, first
        self.states, self.clock = tuple(states), clock

    def choose(self) -> None:
        """Choose from the logits by the rule, and take the token."""
        assert self.rule is not None and self.logits is not None
        self.take(self.rule.choose(self.logits, self.seen))

    def take(self, token: Tensor) -> None:
        """The next token int64 (B,): compute its statistics; it is the input of the next step."""
        assert self.logits is not None and self.statistics is not None
        self.statistics.copy_(statistics_tensor(self.logits, token, ALTERNATIVES))
        self.ids.copy_(token[:, None])
        if self.seen is not None:
            self.seen.scatter_(1, self.ids, True)

    def launch(self) -> None:
        """Run the step once."""
        if self.recording is not None:
            self.recording.replay()
        else:
            self()

    def __call__(self) -> None:
        """The step itself."""
        assert self.position_ids is not None and self.logits is not None
        self.clock.begin_step()
        mask = self._plan.begin()
        asked: dict[str, Any] = {"input_ids": self.ids}
        if self._embed is not None:
            asked = {"inputs_embeds": self._embed(self.ids)}
        hidden = self._forward(
            **asked,
            attention_mask=mask,
            position_ids=self.position_ids,
            past_key_values=self.cache,
            use_cache=True,
            **{PLAN_KEY: self._plan},
        )[0]
        self.logits.copy_(self._stack.output_head(hidden[:, -1:])[:, -1])
        self.history.note(self.rows)
        self.position.add_(1)
        self.position_ids.add_(1)
        if self.rule is not None:
            self.choose()

    def changing_tensors(self) -> list[Tensor]:
        """All tensors that a step writes and the next one reads; restored after a trial."""
        moving = [
            self.position,
            self.ids,
            self.history.slot,
            self.position_ids,
            self.logits,
            self.statistics,
        ]
        moving += [self.seen, *self.states]
        return [tensor for tensor in moving if tensor is not None]

    def end(self) -> None:
        """End the run; the cache accepts a prompt again."""
        self.cache.decode_at(None)
        self.clock.position = None

    @property
    def nbytes(self) -> int:
        """Bytes of its memory on the device."""
        buffers = [self.rows, *self.changing_tensors(), *self.history.parts]
        tensors = sum(t.numel() * t.element_size() for t in buffers)
        recorded = 0 if self.recording is None else self.recording.nbytes
        return self.cache.nbytes + tensors + recorded
