"""VAR's settings against a model and a prompt: where it acts, and whether it can."""

from __future__ import annotations

import math

from sinkscope.config import VARSettings
from sinkscope.models.sink_score import FIRST_LAYER


def acting_layers(settings: VARSettings, layers: int) -> tuple[int, ...]:
    """The layers in which VAR acts: those asked for, else 2 .. L-2 (arXiv 2503.03321)."""
    if settings.layers is not None:
        return settings.layers
    return tuple(range(FIRST_LAYER, layers - 1))


def validate_var(settings: VARSettings, hidden_size: int, layers: int, vision_tokens: int) -> None:
    """Check VAR's settings against a model and a prompt, before any compute.

    Raises:
        ValueError: a dimension or layer that the model does not have, a tau that can never be
            reached, no layer to act on, or a prompt without an image.
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
    if not acting_layers(settings, layers):
        raise ValueError(
            f"This model's {layers} layers leave none from 2 to L-2; name some in layers."
        )
    if vision_tokens == 0:
        raise ValueError("The prompt has no image; VAR has nothing to redistribute attention to.")
