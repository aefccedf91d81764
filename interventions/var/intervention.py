"""VAR inside a running model: what finds the sinks at prefill and rescales attention from then on.

`VAR` is what is asked for; the `VARIntervention` that it becomes belongs to one run and ends with
it. Nothing is kept anywhere else, so two runs with different settings never see each other's sinks.

1. `see` scores the prompt's tokens at the input of each layer and marks the sinks.
2. `correct` corrects the fused kernel's output at prefill, for queries after the last image: the
   fast form of what the session would make of `rows`.
3. `rows` rescales the exact rows at every decode step, and those that are seen.
4. `report` says what was done, and why nothing where nothing was.

Which layers act, the dialect and the dimensions are fixed when a run begins. tau, keep, the limits
and whether a batch row is on are tensors on the device, and `rows` reads nothing but them: a step
that was recorded as a graph can be replayed with other settings (`change`).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sinkscope.config import VARSettings
from sinkscope.interventions.base import Acting, Intervention
from sinkscope.interventions.var.checks import acting_layers, validate_var
from sinkscope.interventions.var.correction import correct_output
from sinkscope.interventions.var.parameters import Parameters, random_instead
from sinkscope.interventions.var.redistribute import redistribute_rows
from sinkscope.interventions.var.report import LayerReport, VARReport, make_report
from sinkscope.interventions.var.selection import KeyGroups, working_dtype
from sinkscope.models.run_info import RunInfo, Step
from sinkscope.models.sink_score import above_threshold, sink_score
from sinkscope.models.sites import EVER, At

UNWRITTEN = -1.0  # in the record of moved mass; a mass is never negative


@dataclass(frozen=True)
class VAR(Intervention):
    """Visual Attention Redistribution.

    Attributes:
        settings: one a batch row; None leaves that row alone, to the last bit.
    """

    settings: tuple[VARSettings | None, ...]

    def begin(self, run: RunInfo) -> VARIntervention:
        """See `Intervention.begin`.

        Rows may have different prompts where the run continues from prefixes that end at one
        position (`RunInfo.columns`): then rows change from there on in all of them.

        Raises:
            ValueError: another number of batch rows, different prompts in them that end their
                images at different positions, or a setting that cannot work with this model or
                prompt (`validate_var`).
        """
        if len(self.settings) != run.batch:
            raise ValueError(
                f"settings has {len(self.settings)} entries; allowed: one a batch row, {run.batch}."
            )
        if run.columns is None and any(other != run.layouts[0] for other in run.layouts):
            raise ValueError("The batch has different prompts; VAR acts on one prompt at a time.")
        known: dict[int, Tensor] = {}
        for own, layout in zip(self.settings, run.layouts, strict=True):
            if own is not None:
                validate_var(own, run.model.hidden_size, run.model.layers, layout.vision_tokens)
                known = dict(run.scores_before(own.dims))
        vision = torch.zeros(run.batch, run.length, dtype=torch.bool)
        for row, layout in enumerate(run.layouts):
            positions = layout.vision_positions()
            vision[row, positions if run.columns is None else run.columns[row][positions]] = True
        return VARIntervention(
            self.settings,
            vision,
            run.model.layers,
            run.capacity,
            known,
            run.step,
            run.columns,
            first_query=run.after_image,
        )


@dataclass
class _LayerState:
    """One layer during a run. Its tensors stay on the device, and are the same ones, to the end.

    Attributes:
        scores: (B, N) float32, phi of the prompt's tokens; 0 in rows where VAR does not act.
        seen: how many of them are known.
        sinks: (B, capacity) bool, what is acted on.
        groups: of keys, over the whole capacity.
        moved: (B, H, queries that may change), the mass taken from the sinks of each row;
            `UNWRITTEN` until it is known, None until the number of heads is.
    """

    scores: Tensor
    seen: int
    sinks: Tensor
    groups: KeyGroups | None = None
    moved: Tensor | None = None


class VARIntervention(Acting):
    """VAR for the rows of one batch.

    Args:
        settings: one a batch row; None leaves that row alone, to the last bit.
        vision: (N,) bool, which prompt positions are vision tokens, on any device; or (B, N), where
            rows have different prompts.
        layers: number of decoder layers of the model.
        capacity: most keys there can be: prompt and new tokens.
        known: sink scores of the prompt's first positions, layer -> (P,) or (B, P) float32, where
            these were passed through the model before (a shared prefix); what is seen then begins
            at P.
        step: of the run, for the positions of its queries.
        columns: of each row: int64, at which of the N positions each token of its prompt stands;
            the others are padding. None: there is none.
        first_query: rows of queries before it stay; None: that after the last vision token.

    Raises:
        ValueError: `vision` has no vision token in some row.
    """

    def __init__(
        self,
        settings: Sequence[VARSettings | None],
        vision: Tensor,
        layers: int,
        capacity: int,
        known: Mapping[int, Tensor] | None = None,
        step: Step | None = None,
        columns: Sequence[Tensor] | None = None,
        first_query: int | None = None,
    ) -> None:
        self._settings = list(settings)
        self._vision_there = vision.cpu().expand(len(self._settings), -1)  # (B, N)
        if not bool(self._vision_there.any(1).all()):
            raise ValueError("vision marks no prompt position; VAR needs at least one image.")
        self._prompt, self._capacity = vision.shape[-1], capacity
        after = int(self._vision_there.any(0).nonzero()[-1, 0]) + 1
        self._first_query = after if first_query is None else first_query
        self._columns = None if columns is None else [one.cpu() for one in columns]
        self._there = torch.ones_like(self._vision_there)  # (B, N), what is no padding
        for row, places in enumerate(self._columns or ()):
            self._there[row] = False
            self._there[row, places] = True
        self._known = {layer: scores.detach() for layer, scores in (known or {}).items()}
        self._step = step or Step()
        self._rows_of: dict[int, list[int]] = {}  # layer -> batch rows in which it acts
        for row, own in enumerate(self._settings):
            for layer in acting_layers(own, layers) if own is not None else ():
                self._rows_of.setdefault(layer, []).append(row)
        self._state: dict[int, _LayerState] = {}
        self._parameters = Parameters(self._settings)
        self._vision: dict[torch.device, Tensor] = {}
        self.layers = tuple(sorted(self._rows_of))
        self.row_positions = range(self._first_query, EVER)
        self.looks = (At("block_in", self.layers, range(self._prompt)),)

    def see(self, site: str, layer: int, values: Any, positions: Sequence[int]) -> None:
        """The residual stream (B, N, D) at the input of a layer."""
        self.observe(layer, values, positions[0])

    def observe(self, layer: int, hidden: Tensor, start: int) -> None:
        """Score the residual stream (B, N, D) at the input of `layer`, positions from `start`.

        Raises:
            ValueError: positions before `start` have not been observed, nor were they `known`.
        """
        rows = self._rows_of.get(layer)
        if rows is None:
            return
        state = self._state.get(layer) or self._begin(layer, hidden.device)
        if start > state.seen:
            raise ValueError(
                f"start is {start}, but layer {layer} was observed up to position {state.seen}; "
                "sinks would be marked at the wrong positions."
            )
        state.seen = start + hidden.shape[1]
        for row in rows:
            own = self._settings[row]
            assert own is not None
            scores = sink_score(hidden[row].detach(), own.dims)
            if self._columns is not None:  # padding is no sink, whatever its state is
                scores = scores * self._there[row, start : state.seen].to(scores)
            state.scores[row, start : state.seen] = scores
        self._mark(layer, state, working_dtype(hidden.dtype))

    def acts_on(self, layer: int) -> bool:
        """Whether `rows` and `correct` could change anything in this layer."""
        return layer in self._rows_of

    def rows(self, layer: int, rows: Tensor, first_position: int) -> Tensor:
        """Rescale exact rows (B, H, R, K) of the queries from `first_position` on.

        Returns:
            (B, H, R, K) in the same dtype; the rows themselves where none of them may change.
        """
        state = self._state.get(layer)
        last = first_position + rows.shape[2]
        if state is None or state.groups is None or last <= self._first_query:
            return rows
        if last > self._capacity:
            raise ValueError(
                f"The run has reached position {last - 1}, but it was said to have "
                f"{self._capacity - self._prompt} tokens behind the prompt (new_tokens)."
            )
        may_change = None
        if first_position < self._first_query:
            position = torch.arange(first_position, last, device=rows.device)
            may_change = (position >= self._first_query)[None, None]  # (1, 1, R)
        groups = state.groups.first(rows.shape[3])
        limits = self._parameters.on(rows.device, state.groups.sinks.dtype)
        done = redistribute_rows(rows, groups, limits, may_change)
        self._note(state, slice(None), first_position, done.moved)
        return done.weights

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
        state = self._state.get(layer)
        keys = key.shape[2]
        start = keys - query.shape[2]
        if state is None or state.groups is None or keys <= self._first_query:
            return output
        sinks_there = state.sinks[:, :keys].cpu()  # one copy a layer says which columns are needed
        vision_there = self._padded(self._vision_there)[:, :keys]
        limits = self._parameters.on(query.device, working_dtype(query.dtype))
        vision = self._vision_on(query.device)[:, :keys]
        mask = attention_mask  # (1 or B, ...)
        new = output
        for row in self._rows_of[layer]:
            own = self._settings[row]
            sinks = sinks_there[row] & vision_there[row]
            judged = sinks_there[row] if own and own.dialect == "paper" else sinks
            if not bool(judged.any()):
                continue
            one = slice(row, row + 1)
            done = correct_output(
                query[one],
                key[one],
                value[one],
                output[one],
                state.sinks[one, :keys],
                vision[one],
                limits.row(row),
                scaling=scaling,
                mask=None if mask is None else mask[one] if mask.shape[0] > 1 else mask,
                first_query=self._first_query,
                groups=state.groups.first(keys).row(row),
                masks_on_host=(sinks_there[one], vision_there[one]),
            )
            self._note(state, one, start, done.moved)
            if len(self._settings) == 1:
                return done.output
            new = new.clone() if new is output else new
            new[row] = done.output[0]
        return new

    def change(self, row: int, settings: VARSettings | None) -> None:
        """Other settings for a batch row, in the tensors that a recorded step reads.

        Args:
            row: of the batch.
            settings: with the dimensions, layers and dialect that the run began with; None turns
                the row off.

        Raises:
            ValueError: VAR was not asked for in that row, or one of these three differs.
        """
        began = self._settings[row]
        if began is None:
            raise ValueError(f"row is {row}; VAR was not asked for in that row of the batch.")
        fixed = ("dims", "layers", "dialect")
        wrong = [n for n in fixed if settings and getattr(settings, n) != getattr(began, n)]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} cannot change during a run.")
        on = settings is not None
        self._settings[row] = began if settings is None else settings
        self._parameters.refresh()
        for layer, state in self._state.items():
            if row in self._rows_of[layer] and state.groups is not None:
                self._mark(layer, state, state.groups.sinks.dtype, {row: on})

    def step_key(self) -> Hashable:
        """See `Acting.step_key`."""
        rows_of = tuple((layer, tuple(rows)) for layer, rows in sorted(self._rows_of.items()))
        dialects = tuple(None if own is None else own.dialect for own in self._settings)
        return ("VAR", rows_of, dialects, self._first_query, self._capacity)

    def step_state(self, heads: int) -> Sequence[Tensor]:
        """See `Acting.step_state`."""
        tensors: dict[int, Tensor] = {}
        for _, state in sorted(self._state.items()):
            assert state.groups is not None
            if state.moved is None:
                self._note_nothing(state, heads)
            limits = self._parameters.on(state.scores.device, state.groups.sinks.dtype)
            for value in (*vars(state.groups).values(), state.moved, *vars(limits).values()):
                if isinstance(value, Tensor):
                    tensors[id(value)] = value
        return tuple(tensors.values())

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
        states = {
            layer: state
            for layer, state in sorted(self._state.items())
            if row in self._rows_of[layer]
        }
        if not states:
            return make_report((), settings)
        image = self._vision_there[row]
        places = self._there[row].cumsum(0) - 1  # position in the prompt of each position here
        scores = _to_host([state.scores[row] for state in states.values()])  # (layers, N)
        acted = _to_host([state.sinks[row, : self._prompt] for state in states.values()])
        shares = _to_host([self._shares(state, row, answer_tokens) for state in states.values()])
        layers = []
        for index, (layer, state) in enumerate(states.items()):
            own, seen = scores[index, : state.seen], image[: state.seen]
            found = acted[index].nonzero()[:, 0]
            true = above_threshold(own, settings.tau, settings.dialect) & seen
            layers.append(
                LayerReport(
                    layer=layer,
                    positions=tuple(places[found].tolist()),
                    scores=tuple(scores[index, found].tolist()),
                    largest_score=float(own.max()),
                    flagged=float(true.sum() / seen.sum()),
                    missing=int(true.sum() - (acted[index, : state.seen] & seen).sum()),
                    selected=float(shares[index, 0]),
                    moved=float(shares[index, 1]),
                )
            )
        return make_report(tuple(layers), settings)

    def _begin(self, layer: int, device: torch.device) -> _LayerState:
        batch = len(self._settings)
        scores = torch.zeros(batch, self._prompt, dtype=torch.float32, device=device)
        before = self._known.get(layer)
        if before is not None:
            rows = self._rows_of[layer]
            own = before if before.ndim == 1 else before[rows]
            scores[rows, : before.shape[-1]] = own.to(device)
        state = self._state[layer] = _LayerState(
            scores,
            0 if before is None else before.shape[-1],
            torch.zeros(batch, self._capacity, dtype=torch.bool, device=device),
        )
        return state

    def _mark(
        self,
        layer: int,
        state: _LayerState,
        dtype: torch.dtype,
        on: Mapping[int, bool] | None = None,
    ) -> None:
        """Say which tokens are acted on, in the tensors that `rows` reads."""
        vision = self._vision_on(state.scores.device)
        for row in self._rows_of[layer]:
            own = self._settings[row]
            assert own is not None
            sinks = state.sinks[row]
            if on is not None and not on.get(row, True):
                sinks.zero_()
                continue
            sinks[: state.seen] = above_threshold(
                state.scores[row, : state.seen], own.tau, own.dialect
            )
            sinks[state.seen :] = False
            if own.control == "random":
                sinks.copy_(random_instead(sinks, vision[row], own.seed, layer))
        groups = KeyGroups.of(state.sinks, vision, dtype)
        if state.groups is None:
            state.groups = groups
        else:
            state.groups.assign(groups)

    def _note(self, state: _LayerState, rows: slice, first: int, moved: Tensor) -> None:
        """Record the mass (B or 1, H, R) that was moved in the queries from `first` on."""
        skip = max(0, self._first_query - first)
        mass = moved.detach()[:, :, skip:]
        count = mass.shape[2]
        if state.moved is None:
            self._note_nothing(state, moved.shape[1], mass.dtype)
        assert state.moved is not None
        slots = self._step.positions(first + skip, count, mass.device, origin=self._first_query)
        state.moved[rows].index_copy_(2, slots, mass)

    def _note_nothing(
        self, state: _LayerState, heads: int, dtype: torch.dtype = torch.float32
    ) -> None:
        shape = (len(self._settings), heads, self._capacity - self._first_query)
        state.moved = state.scores.new_full(shape, UNWRITTEN, dtype=dtype)

    def _shares(self, state: _LayerState, row: int, answer_tokens: int | None) -> Tensor:
        """(2,): share of (head, query row) pairs changed, and mean mass moved, of rows that may."""
        if state.moved is None:
            return state.scores.new_zeros(2)
        moved = state.moved[row]
        if answer_tokens is not None:
            # Row t explains token t and is that of position prompt - 1 + t.
            moved = moved[:, : max(0, self._prompt - 1 + answer_tokens - self._first_query)]
        if self._columns is not None:  # padding before the row's own text
            moved = moved[:, int((~self._there[row, self._first_query :]).sum()) :]
        known = moved != UNWRITTEN
        count = known.sum().clamp_min(1)
        mass = (moved * known).sum(dtype=torch.float64) / count
        return torch.stack(((moved > 0).sum() / count, mass.to(torch.float32)))

    def _padded(self, vision: Tensor) -> Tensor:
        """(B, capacity) bool: vision tokens among all keys; new tokens are none."""
        return torch.nn.functional.pad(vision, (0, self._capacity - self._prompt))

    def _vision_on(self, device: torch.device) -> Tensor:
        if device not in self._vision:
            self._vision[device] = self._padded(self._vision_there).to(device)
        return self._vision[device]


def _to_host(tensors: Sequence[Tensor]) -> Tensor:
    """Equal shapes, stacked on the CPU: one copy where they are on one device."""
    if len({tensor.device for tensor in tensors}) == 1:
        return torch.stack(list(tensors)).cpu()
    return torch.stack([tensor.cpu() for tensor in tensors])
