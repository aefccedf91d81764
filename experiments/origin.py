"""Where a sink arises: the first part (what enters layer 0, or a layer's attention or MLP) whose
norm at the sink stands out from that at the reference, if the token is a sink after it.

A token is a sink after a part if in some later layer it gets at least `SINK` times the reference's
attention, or if the residual stream behind the part is `STANDS_OUT` times as long as at the
reference. Without this condition a random model has a place where "sinks arise": the first token
attends only to itself, so its attention output is no average and longer than that of others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from sinkscope.experiments.result import Cell, Table
from sinkscope.models.sites import Site

STANDS_OUT = 3.0  # a norm at the sink, in multiples of that at the reference
HALF = 0.5  # of the largest excess of a norm
SINK = 2.0  # attention to the sink, in multiples of that to the reference
STREAM: tuple[Site, ...] = ("block_in", "attn_out", "mlp_out")


@dataclass(frozen=True)
class GroupParts:
    """What the parts write at one group of tokens.

    Attributes:
        name: of the group.
        whole: site of `STREAM` -> float64 (L,): mean norm.
        along: the same on only the sink dimensions; equal to `whole` if none are known.
        attention: float64 (L,): attention to a token of the group; NaN if no query sees it.
    """

    name: str
    whole: Mapping[Site, Tensor]
    along: Mapping[Site, Tensor]
    attention: Tensor


def origin(
    sink: GroupParts, reference: GroupParts, dims: Sequence[int]
) -> tuple[dict[str, Cell], str, Table]:
    """Where the sink arises.

    Args:
        sink, reference: the two groups.
        dims: known sink dimensions; empty: whole norms count.

    Returns:
        `part` (input, attention or mlp) and `layer`, both None if there is no such part; a
        sentence; the norms of all parts.
    """
    layers = len(sink.attention)
    places: list[tuple[str, Site, int]] = [("input", "block_in", 0)]
    for layer in range(layers):
        places += [("attention", "attn_out", layer), ("mlp", "mlp_out", layer)]
    at_sink, at_reference = (
        [float(group.along[site][layer]) for _, site, layer in places]
        for group in (sink, reference)
    )
    excess = [a - b for a, b in zip(at_sink, at_reference, strict=True)]
    outstanding = [
        index
        for index, more in enumerate(excess)
        if more >= HALF * max(excess) and at_sink[index] >= STANDS_OUT * at_reference[index]
    ]
    found = next((i for i in outstanding if _sink_after(sink, reference, *places[i][::2])), None)
    table = _table(sink, reference, places, dims)
    on = f" on dims {', '.join(map(str, dims))}" if dims else ""
    if found is None:
        text = (
            f"No part writes{on} at {sink.name} a vector of {STANDS_OUT:g} times its norm at "
            f"{reference.name}: no layer stands out."
        )
        if outstanding:
            first = outstanding[0]
            word, _, layer = places[first]
            text = (
                f"No sink arises: {_where(word, layer)} the norm{on} is {at_sink[first]:.4g} at "
                f"{sink.name} and {at_reference[first]:.4g} at {reference.name}, but after it "
                f"{sink.name} gets less than {SINK:g} times the attention of {reference.name} in "
                "every layer, and its residual stream does not stand out."
            )
        return {"part": None, "layer": None}, text, table
    word, _, layer = places[found]
    text = (
        f"The sinks arise {_where(word, layer)}: its norm{on} is {at_sink[found]:.4g} at "
        f"{sink.name} and {at_reference[found]:.4g} at {reference.name}."
    )
    return {"part": word, "layer": layer}, text, table


def _sink_after(sink: GroupParts, reference: GroupParts, word: str, layer: int) -> bool:
    """Whether the token is a sink after a part of a layer."""
    first = 0 if word == "input" else layer + 1
    more = sink.attention[first:] >= SINK * reference.attention[first:]  # NaN: no
    stream, other = sink.along["block_in"][first:], reference.along["block_in"][first:]
    return bool(more.any()) or bool((stream[:1] >= STANDS_OUT * other[:1]).any())


def _where(word: str, layer: int) -> str:
    return {
        "input": "at the input of layer 0 (the embedding, or the vision tower's output)",
        "attention": f"in the attention of layer {layer}",
        "mlp": f"in the MLP of layer {layer}",
    }[word]


def _table(
    sink: GroupParts,
    reference: GroupParts,
    places: Sequence[tuple[str, Site, int]],
    dims: Sequence[int],
) -> Table:
    kinds = ("whole", "along") if dims else ("whole",)
    norms: list[Mapping[Site, Tensor]] = [
        getattr(group, kind) for kind in kinds for group in (sink, reference)
    ]
    rows: list[tuple[Cell, ...]] = [
        (word, layer, *(float(norm[site][layer]) for norm in norms)) for word, site, layer in places
    ]
    more = (f"{sink.name}_on_dims", f"{reference.name}_on_dims") if dims else ()
    return Table(
        "parts",
        f"What each part writes: mean norm at {sink.name} and at {reference.name}",
        ("part", "layer", sink.name, reference.name, *more),
        tuple(rows),
        keys=2,
        note="input: what enters layer 0, the embedding or the vision tower's output.",
    )
