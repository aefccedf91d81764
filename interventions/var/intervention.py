"""VAR inside a running model: what finds the sinks at prefill and rescales attention from then on.

One `VARIntervention` belongs to one run and ends with it; nothing is kept anywhere else, so two
runs with different settings never see each other's sinks. The attention function calls it (the
protocol is `models.attention.RowIntervention`):

1. `observe` scores the prompt's tokens at the input of each layer.
2. `correct` corrects the fused kernel's output at prefill, for queries after the last image.
3. `rows` rescales the exact rows at every decode step, and those that are recorded.
4. `report` says what was done, and why nothing where nothing was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from config import VARSettings
from interventions.var.correction import correct_output
from interventions.var.redistribute import redistribute_rows
from interventions.var.report import LayerReport, VARReport, make_report
from interventions.var.selection import KeyGroups, working_dtype
from models.sink_score import FIRST_LAYER, above_threshold, sink_score


def acting_layers(settings: VARSettings, layers: int) -> tuple[int, ...]:
    """The layers in which VAR acts: those asked for, else 2 .. L-2 (arXiv 2503.03321)."""
    if settings.layers is not None:
        return settings.layers
    return tuple(range(FIRST_LAYER, layers - 1))


def validate_var(settings: VARSettings, hidden_size: int, layers: int, vision_tokens: int) -> None:
    """Check VAR's settings against a model and a prompt, before any compute.

    Raises:
        ValueError: a dimension or layer that the model does not have, a tau that can never be
            reached, no layer to act on, or a prompt without an image.
    """
    wrong = [d for d in settings.dims if d >= hidden_size]
    if wrong:
        raise ValueError(
            f"dims has {wrong}; this model's hidden size allows 0 to {hidden_size - 1}."
        )
    if settings.tau > math.sqrt(hidden_size):
        raise ValueError(
            f"tau is {settings.tau:g}, but a sink score never exceeds sqrt(hidden size) = "
            f"{math.sqrt(hidden_size):.1f} in this model, so no token could ever be a sink."
        )
    absent = [layer for layer in settings.layers or () if layer >= layers]
    if absent:
        raise ValueError(f"layers has {absent}; this model has layers 0 to {layers - 1}.")
    if not acting_layers(settings, layers):
        raise ValueError(
            f"This model's {layers} layers leave none from 2 to L-2; name some in layers."
        )
    if vision_tokens == 0:
        raise ValueError("The prompt has no image; VAR has nothing to redistribute attention to.")


@dataclass
class _LayerState:
    """One layer and batch row during a run. Its tensors stay on the device until the report."""

    scores: list[Tensor] = field(default_factory=list)
    groups: KeyGroups | None = None  # over all keys the run can have; None until first needed
    sinks: Tensor | None = None  # (capacity,) bool
    active: bool = False  # whether any row could change
    # What was done, in the order it was done: position of the first query row, which (1, H, R) were
    # changed, and the mass (1, H, R) moved. Added up by the report, so that a decode step pays
    # nothing for it. A position can come by twice, for rows at prefill are recorded as well.
    done: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)


class VARIntervention:
    """VAR for the rows of one batch.

    Args:
        settings: one a batch row; None leaves that row alone, to the last bit.
        vision: (N,) bool, which prompt positions are vision tokens, on any device.
        layers: number of decoder layers of the model.
        capacity: most keys there can be: prompt and new tokens.
        known: sink scores of the prompt's first positions, layer -> (P,) float32, where these were
            passed through the model before (a shared prefix); `observe` then begins at P.

    Raises:
        ValueError: `vision` has no vision token.
    """

    def __init__(
        self,
        settings: Sequence[VARSettings | None],
        vision: Tensor,
        layers: int,
        capacity: int,
        known: Mapping[int, Tensor] | None = None,
    ) -> None:
        if not bool(vision.any()):
            raise ValueError("vision marks no prompt position; VAR needs at least one image.")
        self._settings = tuple(settings)
        self._vision = vision
        self._prompt = len(vision)
        self._capacity = capacity
        self._first_query = int(vision.nonzero()[-1, 0]) + 1  # rows after the (last) image change
        self._state: dict[tuple[int, int], _LayerState] = {}
        for row, own in enumerate(self._settings):
            for layer in acting_layers(own, layers) if own is not None else ():
                before = [known[layer]] if known is not None and layer in known else []
                self._state[layer, row] = _LayerState(scores=before)

    def observe(self, layer: int, hidden: Tensor, start: int) -> None:
        """Score the residual stream (B, N, D) at the input of `layer`, positions from `start`.

        Raises:
            ValueError: positions before `start` have not been observed, nor were they `known`.
        """
        for row, settings in enumerate(self._settings):
            state = self._state.get((layer, row))
            if state is not None and settings is not None:
                seen = sum(len(part) for part in state.scores)
                if seen != start:
                    raise ValueError(
                        f"start is {start}, but layer {layer} was observed up to position {seen}; "
                        "sinks would be marked at the wrong positions."
                    )
                state.scores.append(sink_score(hidden[row], settings.dims))
                state.groups = None  # a further chunk may bring further sinks

    def acts_on(self, layer: int) -> bool:
        """Whether `rows` and `correct` could change anything in this layer."""
        return any((layer, row) in self._state for row in range(len(self._settings)))

    def rows(self, layer: int, weights: Tensor, first_position: int) -> Tensor:
        """Rescale exact rows (B, H, R, K) of the queries from `first_position` on.

        Returns:
            (B, H, R, K) in the same dtype; `weights` itself where nothing changes.
        """
        last = first_position + weights.shape[2]
        if last <= self._first_query:
            return weights
        may_change = None
        if first_position < self._first_query:
            position = torch.arange(first_position, last, device=weights.device)
            may_change = (position >= self._first_query)[None, None]  # (1, 1, R)
        new = weights
        for row, settings in enumerate(self._settings):
            state = self._ready(layer, row, weights.device, weights.dtype)
            if state is None or settings is None or not state.active:
                continue
            groups = _first_keys(state.groups, weights.shape[3])
            done = redistribute_rows(new[row : row + 1], groups, settings, may_change)
            state.done.append((first_position, done.selected, done.moved))
            if len(self._settings) == 1:
                return done.weights
            new = new.clone() if new is weights else new
            new[row] = done.weights[0]
        return new

    def correct(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        scaling: float,
        attention_mask: Tensor | None,
    ) -> Tensor:
        """Correct the fused output (B, H, N, D) of a prefill, or of a chunk of it.

        query (B, H, N, D), key and value (B, Hkv, K, D); the queries are the last N of K positions.
        """
        start = key.shape[2] - query.shape[2]
        if key.shape[2] <= self._first_query:
            return output
        new = output
        for row, settings in enumerate(self._settings):
            state = self._ready(layer, row, query.device, working_dtype(query.dtype))
            if state is None or settings is None or not state.active:
                continue
            assert state.sinks is not None
            one = slice(row, row + 1)
            keys = key.shape[2]
            mask = attention_mask  # (1 or B, ...)
            done = correct_output(
                query[one],
                key[one],
                value[one],
                output[one],
                state.sinks[None, :keys],
                self._padded_vision(query.device)[None, :keys],
                settings,
                scaling=scaling,
                mask=None if mask is None else mask[one] if mask.shape[0] > 1 else mask,
                first_query=self._first_query,
            )
            state.done.append((start, done.selected, done.moved))
            if len(self._settings) == 1:
                return done.output
            new = new.clone() if new is output else new
            new[row] = done.output[0]
        return new

    def report(self, row: int = 0, answer_tokens: int | None = None) -> VARReport:
        """What was done in one batch row.

        Args:
            row: of the batch.
            answer_tokens: length of its answer; the rows of a shorter answer go on until the
                longest in the batch ends, and do not count. None: all rows count.

        Raises:
            ValueError: VAR was not asked for in that row.
        """
        settings = self._settings[row]
        if settings is None:
            raise ValueError(f"row is {row}; VAR was not asked for in that row of the batch.")
        vision = self._vision.cpu()
        layers = []
        for (layer, own), state in sorted(self._state.items()):
            if own != row or not state.scores:
                continue
            scores = torch.cat(state.scores).cpu()
            ready = self._ready(layer, row, state.scores[0].device, torch.float32)
            assert ready is not None and ready.sinks is not None
            acted = ready.sinks.cpu()[: len(scores)]
            found = acted.nonzero()[:, 0]
            true = above_threshold(scores, settings.tau, settings.dialect)
            image = vision[: len(scores)]
            selected, moved = self._shares(state, answer_tokens)
            layers.append(
                LayerReport(
                    layer=layer,
                    positions=tuple(found.tolist()),
                    scores=tuple(scores[found].tolist()),
                    largest_score=float(scores.max()),
                    flagged=float((true & image).sum() / image.sum()),
                    missing=int((true & image).sum() - (acted & image).sum()),
                    selected=selected,
                    moved=moved,
                )
            )
        return make_report(tuple(layers), settings)

    def _ready(
        self, layer: int, row: int, device: torch.device, dtype: torch.dtype
    ) -> _LayerState | None:
        """The state of a layer with its groups of keys made; None where VAR does not act."""
        state = self._state.get((layer, row))
        settings = self._settings[row]
        if state is None or settings is None or not state.scores:
            return None
        if state.groups is None:
            scores = torch.cat([part.to(device) for part in state.scores])
            sinks = torch.zeros(self._capacity, dtype=torch.bool, device=device)
            sinks[: len(scores)] = above_threshold(scores, settings.tau, settings.dialect)
            vision = self._padded_vision(device)
            if settings.control == "random":
                sinks = _random_instead(sinks, vision, settings.seed, layer)
            state.sinks = sinks
            state.groups = KeyGroups.of(sinks[None], vision[None], dtype)
            counts = (
                state.groups.has_sink
                if settings.dialect == "paper"
                else state.groups.has_visual_sink
            )
            state.active = bool(counts.any()) and settings.keep < 1
        return state

    def _padded_vision(self, device: torch.device) -> Tensor:
        """(capacity,) bool: vision tokens among all keys; new tokens are none."""
        if self._vision.device != device or len(self._vision) != self._capacity:
            padded = torch.zeros(self._capacity, dtype=torch.bool, device=device)
            padded[: len(self._vision)] = self._vision.to(device)
            self._vision = padded
        return self._vision

    def _shares(self, state: _LayerState, answer_tokens: int | None) -> tuple[float, float]:
        """Share of (head, query row) pairs changed, and mean mass moved, over the rows that may."""
        if not state.done:
            return 0.0, 0.0
        # Row t explains token t and is that of position prompt - 1 + t.
        end = math.inf if answer_tokens is None else self._prompt - 1 + answer_tokens
        positions = [first + row for first, rows, _ in state.done for row in range(rows.shape[2])]
        selected = torch.cat([rows for _, rows, _ in state.done], dim=2)[0]  # (H, all rows)
        moved = torch.cat([mass for _, _, mass in state.done], dim=2)[0]
        shares = torch.stack((selected.to(moved.dtype), moved)).mean(1).T.tolist()  # one copy
        by_position = {
            position: share
            for position, share in zip(positions, shares, strict=True)
            if self._first_query <= position < end
        }
        if not by_position:
            return 0.0, 0.0
        changed, masses = zip(*by_position.values(), strict=True)
        return sum(changed) / len(changed), sum(masses) / len(masses)


def _first_keys(groups: KeyGroups | None, keys: int) -> KeyGroups:
    """The groups restricted to the first `keys` keys: views, no copies."""
    assert groups is not None
    return KeyGroups(
        groups.targets[..., :keys],
        groups.visual_sinks[..., :keys],
        groups.text_sinks[..., :keys],
        groups.sinks[..., :keys],
        groups.vision_tokens,
        groups.has_visual_sink,
        groups.has_sink,
    )


def _random_instead(sinks: Tensor, vision: Tensor, seed: int, layer: int) -> Tensor:
    """The control: as many random vision tokens that are no sinks, in place of the visual sinks."""
    others = (vision & ~sinks).nonzero()[:, 0].cpu()
    count = min(int((vision & sinks).sum()), len(others))
    # Multiplied, so that neighbouring seeds do not meet again one layer further on.
    mixed = (seed * 1_000_003 + layer) % 2**63
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(mixed))
    chosen = others[order[:count]].to(sinks.device)
    control = sinks & ~vision
    control[chosen] = True
    return control
