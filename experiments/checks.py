"""Checks before any sample is passed through the model; each experiment's `check` uses them."""

from __future__ import annotations

from sinkscope.experiments.settings import StudySettings
from sinkscope.models.loading import ModelHandle


def check_layer(handle: ModelHandle, layer: int, after: bool = False) -> None:
    """Refuse a layer that the model does not have.

    Args:
        handle: the model.
        layer: its index.
        after: whether a layer must come after it.
    """
    layers = handle.info.layers
    last = layers - (2 if after else 1)
    if not 0 <= layer <= last:
        why = ", the last but one: there must be a layer after it to see an effect in"
        allowed = f"0 to {last}" if last > 0 else "0" if last == 0 else "none"
        raise ValueError(
            f"layer is {layer}; {handle.info.id} has layers 0 to {layers - 1}; "
            f"allowed: {allowed}{why if after else ''}."
        )


def check_reference(asked: StudySettings) -> None:
    """Refuse a study without a second group of tokens if the experiment needs one.

    Raises:
        ValueError: naming the first.
    """
    if asked.tokens is not None and len(asked.tokens) < 2:
        raise ValueError(
            f"tokens has only {asked.tokens[0]}; this experiment compares the sinks with a "
            "second group: give two or more, such as sinks,ordinary or 0,1,8."
        )


def check_top(handle: ModelHandle, layer: int, top: int | None, directions: bool = False) -> None:
    """Refuse a number of neurons that the layer does not have.

    Args:
        handle: the model.
        layer: an existing one.
        top: the number; None: as many as needed.
        directions: whether their span is removed, which needs room for an orthogonal random one.
    """
    if top is None:
        return
    neurons = int(handle.stack.mlp(layer).down.weight.shape[1])
    width = handle.info.hidden_size
    most = min(neurons, width // 2) if directions else neurons
    if top > most:
        why = (
            f"; the model has {width} dimensions, of which a random span of the same rank needs "
            "as many again"
        )
        raise ValueError(
            f"top is {top}; layer {layer} of {handle.info.id} has {neurons} neurons; allowed: 1 to "
            f"{most}{why if directions and width // 2 < neurons else ''}."
        )
