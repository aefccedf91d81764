"""Interventions: a change to a running model as one small class.

An intervention is a frozen dataclass that derives from `Intervention` and overrides what it needs:

- `rows`: new attention rows for the given ones, in `layers` and for the queries `row_positions`
  (by default all layers, and all queries after the last image). It need not keep their sum.
  Writing `rows` is enough: the fused kernel's output at prefill is recomputed from the changed rows
  (`models.attention`). A faster `correct` may be added; it is used if no other intervention changes
  rows of the layer.
- `edit`: new values at the sites in `edits`.
- `mask`: which keys are hidden from which queries, in `layers`.

    @dataclass(frozen=True)
    class Damp(Intervention):
        position: int
        factor: float

        def rows(self, layer, rows, first_position):
            new = rows.clone()
            new[..., self.position] *= self.factor
            return new

An intervention that keeps state during a run overrides `begin` and returns its own
`ActiveIntervention`: it sees the values of the sites in `reads`, and `result` is what the session
returns for it.

Several interventions act in the order in which they are listed, at each site and on each row. All
changes of a site come before any probe reads it.

`rows` must not read the host (`.item()`, `bool(tensor)`, `.cpu()`, a shape that depends on values),
so that a decode step can be recorded as a graph; parameters that change between runs are tensors on
the device. If `step_key` and `step_state` give the fixed part and these tensors, one recording
serves many runs.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from sinkscope.models.run_info import RunInfo
from sinkscope.models.sites import SiteSelection


class ActiveIntervention:
    """What an intervention does during one session. By default: nothing.

    Attributes (each may be left out; without values here, so that a dataclass may have them as
    fields without a default):
        layers: where `rows` and `mask` act; None, or left out: everywhere.
        row_positions: the queries that `rows` may change; None, or left out: after the last image.
        edits: the sites that `edit` changes.
        reads: the sites that `see` is shown.
    """

    layers: tuple[int, ...] | None
    row_positions: range | None
    edits: tuple[SiteSelection, ...]
    reads: tuple[SiteSelection, ...]

    def rows(self, layer: int, rows: Tensor, first_position: int) -> Tensor:
        """Changed attention rows.

        Args:
            layer: the layer of the rows.
            rows: float32 (B, H, R, K): attention of the queries first_position .. first_position +
                R - 1 to the keys 0 .. K - 1; not to be written to.
            first_position: of the first row.

        Returns:
            The same shape and dtype; `rows` itself if nothing changes.
        """
        raise NotImplementedError

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
        """The fused output (B, H, N, D) of a prefill, corrected for what `rows` would do.

        Args:
            layer: the layer of the output.
            query: (B, H, N, D), the last N of K positions.
            key, value: (B, Hkv, K, D).
            output: (B, H, N, D); may be written to.
            scaling: factor on the scores.
            attention_mask: None (causal), or bool / additive float (B, 1 or H, N, K).
        """
        raise NotImplementedError

    def corrected_rows(self, layer: int, positions: range) -> Tensor | None:
        """The changed rows (B, H, R, K) of these queries, if `correct`, which was called just
        before in this layer, has computed them; else None."""
        return None

    def mask(self, layer: int, queries: range, keys: int, device: torch.device) -> Tensor | None:
        """bool (B or 1, 1, Q, keys): True where the query at that position may see the key.

        It is combined with the model's own mask, and must be causal itself. None: nothing is hidden
        in this pass, which then runs as without it.
        """
        raise NotImplementedError

    def edit(self, site: str, layer: int, values: Tensor, positions: Sequence[int]) -> Tensor:
        """New values for a site.

        Args:
            site, layer: one of `edits`.
            values: (B, n, ...) as `models.sites` says; not to be written to.
            positions: the n token positions.

        Returns:
            The same shape.
        """
        raise NotImplementedError

    def see(self, site: str, layer: int, values: Any, positions: Sequence[int]) -> None:
        """The values of one of `reads`, after all edits."""

    def step_key(self) -> Hashable:
        """The fixed part of `rows` in a decode step: runs with equal keys differ only in the values
        of `step_state`. None: unknown, so each run records its own step."""
        return None

    def step_state(self, heads: int) -> Sequence[Tensor]:
        """After the prompt: the tensors that `rows` reads and writes during decoding. They stay the
        same objects; their order follows from `step_key`.

        Args:
            heads: of the model.
        """
        return ()

    def result(self) -> Any:
        """What the session returns for the intervention; by default this object."""
        return self


class Intervention(ActiveIntervention):
    """The settings of a change to a model. Derive a frozen dataclass from it."""

    def begin(self, run: RunInfo) -> ActiveIntervention:
        """The object that acts during one run; the intervention itself if it keeps no state.

        Raises:
            ValueError: it does not fit the model or the prompt.
        """
        return self


def overrides(acting: ActiveIntervention, method: str) -> bool:
    """Whether an intervention has its own `rows`, `correct`, `mask`, `edit` or `see`."""
    return getattr(type(acting), method) is not getattr(ActiveIntervention, method)
