"""Measurements of a validation while one prompt passes through the model, layer by layer.

`PromptReading` is a probe of a forward pass. The residual stream at each layer's input gives the
sink scores, under the profile's dimensions and under random ones. The layer's queries and keys give
the attention that each vision token receives, and the rows that VAR would change. Everything is
reduced at once, in float32, to one number per vision token, so nothing of the attention's size is
kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sinkscope.capture.probes.base import Probe, Reader
from sinkscope.config import VARSettings
from sinkscope.interventions.var.selection import select_rows
from sinkscope.models.family import PromptLayout
from sinkscope.models.kernels import attention_rows
from sinkscope.models.profiles import SinkProfile
from sinkscope.models.run_info import RunInfo
from sinkscope.models.sink_score import sink_score
from sinkscope.models.sites import SiteSelection
from sinkscope.sinks.received import block_bytes, choose, first_query_of, received
from sinkscope.sinks.validating.evidence import Reading
from sinkscope.sinks.validating.settings import ValidateSettings
from sinkscope.var_patch import acting_layers


@dataclass(frozen=True)
class PromptReading(Probe):
    """Reads the prompt of one forward pass; `session[probe]` is a `PromptReader`.

    An answer may follow the prompt: rows and keys after the prompt are ignored.

    Attributes:
        profile: gives the dimensions and, if `taus` is empty, tau.
        random_dims: draws of dimensions to score as well.
        taus: thresholds at which to count the rows that VAR would change.
        settings: how high-attention tokens are chosen.
    """

    profile: SinkProfile
    random_dims: tuple[tuple[int, ...], ...]
    taus: tuple[float, ...]
    settings: ValidateSettings

    def begin(self, run: RunInfo) -> PromptReader:
        return PromptReader(self, run.layouts[0], run.model.layers)


class PromptReader(Reader):
    """The reader of a `PromptReading`.

    Args:
        probe: what to read.
        layout: layout of the prompt, which has an image.
        layers: layers of the model.
    """

    def __init__(self, probe: PromptReading, layout: PromptLayout, layers: int) -> None:
        prompt = range(layout.length)
        self.reads = (
            SiteSelection("block_in", None, prompt),
            SiteSelection("queries_keys", None, prompt),
        )
        profile = probe.profile
        self._layout, self._profile, self._random_dims = layout, profile, probe.random_dims
        self._taus, self._settings, self._layers = probe.taus, probe.settings, layers
        self._vision = layout.vision_positions()
        self._behind = layout.after_images
        self._var = VARSettings(dims=profile.dims, tau=profile.tau)
        self._acts = frozenset(acting_layers(self._var, layers))
        self._scores: Tensor | None = None  # scores of all positions, in the current layer
        self._norm: Tensor | None = None
        self._phi: dict[int, Tensor] = {}
        self._random: dict[int, Tensor] = {}
        self._attention: dict[int, Tensor] = {}
        self._chosen: dict[int, tuple[Tensor, Tensor]] = {}
        self._selected: dict[int, tuple[float, ...]] = {}

    def see(self, site: str, layer: int, values: Any, positions: Sequence[int]) -> None:
        """Receives the residual stream first, then queries and keys of the same layer."""
        if site == "block_in":
            self._score(layer, values[0])
        else:
            query, key, scale = values
            self._attend(layer, query, key[:, :, : self._layout.length], scale)

    def _score(self, layer: int, states: Tensor) -> None:
        vision = states[self._vision.to(states.device)]
        self._scores = sink_score(states, self._profile.dims)
        self._norm = torch.linalg.vector_norm(vision, dim=-1, dtype=torch.float32)
        self._phi[layer] = self._scores.cpu()[self._vision]
        self._random[layer] = torch.stack(
            [sink_score(vision, dims) for dims in self._random_dims]
        ).cpu()

    def _attend(self, layer: int, query: Tensor, key: Tensor, scale: float) -> None:
        length = self._layout.length
        by = self._settings.tokens_by
        first = first_query_of(by, length, self._behind)
        gained = received(query[0], key[0], scale, first).cpu()[self._vision]
        self._attention[layer] = gained / gained.sum().clamp(min=torch.finfo(gained.dtype).tiny)
        assert self._norm is not None and self._scores is not None
        choice = choose(
            self._norm.cpu() if by == "norm" else gained,
            tuple(grid.tokens for grid in self._layout.grids),
            self._settings.top_percent,
            self._settings.min_ratio,
        )
        self._chosen[layer] = (~choice.ordinary, choice.sinks)
        if layer in self._acts:
            self._selected[layer] = self._selection(query, key, scale)

    def reading(self) -> Reading:
        """The measurements of all layers. Call it once the forward pass is over."""
        order = range(self._layers)
        acted = [self._selected[layer] for layer in order if layer in self._selected]
        return Reading(
            phi=torch.stack([self._phi[layer] for layer in order]),
            random_phi=torch.stack([self._random[layer] for layer in order], dim=1),
            attention=torch.stack([self._attention[layer] for layer in order]),
            high=torch.stack([self._chosen[layer][0] for layer in order]),
            top=torch.stack([self._chosen[layer][1] for layer in order]),
            selected=tuple(
                sum(layer[i] for layer in acted) / len(acted) if acted else 0.0
                for i in range(len(self._taus))
            ),
        )

    def _selection(self, query: Tensor, key: Tensor, scale: float) -> tuple[float, ...]:
        """For each tau the share of (head, query row) pairs after the image that VAR selects."""
        assert self._scores is not None
        length, heads, device = self._layout.length, query.shape[1], query.device
        vision = torch.zeros(1, length, dtype=torch.bool, device=device)
        vision[0, self._vision.to(device)] = True
        scores = self._scores.to(device)[None]
        flagged = [scores > tau for tau in self._taus]
        counts = [int(one.sum()) for one in flagged]  # sets for rising tau are nested
        wanted = {
            count: one
            for count, one in zip(counts, flagged, strict=True)
            if bool((one & vision).any())
        }
        selected = dict.fromkeys(wanted, 0)
        step = max(1, block_bytes(device) // (heads * length * 4))
        for low in range(self._behind, length, step) if wanted else ():
            high = min(low + step, length)
            rows = attention_rows(query[:, :, low:high], key, scale, None, low)
            for count, one in wanted.items():
                selected[count] += int(select_rows(rows, one, vision, self._var).sum())
        pairs = heads * (length - self._behind)
        return tuple(selected.get(count, 0) / pairs for count in counts)
