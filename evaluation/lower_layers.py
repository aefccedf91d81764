"""The layers below the first one in which a method acts, passed through once for all methods.

There the plain model and VAR are identical: the same tokens give the same residual stream. So a
pass over tokens that the plain model has processed already may begin at that layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sinkscope.capture.probes.values import Values
from sinkscope.evaluation.methods import Method
from sinkscope.interventions.base import Intervention
from sinkscope.interventions.var.checks import acting_layers
from sinkscope.models.info import ModelInfo
from sinkscope.models.sites import SiteSelection


@dataclass(frozen=True)
class LowerLayers:
    """The plain model's hidden states at the input of a layer.

    Attributes:
        layer: the first one that is not below.
        hidden: (B, n, D), from the first position after the prefix on, including the batch's
            padding: the last `suffix` positions of the prompt, then the answer except its last
            token.
        suffix: how many of these positions belong to the prompt.
    """

    layer: int
    hidden: Tensor
    suffix: int

    def of_rows(self, rows: Sequence[int], suffix: int, length: int) -> Tensor:
        """(rows, length, D): the same of some rows, after prompts that are padded to another
        length, `suffix` at most as long as here."""
        first = self.suffix - suffix
        return self.hidden[list(rows), first : first + length]


def first_acting(info: ModelInfo, methods: Sequence[Method]) -> int:
    """The first layer in which one of the methods acts; the number of layers if none does."""
    layers = [acting_layers(one.var, info.layers) for one in methods if one.var is not None]
    return min(
        (min(layers_of_method) for layers_of_method in layers if layers_of_method),
        default=info.layers,
    )


def stream_at(layer: int) -> Values:
    """The probe whose result at `layer` is `LowerLayers.hidden`."""
    return Values(SiteSelection("block_in", (layer,)))


@dataclass(frozen=True)
class ReplacedStream(Intervention):
    """Puts the residual stream of a whole pass (B, n, D) at the input of a layer."""

    layer: int
    hidden: Tensor

    @property
    # Computed here; the base class declares an attribute.
    def edits(self) -> tuple[SiteSelection, ...]:  # type: ignore[override]
        return (SiteSelection("block_in", (self.layer,)),)

    def edit(self, site: str, layer: int, values: Tensor, positions: Sequence[int]) -> Tensor:
        return self.hidden.to(values.device)


@contextmanager
def skipped_layers(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Inside the `with` these layers return their input, and keep no keys. They are restored at its
    end."""
    before = [vars(layer).get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = _same
        yield
    finally:
        for layer, stream in zip(layers, before, strict=True):
            if stream is None:
                vars(layer).pop("forward", None)
            else:
                layer.forward = stream


def _same(hidden_states: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
    return hidden_states
