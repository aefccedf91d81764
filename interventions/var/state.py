"""What VAR knows about each layer during a run, in tensors on the device that are made once.

All layers of a device share one set of tensors, and each has its part of them as views: so a
prefill layer writes into them with a few kernels, and reading everything back at the end is one
copy per kind. The tensors stay the same objects until the end of the run, as a recorded decode step
needs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sinkscope.config import VARSettings
from sinkscope.interventions.var.parameters import random_control
from sinkscope.interventions.var.selection import EPSILON, KeyGroups
from sinkscope.models.sink_score import Norms

UNWRITTEN = -1.0  # in the record of moved mass; a mass is never negative


@dataclass
class LayerState:
    """One layer.

    Attributes:
        scores: (B, N) float32, phi of the prompt's tokens; 0 in rows where VAR does not act.
        sinks: (B, capacity) bool, what is acted on.
        groups: of keys, over the whole capacity.
        tau: (B, 1) float32, threshold of each row; infinite where it is off.
        seen: how many tokens' scores are known.
        moved: (B, H, queries that may change), the mass taken from the sinks of each row;
            `UNWRITTEN` until it is known, None until the number of heads is.
    """

    scores: Tensor
    sinks: Tensor
    groups: KeyGroups
    tau: Tensor
    seen: int
    moved: Tensor | None = None


class DeviceState:
    """The layers of one device.

    Args:
        rows_of: layer -> batch rows in which VAR acts.
        dialects: those of all rows in which it acts.
        there: (B, N) bool on the host, prompt positions that are not padding.
        vision: (B, capacity) bool on the device, the vision tokens among all keys.
        known: sink scores of the first P positions, layer -> (P,) or (B, P) float32.
        queries: how many queries may change.
        dtype: the working dtype.
        heads: layer -> (B, H, 1) bool, the heads that may change; None: all.
    """

    def __init__(
        self,
        rows_of: Mapping[int, Sequence[int]],
        dialects: Collection[str],
        vision_there: Tensor,
        vision: Tensor,
        known: Mapping[int, Tensor],
        queries: int,
        dtype: torch.dtype,
        heads: Mapping[int, Tensor] | None = None,
    ) -> None:
        self._layers, self._rows_of, self._vision = tuple(rows_of), rows_of, vision
        self._dialects = set(dialects)
        count, (batch, capacity), device = len(rows_of), vision.shape, vision.device
        self._queries, self.dtype = queries, dtype
        self._moved: Tensor | None = None
        acting = torch.zeros(count, batch, 1)
        for index, rows in enumerate(rows_of.values()):
            acting[index, list(rows)] = 1.0
        # A factor on the scores: 0 in rows where VAR does not act, and at padding.
        self._counts = (acting * vision_there).to(device)  # (L, B, N)
        prompt = vision_there.shape[1]
        self.scores = torch.zeros(count, batch, prompt, device=device)
        self.sinks = torch.zeros(count, batch, capacity, dtype=torch.bool, device=device)
        before = {layer: known[layer] for layer in self._layers if layer in known}
        if before:
            scores = torch.stack([layer_scores.to(device) for layer_scores in before.values()])
            scores = scores[:, None] if scores.ndim == 2 else scores  # (known layers, 1 or B, P)
            passed = scores.shape[-1]
            if len(before) == count:
                torch.mul(scores, self._counts[..., :passed], out=self.scores[..., :passed])
            for layer_scores, layer in enumerate(before) if len(before) < count else ():
                index = self._layers.index(layer)
                self.scores[index, :, :passed] = (
                    scores[layer_scores] * self._counts[index, :, :passed]
                )
        image = vision.to(dtype)
        nothing = torch.zeros_like(image)
        self._where_sink = torch.stack((nothing, image, 1 - image), 1)  # (B, 3, K)
        self._elsewhere = torch.stack((image, nothing, nothing), 1)
        self._masks = masks = self._elsewhere.repeat(count, 1, 1, 1)
        self._sinks = sinks = torch.zeros(count, batch, 1, 1, capacity, dtype=dtype, device=device)
        self._has = has = torch.zeros(2, count, batch, 1, 1, dtype=torch.bool, device=device)
        self._floor = floor = vision.sum(-1).to(dtype)[:, None, None] * EPSILON
        self.tau = torch.full((count, batch, 1), float("inf"), device=device)
        self.layers = {
            layer: LayerState(
                self.scores[index],
                self.sinks[index],
                KeyGroups(
                    masks[index],
                    sinks[index],
                    floor,
                    has[0, index],
                    has[1, index],
                    None if heads is None else heads[layer].to(device),
                ),
                self.tau[index],
                passed if layer in before else 0,
            )
            for index, layer in enumerate(self._layers)
        }

    def write(self, layer: int, norms: Norms, start: int) -> None:
        """Score the positions from `start` on, from the norms (B, n) of these.

        Sinks after them, of an earlier pass, are forgotten.
        """
        state = self.layers[layer]
        stop = start + norms.peak.shape[1]
        counts = self._counts[self._layers.index(layer), :, start:stop]
        torch.mul(norms.inverse(), norms.peak * counts, out=state.scores[:, start:stop])
        if stop < state.seen:
            state.sinks[:, stop:] = False
        state.seen = stop

    def set_tau(self, settings: Sequence[VARSettings | None]) -> None:
        """The thresholds of all layers, by the settings of each batch row; None: it is off."""
        taus = torch.full(self.tau.shape, float("inf"))
        for index, rows in enumerate(self._rows_of.values()):
            for row in rows:
                if (row_settings := settings[row]) is not None:
                    taus[index, row] = row_settings.tau
        self.tau.copy_(taus)

    def mark(self, layer: int, settings: Sequence[VARSettings | None]) -> None:
        """Mark the tokens of a layer that VAR acts on, from its scores; in place.

        The control takes its random tokens on the host, so that a seed means the same everywhere.
        """
        state, rows = self.layers[layer], self._rows_of[layer]
        scores, sinks = state.scores[:, : state.seen], state.sinks[:, : state.seen]
        if len(self._dialects) == 1:
            compare = torch.gt if self._dialects == {"official"} else torch.ge
            compare(scores, state.tau, out=sinks)
        else:
            sinks.zero_()
        for row in rows:
            row_settings = settings[row]
            if row_settings is None:
                sinks[row].zero_()
                continue
            if len(self._dialects) > 1:
                compare = torch.gt if row_settings.dialect == "official" else torch.ge
                compare(scores[row], state.tau[row], out=sinks[row])
            if row_settings.control == "random":
                vision = self._vision[row]
                state.sinks[row].copy_(
                    random_control(state.sinks[row], vision, row_settings.seed, layer)
                )
        self._group(layer)

    def _group(self, layer: int) -> None:
        """Update the key groups of a layer from its sinks; in place."""
        state = self.layers[layer]
        groups = state.groups
        torch.where(state.sinks[:, None], self._where_sink, self._elsewhere, out=groups.masks)
        groups.sinks.copy_(state.sinks[:, None, None])
        torch.any(groups.masks[:, 1], -1, out=groups.has_visual_sink.view(-1))
        torch.any(state.sinks, -1, out=groups.has_sink.view(-1))

    def note(self, layer: int, rows: slice, slots: Tensor, mass: Tensor) -> None:
        """Record the mass (b, H, n) that was moved in the queries at `slots` (n,)."""
        self._begin(mass.shape[1], mass.dtype)
        state = self.layers[layer]
        assert state.moved is not None
        state.moved[rows].index_copy_(2, slots, mass)

    def tensors(self, heads: int) -> tuple[Tensor, ...]:
        """All tensors that a decode step of a model with `heads` heads reads and writes."""
        return (self._masks, self._sinks, self._has, self._floor, self._begin(heads, self.dtype))

    def _begin(self, heads: int, dtype: torch.dtype) -> Tensor:
        """(L, B, H, queries): the record of moved mass."""
        if self._moved is None:
            shape = (len(self._layers), self.sinks.shape[1], heads, self._queries)
            self._moved = torch.full(shape, UNWRITTEN, dtype=dtype, device=self.sinks.device)
            for index, layer in enumerate(self._layers):
                self.layers[layer].moved = self._moved[index]
        return self._moved
