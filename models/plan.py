"""What a run requests of attention: the plan that is passed on with each forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from sinkscope.models.run_info import Step
from sinkscope.models.sites import SiteSelection

PLAN_KEY = "sinkscope_plan"


class SiteReader(Protocol):
    """Reads the values of a site."""

    def see(self, site: str, layer: int, values: Any, positions: Sequence[int]) -> None:
        """`values` as `models.sites` says, of these positions."""
        ...


class RowChange(Protocol):
    """Changes attention rows (documented in `interventions.base.ActiveIntervention`)."""

    @property
    def row_positions(self) -> range:
        """The queries whose rows may change."""
        ...

    def rows(self, layer: int, rows: Tensor, first_position: int) -> Tensor:
        """New rows float32 (B, H, R, K) for the given ones."""
        ...


class FastCorrection(Protocol):
    """A change of rows that can correct a fused output without the rows."""

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
        """The layer's output (B, H, N, D) at prefill, corrected, in place or not; query
        (B, H, N, D), key and value (B, Hkv, K, D)."""
        ...

    def corrected_rows(self, layer: int, positions: range) -> Tensor | None:
        """Changed rows (B, H, R, K) of these queries that `correct` has just made; else None."""
        ...


class Mask(Protocol):
    """Hides keys from queries."""

    def mask(self, layer: int, queries: range, keys: int, device: torch.device) -> Tensor | None:
        """bool (B or 1, 1, Q, keys): True where the query at that position may see the key.
        Causal. None: nothing is hidden in this pass."""
        ...


@dataclass
class LayerPlan:
    """The requests for one layer's attention.

    Attributes:
        rows: readers of attention rows, and their positions.
        keys: readers of queries and keys, and their positions.
        changes: what changes rows, in order.
        fast: the correction that replaces the generic one if its owner is the only change.
        masks: what hides keys, in order.
    """

    rows: list[tuple[SiteSelection, SiteReader]] = field(default_factory=list)
    keys: list[tuple[SiteSelection, SiteReader]] = field(default_factory=list)
    changes: list[RowChange] = field(default_factory=list)
    fast: FastCorrection | None = None
    masks: list[Mask] = field(default_factory=list)


@dataclass
class ForwardPlan:
    """The requests of one run. Made by a session, and dropped with it.

    Attributes:
        layers: layer -> its requests; any other layer is plain SDPA.
        step: position and number of the queries of the current forward pass.
        prompt_length: a pass over several positions after it is refused.
        batch: how many sequences are expected.
        gradients: readers see the rows that the output is computed from, also at prefill, so that
            it can be differentiated with respect to them.
    """

    layers: dict[int, LayerPlan]
    step: Step
    prompt_length: int
    batch: int
    gradients: bool = False

    def begin_forward(self, queries: int, batch: int, passed: int | None) -> None:
        """A forward pass over `queries` new positions of `batch` sequences begins.

        Args:
            queries, batch: sizes of the pass.
            passed: positions that the cache holds; None: those of the pass before and all before
                it.

        Raises:
            ValueError: the pass belongs to a way of generating whose rows explain no token: beam
                search, or assisted decoding.
        """
        if batch != self.batch:
            raise ValueError(
                f"The model was called with a batch of {batch}, but {self.batch} is being "
                "recorded. Beam search and num_return_sequences cannot be captured; use greedy "
                "decoding or sampling (temperature above 0)."
            )
        step = self.step
        step.start = step.start + step.length if passed is None else passed
        step.length = queries
        step.passes += 1
        if step.start >= self.prompt_length and queries > 1:
            raise ValueError(
                f"The model was called with {queries} answer tokens at once. Assisted decoding and "
                "prompt look-up cannot be captured, for some of these tokens are thrown away "
                "again; use greedy decoding or sampling (temperature above 0)."
            )
