"""Attention to chosen keys, multiplied by a factor.

    a'[q, k] = f * a[q, k]   for the chosen keys, a[q, k] for all others

With `renormalise` each row is scaled so that its sum is what it was: what is taken from the chosen
keys goes to the others in proportion. Without it the sum is smaller, and the layer's output with
it. With `keep_value` the output keeps what the chosen keys contributed, a[q, k] * v[k], and only
the weights of the others change (with `renormalise`; without it nothing would change).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sinkscope.interventions.base import ActiveIntervention, Intervention
from sinkscope.models.run_info import RunInfo


@dataclass(frozen=True)
class LowerAttention(Intervention):
    """Lowers attention.

    Attributes:
        keys: positions of the prompt.
        factor: from 0 up; below 1 it lowers.
        renormalise: rows keep their sum.
        keep_value: the chosen keys' own contribution to the output stays.
        layers: where; None: everywhere.
        row_positions: the queries whose rows change; None: those after the last image.

    Raises:
        ValueError: no key, a factor below 0, or `keep_value` without `renormalise`.
    """

    keys: tuple[int, ...]
    factor: float
    renormalise: bool = True
    keep_value: bool = False
    layers: tuple[int, ...] | None = None
    row_positions: range | None = None

    def __post_init__(self) -> None:
        if not self.keys or min(self.keys) < 0:
            raise ValueError(f"keys is {self.keys!r}; allowed: one or more positions from 0 up.")
        if not self.factor >= 0:
            raise ValueError(f"factor is {self.factor!r}; allowed: 0 or more.")
        if self.keep_value and not self.renormalise:
            raise ValueError(
                "keep_value is given without renormalise: neither the contribution of the chosen "
                "keys nor the weights of the others would change; give both."
            )

    def begin(self, run: RunInfo) -> ActiveIntervention:
        """See `Intervention.begin`.

        Raises:
            ValueError: a key after the prompt.
        """
        if max(self.keys) >= run.length:
            raise ValueError(
                f"keys has {max(self.keys)}; the prompt has positions 0 to {run.length - 1}."
            )
        return _Lowering(self, run)


class _Lowering(ActiveIntervention):
    def __init__(self, intervention: LowerAttention, run: RunInfo) -> None:
        self._asked = intervention
        self.layers = intervention.layers
        self.row_positions = intervention.row_positions
        chosen = torch.zeros(run.length, dtype=torch.bool)
        chosen[list(intervention.keys)] = True
        self._chosen = chosen.to(run.device)

    def rows(self, layer: int, rows: Tensor, first_position: int) -> Tensor:
        intervention, keys = self._asked, rows.shape[-1]
        chosen = self._chosen[:keys].to(rows.device)
        if keys > len(chosen):  # what follows the prompt is never chosen
            chosen = torch.nn.functional.pad(chosen, (0, keys - len(chosen)))
        new = torch.where(chosen, rows * intervention.factor, rows)
        if intervention.renormalise:
            tiny = torch.finfo(rows.dtype).tiny
            sums = new.sum(-1, keepdim=True)
            scaled = new * (rows.sum(-1, keepdim=True) / sums.clamp(min=tiny))
            # A row with no mass outside the chosen keys stays unchanged: there is nothing to scale
            # up.
            new = torch.where(sums > tiny, scaled, rows)
        return torch.where(chosen, rows, new) if intervention.keep_value else new
