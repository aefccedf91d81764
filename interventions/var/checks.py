"""VAR's settings against a model and a prompt: where it acts, and whether it can."""

from __future__ import annotations

import math

from sinkscope.config import VARSettings
from sinkscope.models.sink_score import FIRST_LAYER
from sinkscope.setting import heads_text


def acting_layers(settings: VARSettings, layers: int) -> tuple[int, ...]:
    """The layers in which VAR acts: those asked for, else 2 .. L-2 (arXiv 2503.03321); where it is
    limited to some heads, those with such heads."""
    if settings.heads is not None:
        return tuple(sorted({layer for layer, _ in settings.heads}))
    if settings.layers is not None:
        return settings.layers
    return tuple(range(FIRST_LAYER, layers - 1))


def validate_var(
    settings: VARSettings,
    hidden_size: int,
    layers: int,
    vision_tokens: int,
    heads: int | None = None,
) -> None:
    """Check VAR's settings against a model and a prompt, before any compute.

    Args:
        settings: VAR's.
        hidden_size, layers: of the model.
        vision_tokens: of the prompt.
        heads: query heads of the model; None: the heads' indices are not checked.

    Raises:
        ValueError: a dimension, layer or head that the model does not have, a head in a layer that
            `layers` leaves out, a tau that can never be reached, no layer to act on, or a prompt
            without an image.
    """
    wrong = [d for d in settings.dims if d >= hidden_size]
    if wrong:
        raise ValueError(
            f"dims has {wrong}; this model's hidden size allows 0 to {hidden_size - 1}."
        )
    if settings.tau > math.sqrt(hidden_size):
        raise ValueError(
            f"tau is {settings.tau:g}, but a sink score never exceeds sqrt(hidden size) = "
            f"{math.sqrt(hidden_size):.1f} in this model, so no token could ever be a sink."
        )
    absent = [layer for layer in settings.layers or () if layer >= layers]
    if absent:
        raise ValueError(f"layers has {absent}; this model has layers 0 to {layers - 1}.")
    _check_heads(settings, layers, heads)
    if not acting_layers(settings, layers):
        raise ValueError(
            f"This model's {layers} layers leave none from 2 to L-2; name some in layers."
        )
    if vision_tokens == 0:
        raise ValueError("The prompt has no image; VAR has nothing to redistribute attention to.")


def _check_heads(settings: VARSettings, layers: int, heads: int | None) -> None:
    for layer, head in settings.heads or ():
        name = heads_text([(layer, head)])
        if layer >= layers:
            raise ValueError(f"heads has {name}; this model has layers 0 to {layers - 1}.")
        if heads is not None and head >= heads:
            raise ValueError(
                f"heads has {name}; the layers of this model have heads 0 to {heads - 1}."
            )
        if settings.layers is not None and layer not in settings.layers:
            allowed = ", ".join(map(str, settings.layers))
            raise ValueError(
                f"heads has {name}, but layers lets VAR act only in {allowed}; name heads of "
                "these, or leave layers out."
            )
