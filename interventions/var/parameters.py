"""VAR's settings as tensors on the device, and the tokens of its control."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sinkscope.config import VARSettings
from sinkscope.interventions.var.selection import Limits

TENSORS = ("freed", "max_sink_share", "least_target_share", "min_image_mass")


class Parameters:
    """The limits of all batch rows, on each device and in each dtype that asks for them.

    Args:
        settings: one per batch row, None where VAR does not act; shared with its owner.
    """

    def __init__(self, settings: Sequence[VARSettings | None]) -> None:
        self._settings = settings
        self._made: dict[tuple[torch.device, torch.dtype], Limits] = {}

    def on(self, device: torch.device, dtype: torch.dtype) -> Limits:
        """(B, 1, 1) tensors, the same ones each time."""
        if (device, dtype) not in self._made:
            self._made[device, dtype] = self._new(device, dtype)
        return self._made[device, dtype]

    def refresh(self) -> None:
        """Write the settings as they are now into the tensors."""
        for (device, dtype), limits in self._made.items():
            new = self._new(device, dtype)
            for name in TENSORS:
                getattr(limits, name).copy_(getattr(new, name))

    def _new(self, device: torch.device, dtype: torch.dtype) -> Limits:
        """Values of rows without VAR do not matter, because these rows have no sinks."""
        limits = [
            Limits.of(row_settings) if row_settings is not None else None
            for row_settings in self._settings
        ]
        some = next(one for one in limits if one is not None)

        def tensor(name: str, kind: torch.dtype = dtype) -> Tensor:
            values = [getattr(one or some, name) for one in limits]
            return torch.tensor(values, dtype=kind, device=device)[:, None, None]

        dialects = {one.official for one in limits if one is not None}
        official = some.official if len(dialects) == 1 else tensor("official", torch.bool)
        freed, most, least, mass = (tensor(name) for name in TENSORS)
        return Limits(freed, most, least, mass, official)


def random_control(sinks: Tensor, vision: Tensor, seed: int, layer: int) -> Tensor:
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
