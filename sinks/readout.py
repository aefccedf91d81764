"""What a validation measures while one prompt passes through the model, layer by layer.

`PromptReader` looks on as a forward pass runs: the residual stream at each layer's input gives the
sink scores, under the profile's dimensions and under random ones; the layer's queries and keys give
the attention each vision token receives, and the rows that VAR would change. All of it is reduced
to one number a vision token at once, in float32, so nothing of the attention's size is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from config import VARSettings
from interventions.var.selection import select_rows
from models.family import PromptLayout
from models.kernels import attention_rows
from models.profiles import SinkProfile
from models.sink_score import sink_score
from sinks.evidence import Reading
from sinks.received import block_bytes, choose, first_query_of, received
from sinks.validate_settings import ValidateSettings
from var_patch import acting_layers


class PromptReader:
    """Observer and keeper of one forward pass (`models.attention.ForwardPlan`).

    An answer may follow the prompt: rows and keys behind the prompt are left out.

    Args:
        layout: of the prompt, which has an image.
        profile: whose dimensions and, where `taus` is empty, whose tau.
        random_dims: draws of dimensions to score as well.
        taus: thresholds at which to count the rows that VAR would change.
        settings: how high-attention tokens are chosen.
        layers: of the model.
    """

    def __init__(
        self,
        layout: PromptLayout,
        profile: SinkProfile,
        random_dims: Sequence[tuple[int, ...]],
        taus: Sequence[float],
        settings: ValidateSettings,
        layers: int,
    ) -> None:
        self._layout, self._profile, self._random_dims = layout, profile, tuple(random_dims)
        self._taus, self._settings, self._layers = tuple(taus), settings, layers
        self._vision = layout.vision_positions()
        self._behind = layout.grids[-1].stop
        self._var = VARSettings(dims=profile.dims, tau=profile.tau)
        self._acts = frozenset(acting_layers(self._var, layers))
        self._scores: Tensor | None = None  # of all positions, in the layer at hand
        self._norm: Tensor | None = None
        self._phi: dict[int, Tensor] = {}
        self._random: dict[int, Tensor] = {}
        self._attention: dict[int, Tensor] = {}
        self._chosen: dict[int, tuple[Tensor, Tensor]] = {}
        self._selected: dict[int, tuple[float, ...]] = {}

    def observe(self, layer: int, hidden: Tensor, start: int) -> None:
        """See `models.attention.StreamObserver`."""
        states = hidden[0, : self._layout.length]
        vision = states[self._vision.to(states.device)]
        self._scores = sink_score(states, self._profile.dims)
        self._norm = torch.linalg.vector_norm(vision, dim=-1, dtype=torch.float32)
        self._phi[layer] = self._scores.cpu()[self._vision]
        self._random[layer] = torch.stack(
            [sink_score(vision, dims) for dims in self._random_dims]
        ).cpu()

    def keep(
        self, layer: int, query: Tensor, key: Tensor, scale: float, first_position: int
    ) -> None:
        """See `models.attention.QueryKeeper`."""
        length = self._layout.length
        query, key = query[:, :, :length], key[:, :, :length]
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
        """All layers together. Call it once the forward pass is done."""
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
        """For each tau the share of (head, query row) pairs behind the image that VAR selects."""
        assert self._scores is not None
        length, heads, device = self._layout.length, query.shape[1], query.device
        vision = torch.zeros(1, length, dtype=torch.bool, device=device)
        vision[0, self._vision.to(device)] = True
        scores = self._scores.to(device)[None]
        flagged = [scores > tau for tau in self._taus]
        counts = [int(one.sum()) for one in flagged]  # sets of falling tau contain one another
        wanted = {
            count: one
            for count, one in zip(counts, flagged, strict=True)
            if bool((one & vision).any())
        }
        found = dict.fromkeys(wanted, 0)
        step = max(1, block_bytes(device) // (heads * length * 4))
        for low in range(self._behind, length, step) if wanted else ():
            high = min(low + step, length)
            rows = attention_rows(query[:, :, low:high], key, scale, None, low)
            for count, one in wanted.items():
                found[count] += int(select_rows(rows, one, vision, self._var).sum())
        pairs = heads * (length - self._behind)
        return tuple(found.get(count, 0) / pairs for count in counts)
