"""The values at a site, unchanged: residual stream, z of the MLP, queries before rotation, ..."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sinkscope.capture.probes.base import Probe, Reader
from sinkscope.models.run_info import RunInfo
from sinkscope.models.sites import SiteSelection


@dataclass(frozen=True)
class Values(Probe):
    """Keeps the values at one site: `session[probe]` is layer -> tensor (B, positions seen, ...).

    Attributes:
        at: site, layers and positions. `SiteSelection("block_in")` is the residual stream.

    Raises:
        ValueError: the site's values are not a tensor (`queries_keys`, `text_inputs`), or have
            another probe (`rows`: see `capture.probes.rows`).
    """

    at: SiteSelection

    def __post_init__(self) -> None:
        if self.at.site in ("rows", "queries_keys", "text_inputs"):
            raise ValueError(
                f"site is {self.at.site!r}; Values keeps logits and the sites of modules."
            )

    def begin(self, run: RunInfo) -> Reader:
        return _ValuesReader(self.at)


class _ValuesReader(Reader):
    def __init__(self, at: SiteSelection) -> None:
        self.reads = (at,)
        self._parts: dict[int, list[torch.Tensor]] = {}

    def see(self, site: str, layer: int, values: Any, positions: Sequence[int]) -> None:
        self._parts.setdefault(layer, []).append(values)

    def result(self) -> dict[int, torch.Tensor]:
        """Layer -> (B, positions seen, ...), in the model's dtype, on the layer's device."""
        return {
            layer: parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            for layer, parts in sorted(self._parts.items())
        }
