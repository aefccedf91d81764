"""What VAR did in one batch row, copied from the device: one copy per kind, for all layers
together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sinkscope.config import VARSettings
from sinkscope.interventions.var.report import LayerReport, VARReport, make_report
from sinkscope.interventions.var.state import UNWRITTEN, LayerState
from sinkscope.models.sink_score import above_threshold


def read_report(
    states: Mapping[int, LayerState],
    settings: VARSettings,
    row: int,
    vision: Tensor,
    vision_there: Tensor,
    counted: slice,
) -> VARReport:
    """The report of one batch row.

    Args:
        states: layer -> what is known about it.
        settings: of the row.
        row: of the batch.
        vision, vision_there: (N,) bool on the host: vision tokens, and what is no padding.
        counted: which of the queries that may change count.
    """
    places = vision_there.cumsum(0) - 1  # position in the prompt of each position here
    scores = _to_host([state.scores[row] for state in states.values()])  # (layers, N)
    acted = _to_host([state.sinks[row, : len(vision_there)] for state in states.values()])
    shares = _to_host([_shares(state, row, counted) for state in states.values()])
    layers = []
    for index, (layer, state) in enumerate(states.items()):
        row_scores, seen = scores[index, : state.seen], vision[: state.seen]
        acting = acted[index].nonzero()[:, 0]
        true = above_threshold(row_scores, settings.tau, settings.dialect) & seen
        layers.append(
            LayerReport(
                layer=layer,
                positions=tuple(places[acting].tolist()),
                scores=tuple(scores[index, acting].tolist()),
                largest_score=float(row_scores.max()),
                flagged=float(true.sum() / seen.sum()),
                missing=int(true.sum() - (acted[index, : state.seen] & seen).sum()),
                selected=float(shares[index, 0]),
                moved=float(shares[index, 1]),
            )
        )
    return make_report(tuple(layers), settings)


def _shares(state: LayerState, row: int, counted: slice) -> Tensor:
    """(2,): share of (head, query row) pairs changed, and mean mass moved, of rows that count."""
    if state.moved is None:
        return state.scores.new_zeros(2)
    moved = state.moved[row][:, counted]
    if state.groups.heads is not None:  # the others may not change
        moved = moved[state.groups.heads[row, :, 0]]
    known = moved != UNWRITTEN
    count = known.sum().clamp_min(1)
    mass = (moved * known).sum(dtype=torch.float64) / count
    return torch.stack(((moved > 0).sum() / count, mass.to(torch.float32)))


def _to_host(tensors: Sequence[Tensor]) -> Tensor:
    """Equal shapes, stacked on the CPU: one copy where they are on one device."""
    if len({tensor.device for tensor in tensors}) == 1:
        return torch.stack(list(tensors)).cpu()
    return torch.stack([tensor.cpu() for tensor in tensors])
