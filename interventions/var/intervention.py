"""VAR inside a running model: finds the sinks at prefill and rescales attention from then on.

`VAR` holds the settings; its `VARIntervention` belongs to one run and ends with it. No state is
kept anywhere else, so two runs with different settings never see each other's sinks.

1. `see` scores the prompt's tokens at the input of each layer and marks the sinks.
2. `correct` corrects the fused kernel's output at prefill, for queries after the last image: the
   fast form of what the session would compute from `rows`.
3. `rows` rescales the exact rows at every decode step, and those that are seen.
4. `report` says what was changed, or why nothing was.

Which layers and heads act, the dialect and the dimensions are fixed when a run begins. tau, keep,
the limits and whether a batch row is on are tensors on the device, and `rows` reads nothing but
them: a step that was recorded as a graph can be replayed with other settings (`change`).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sinkscope.config import VARSettings
from sinkscope.interventions.base import ActiveIntervention
from sinkscope.interventions.var.attention_pass import AttentionPass, MarkedKeys
from sinkscope.interventions.var.checks import acting_layers
from sinkscope.interventions.var.correction import correct_rows_with_sinks
from sinkscope.interventions.var.device import (
    MOST_WEIGHTS,
    CorrectedRows,
    RowBias,
    correct_in_place,
)
from sinkscope.interventions.var.heads import head_masks
from sinkscope.interventions.var.parameters import Parameters
from sinkscope.interventions.var.read_report import read_report
from sinkscope.interventions.var.redistribute import redistribute_rows
from sinkscope.interventions.var.report import VARReport, make_report
from sinkscope.interventions.var.selection import working_dtype
from sinkscope.interventions.var.state import DeviceState, LayerState
from sinkscope.models import kernels
from sinkscope.models.run_info import Step
from sinkscope.models.sink_score import Norms, ScoreBook
from sinkscope.models.sites import NO_END, SiteSelection


class VARIntervention(ActiveIntervention):
    """VAR for the rows of one batch.

    Args:
        settings: one per batch row; None leaves that row alone, to the last bit.
        vision: (N,) bool, which prompt positions are vision tokens, on any device; or (B, N), where
            rows have different prompts.
        layers: number of decoder layers of the model.
        capacity: maximum number of keys: prompt and new tokens.
        known: sink scores of the prompt's first positions, layer -> (P,) or (B, P) float32, if
            these were passed through the model before (a shared prefix); the run then begins at P.
        step: of the run, for the positions of its queries.
        columns: for each row int64: the column (of N) of each token of its prompt; the others are
            padding. None: no padding.
        first_query: rows of queries before it stay; None: that after the last vision token.
        book: sink scores that other parts of the run need as well.
        heads: query heads of the model, if a row is limited to some.

    Raises:
        ValueError: `vision` has no vision token in some row; or `heads` is missing.
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
        book: ScoreBook | None = None,
        heads: int | None = None,
    ) -> None:
        self._settings = list(settings)
        self._vision_there = vision.cpu().expand(len(self._settings), -1)  # (B, N)
        if not bool(self._vision_there.any(1).all()):
            raise ValueError("vision marks no prompt position; VAR needs at least one image.")
        self._prompt, self._capacity = vision.shape[-1], capacity
        after = int(self._vision_there.any(0).nonzero()[-1, 0]) + 1
        self._first_query = after if first_query is None else first_query
        self._columns = None if columns is None else [one.cpu() for one in columns]
        self._real_tokens = torch.ones_like(self._vision_there)  # (B, N), not padding
        for row, places in enumerate(self._columns or ()):
            self._real_tokens[row] = False
            self._real_tokens[row, places] = True
        self._known = {layer: scores.detach() for layer, scores in (known or {}).items()}
        self._step = step or Step()
        self._rows_of: dict[int, list[int]] = {}  # layer -> batch rows in which it acts
        for row, row_settings in enumerate(self._settings):
            for layer in acting_layers(row_settings, layers) if row_settings is not None else ():
                self._rows_of.setdefault(layer, []).append(row)
        self._heads = head_masks(self._settings, self._rows_of, heads)
        self._state: dict[int, LayerState] = {}
        self._devices: dict[torch.device, DeviceState] = {}
        self._off: set[int] = set()  # rows that were turned off since
        self._parameters = Parameters(self._settings)
        self._vision: dict[torch.device, Tensor] = {}
        self._book = book
        self._bias = RowBias()
        self._corrected: CorrectedRows | None = None
        self.layers = tuple(sorted(self._rows_of))
        self.row_positions = range(self._first_query, NO_END)
        self.reads = (SiteSelection("block_in", self.layers, range(self._prompt)),)

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        """Allocate the tensors of the layers on a device: before the prefill, because copies to a
        GPU wait for its work. Those of another device are allocated when needed."""
        resolved = torch.empty(0, device=device).device
        self._begin(resolved, dtype)
        if any(row_settings is not None for row_settings in self._settings):
            self._parameters.on(resolved, dtype)

    def see(self, site: str, layer: int, values: Any, positions: Sequence[int]) -> None:
        """The residual stream (B, N, D) at the input of a layer."""
        where = self._step.passes, layer, range(positions[0], positions[-1] + 1)
        self._observe(layer, values, positions[0], where)

    def observe(self, layer: int, hidden: Tensor, start: int) -> None:
        """Score the residual stream (B, N, D) at the input of `layer`, positions from `start`.

        Raises:
            ValueError: positions before `start` have not been observed, nor were they `known`.
        """
        self._observe(layer, hidden, start, None)

    def _observe(
        self, layer: int, hidden: Tensor, start: int, where: tuple[int, int, range] | None
    ) -> None:
        """`where` is the key of these scores for other readers; None: there are none."""
        rows = self._rows_of.get(layer)
        if rows is None:
            return
        device, dtype = hidden.device, working_dtype(hidden.dtype)
        device_state = self._devices.get(device)
        if device_state is None or device_state.dtype != dtype:
            device_state = self._begin(device, dtype)
        state = self._state.setdefault(layer, device_state.layers[layer])
        self._corrected = None
        if start > state.seen:
            raise ValueError(
                f"start is {start}, but layer {layer} was observed up to position {state.seen}; "
                "sinks would be marked at the wrong positions."
            )
        device_state.write(layer, self._norms(rows, hidden, where), start)
        device_state.mark(layer, self._on())

    def _norms(
        self, rows: Sequence[int], hidden: Tensor, where: tuple[int, int, range] | None
    ) -> Norms:
        """Norms of (B, N, D), each row by its own dimensions; rows without VAR by any."""
        dims = {
            row: row_settings.dims
            for row in rows
            if (row_settings := self._settings[row]) is not None
        }
        alone = len(rows) < len(hidden) and kernels.is_on_host(hidden.device)
        if len(set(dims.values())) == 1 and not alone:
            book = self._book if where is not None and self._book is not None else ScoreBook()
            return book.norms(where or (0, 0, range(0)), hidden, dims[rows[0]])
        norms = {
            row: Norms.of(hidden[row].detach(), torch.tensor(row_settings, device=hidden.device))
            for row, row_settings in dims.items()
        }
        some = norms[rows[0]]
        row_norms = [norms.get(row, some) for row in range(len(hidden))]
        whole, peak = (
            torch.stack([getattr(one, n) for one in row_norms]) for n in ("whole", "peak")
        )
        return Norms(whole, peak, some.size)

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
        if state is None or last <= self._first_query:
            return rows
        if last > self._capacity:
            raise ValueError(
                f"The run has reached position {last - 1}, but only "
                f"{self._capacity - self._prompt} tokens were expected (new_tokens)."
            )
        may_change = None
        if first_position < self._first_query:
            position = torch.arange(first_position, last, device=rows.device)
            may_change = (position >= self._first_query)[None, None]  # (1, 1, R)
        self._corrected = None
        groups = state.groups.first(rows.shape[3], rows.requires_grad)
        limits = self._parameters.on(rows.device, state.groups.sinks.dtype)
        done = redistribute_rows(rows, groups, limits, may_change)
        self._note(layer, slice(None), first_position, done.moved)
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
        self._corrected = None
        if state is None or keys <= self._first_query:
            return output
        attended = AttentionPass(query, key, value, output, scaling, attention_mask)
        groups = state.groups.first(keys, output.requires_grad)
        limits = self._parameters.on(query.device, working_dtype(query.dtype))
        weights = len(query) * query.shape[1] * (keys - max(start, self._first_query)) * keys
        if not kernels.is_on_host(query.device) and weights <= MOST_WEIGHTS:
            self._corrected = correct_in_place(
                layer, attended, groups, limits, self._bias, self._first_query
            )
            self._note(layer, slice(None), max(start, self._first_query), self._corrected.moved)
            return output
        settings = {
            row: row_settings
            for row in self._rows_of[layer]
            if (row_settings := self._settings[row]) is not None
        }
        marked = MarkedKeys(state.sinks[:, :keys], self._vision_on(query.device)[:, :keys], groups)
        new, moved = correct_rows_with_sinks(
            attended,
            marked,
            self._padded(self._vision_there)[:, :keys],
            settings,
            limits,
            self._first_query,
        )
        for row, mass in moved.items():
            self._note(layer, slice(row, row + 1), start, mass)
        return new

    def corrected_rows(self, layer: int, positions: range) -> Tensor | None:
        """See `ActiveIntervention.corrected_rows`."""
        corrected = self._corrected
        return (
            corrected.rows(positions)
            if corrected is not None and corrected.layer == layer
            else None
        )

    def change(self, row: int, settings: VARSettings | None) -> None:
        """Other settings for a batch row, in the tensors that a recorded step reads.

        Args:
            row: of the batch.
            settings: with the dimensions, layers, heads and dialect that the run began with; None
                turns the row off.

        Raises:
            ValueError: VAR was not asked for in that row, or one of these four differs.
        """
        began = self._settings[row]
        if began is None:
            raise ValueError(f"row is {row}; VAR was not asked for in that row of the batch.")
        fixed = ("dims", "layers", "heads", "dialect")
        wrong = [n for n in fixed if settings and getattr(settings, n) != getattr(began, n)]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} cannot change during a run.")
        self._settings[row] = began if settings is None else settings
        (self._off.add if settings is None else self._off.discard)(row)
        self._parameters.refresh()
        for state in self._devices.values():
            state.set_tau(self._on())
            for layer in state.layers:
                if layer in self._state and row in self._rows_of[layer]:
                    state.mark(layer, self._on())

    def step_key(self) -> Hashable:
        """See `ActiveIntervention.step_key`."""
        rows_of = tuple((layer, tuple(rows)) for layer, rows in sorted(self._rows_of.items()))
        fixed = tuple(
            None if row_settings is None else (row_settings.dialect, row_settings.heads)
            for row_settings in self._settings
        )
        return ("VAR", rows_of, fixed, self._first_query, self._capacity)

    def step_state(self, heads: int) -> Sequence[Tensor]:
        """See `ActiveIntervention.step_state`."""
        tensors: list[Tensor] = []
        for device, state in sorted(self._devices.items(), key=lambda item: str(item[0])):
            limits = self._parameters.on(device, state.dtype)
            tensors += state.tensors(heads)
            tensors += [value for value in vars(limits).values() if isinstance(value, Tensor)]
        return tuple(tensors)

    def report(self, row: int = 0, answer_tokens: int | None = None) -> VARReport:
        """The report on one batch row.

        Args:
            row: of the batch.
            answer_tokens: length of its answer; rows after it, which go on until the longest
                answer of the batch ends, do not count. None: all rows count.

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
        return read_report(
            states,
            settings,
            row,
            self._vision_there[row],
            self._real_tokens[row],
            self._rows_that_count(row, answer_tokens),
        )

    def _rows_that_count(self, row: int, answer_tokens: int | None) -> slice:
        """Of the queries that may change, those of the row's own text and answer."""
        first = 0
        if self._columns is not None:  # skip the padding before the row's text
            first = int((~self._real_tokens[row, self._first_query :]).sum())
        if answer_tokens is None:
            return slice(first, None)
        # Row t explains token t and is that of position prompt - 1 + t.
        return slice(first, max(0, self._prompt - 1 + answer_tokens - self._first_query))

    def _begin(self, device: torch.device, dtype: torch.dtype) -> DeviceState:
        state = self._devices[device] = DeviceState(
            self._rows_of,
            {row_settings.dialect for row_settings in self._settings if row_settings is not None},
            self._real_tokens,
            self._vision_on(device),
            self._known,
            self._capacity - self._first_query,
            dtype,
            self._heads,
        )
        state.set_tau(self._on())
        return state

    def _on(self) -> list[VARSettings | None]:
        """Settings of the rows that are not turned off."""
        return [
            None if row in self._off else row_settings
            for row, row_settings in enumerate(self._settings)
        ]

    def _note(self, layer: int, rows: slice, first: int, moved: Tensor) -> None:
        """Record the mass (B or 1, H, R) that was moved in the queries from `first` on."""
        skip = max(0, self._first_query - first)
        mass = moved.detach()[:, :, skip:]
        count = mass.shape[2]
        slots = self._step.positions(first + skip, count, mass.device, origin=self._first_query)
        self._devices[mass.device].note(layer, rows, slots, mass)

    def _padded(self, vision: Tensor) -> Tensor:
        """(B, capacity) bool: vision tokens among all keys; new tokens are not."""
        return torch.nn.functional.pad(vision, (0, self._capacity - self._prompt))

    def _vision_on(self, device: torch.device) -> Tensor:
        if device not in self._vision:
            self._vision[device] = self._padded(self._vision_there).to(device)
        return self._vision[device]
