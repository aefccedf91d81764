"""`mlp-subspace`: does a small set of neurons (or dimensions) of an MLP hold the sink's energy?

`z` is the input of the down projection, act(gate) * up; `g` and `u` are gate and up projection
before the activation, `out` is the MLP's output. `residual` follows the sink dimensions of the
residual stream instead, layer by layer: the contributions of embedding, attention and MLP.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sinkscope.experiments.checks import check_layer, check_reference, check_top
from sinkscope.experiments.neurons import Energy, JointShares, NoNeuronsError, dims_for, shares
from sinkscope.experiments.probes import AtTokens
from sinkscope.experiments.residual import follow_residual
from sinkscope.experiments.result import Cell, Chart, Findings, Series, Table, number, numbers
from sinkscope.experiments.settings import MLPSubspaceSettings, StudySettings
from sinkscope.experiments.streaming import Vector
from sinkscope.experiments.study import Study
from sinkscope.experiments.verdict import Specific, specific, verdict
from sinkscope.models.loading import ModelHandle
from sinkscope.models.sites import Site

SITES: dict[str, Site] = {"z": "z", "g": "gate", "u": "up", "out": "mlp_out"}
WORDS = {"z": "neurons", "g": "neurons (gate)", "u": "neurons (up)", "out": "output dimensions"}
SHARES = (0.25, 0.75, 0.99)
BARS = 24
LISTED = 8


def check(handle: ModelHandle, settings: MLPSubspaceSettings, asked: StudySettings) -> None:
    """Refuse, before any pass, a missing layer, a part that the family's MLP does not have, too
    many neurons, and a single group for the residual stream."""
    check_layer(handle, settings.layer)
    points = handle.stack.points
    if settings.mlp == "residual":
        check_reference(asked)
    elif SITES[settings.mlp] not in points:
        sites = [name for name, site in SITES.items() if site in points]
        raise ValueError(
            f"mlp is {settings.mlp!r}, but the MLPs of {handle.info.family} have no gate; "
            f"allowed: {', '.join(sites)}, residual."
        )
    elif settings.mlp != "out":
        check_top(handle, settings.layer, settings.top)
    elif settings.top is not None and settings.top > handle.info.hidden_size:
        raise ValueError(
            f"top is {settings.top}; the output of an MLP of {handle.info.id} has "
            f"{handle.info.hidden_size} dimensions; allowed: 1 to {handle.info.hidden_size}."
        )


def run(study: Study, settings: MLPSubspaceSettings) -> Findings:
    """Run the experiment."""
    if settings.mlp == "residual":
        return follow_residual(study, settings.layer)
    site = SITES[settings.mlp]
    study.plan(3)
    groups = {name: _Group() for name in study.names}
    for case, inputs in study.prepared_cases(f"Layer {settings.layer}"):
        probe = AtTokens((site,), case.positions, (settings.layer,))
        values = (
            study.forward_pass(case, inputs, [probe]).session[probe].layer(site, settings.layer)
        )
        for name in study.names:
            if len(rows := case.rows(name)):
                groups[name].add(values[rows])
    held = JointShares(groups[study.sink].energy.order, settings.top)
    for case, inputs in study.prepared_cases("What the strongest hold"):
        probe = AtTokens((site,), case.groups[study.sink], (settings.layer,))
        held.add(
            study.forward_pass(case, inputs, [probe]).session[probe].layer(site, settings.layer)
        )
    try:
        top, why = held.top(settings.min_share, settings.layer, settings.mlp), ""
    except NoNeuronsError as error:
        top, why = torch.zeros(0, dtype=torch.long), str(error)
    special = _specific(study, site, settings.layer, top) if len(top) else None
    if special is None:
        study.watch.done += len(study.cases)
    share = held.joint(len(top)) if len(top) else math.nan
    return _findings(study, settings, groups, _TopNeurons(top, share, why, special))


@dataclass(frozen=True)
class _TopNeurons:
    """The top neurons, their share of the energy (median over samples), why there are none, and
    B."""

    neurons: Tensor
    held: float
    why: str
    special: Specific | None


@dataclass
class _Group:
    """Sums over one group's tokens."""

    energy: Energy = field(default_factory=Energy)
    size: Vector = field(default_factory=Vector)
    square: Vector = field(default_factory=Vector)
    value: Vector = field(default_factory=Vector)
    figures: Vector = field(default_factory=Vector)
    norms: Vector = field(default_factory=Vector)  # squares
    count: int = 0

    def add(self, values: Tensor) -> None:
        """One sample's vectors (n, F)."""
        self.energy.add(values)
        self.size.add(values.abs())
        self.square.add(values.square())
        self.value.add(values)
        energy_shares = shares(values)
        entropy = -torch.special.xlogy(energy_shares, energy_shares).sum(-1)
        held = [dims_for(values, share) for share in SHARES]
        norm = torch.linalg.vector_norm(values, dim=-1)
        positive = (values > 0).double().sum(-1)
        largest = values.abs().amax(-1)
        self.figures.add(torch.stack([norm, *held, entropy, positive, largest], 1))
        self.norms.add(norm.square())
        self.count += len(values)

    @property
    def mean_size(self) -> Tensor:
        """float64 (F,): mean |z_j|."""
        return self.size.value()

    @property
    def mean(self) -> Tensor:
        """float64 (F,): mean z_j."""
        return self.value.value()

    @property
    def deviation(self) -> Tensor:
        """float64 (F,): standard deviation of |z_j|."""
        return (self.square.value() - self.mean_size.square()).clamp(min=0).sqrt()


def _specific(study: Study, site: Site, layer: int, top: Tensor) -> Specific:
    """Condition B: only the sinks have much energy in these neurons."""
    sinks, ordinary = [], []
    for case, inputs in study.prepared_cases("Sinks against ordinary tokens"):
        sink_positions = case.groups[study.sink]
        positions = tuple(sorted({*sink_positions, *case.others}))
        probe = AtTokens((site,), positions, (layer,))
        values = study.forward_pass(case, inputs, [probe]).session[probe].layer(site, layer)
        energy = values[:, top].square().sum(-1)
        mask = torch.tensor([position in set(sink_positions) for position in positions])
        sinks.append(energy[mask])
        ordinary.append(energy[~mask])
    return specific(sinks, ordinary, study.resampling)


def _findings(
    study: Study,
    settings: MLPSubspaceSettings,
    groups: dict[str, _Group],
    top_neurons: _TopNeurons,
) -> Findings:
    word, layer = WORDS[settings.mlp], settings.layer
    sink = groups[study.sink]
    order = sink.energy.order
    tables = [
        _figures(study, settings, groups),
        _top_table(study, settings, groups, order[:LISTED]),
    ]
    top, held, why, special = (
        top_neurons.neurons,
        top_neurons.held,
        top_neurons.why,
        top_neurons.special,
    )
    if len(top):
        listed = ", ".join(map(str, top.tolist()))
        summary = (
            f"In layer {layer}, {len(top)} of {len(order)} {word} hold {held:.0%} of the energy at "
            f"{study.sink} (median over samples): {listed}."
        )
    else:
        summary = f"No small set. {why}"
    judged = verdict(study.settings, f"energy in the top {word}", None, special, len(study.cases))
    if special is None:
        judged = type(judged)(None, False, (f"B (specific): no. {why}",), judged.thresholds)
    values: dict[str, Cell | list[int]] = {
        "layer": layer,
        "top": top.tolist(),
        "joint_share": number(held),
        "strongest": int(order[0]),
    }
    return Findings((summary,), tuple(tables), _charts(study, settings, groups), judged, values)


def _figures(study: Study, settings: MLPSubspaceSettings, groups: dict[str, _Group]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name in study.names:
        group = groups[name]
        if not group.count:
            continue
        mean = group.figures.value()
        deviation = (group.norms.value() - mean[0].square()).clamp(min=0).sqrt()
        rows.append((name, float(mean[0]), float(deviation), *map(float, mean[1:].tolist())))
    return Table(
        "energy",
        f"{settings.mlp} of layer {settings.layer}: norm, and how many dimensions hold its energy",
        (
            *("tokens", "norm", "norm_deviation"),
            *(f"dims_for_{share:.0%}" for share in SHARES),
            *("entropy", "positive", "largest"),
        ),
        tuple(rows),
        note="Means over tokens. entropy: of z^2 / sum z^2, in nats; positive: how many are above "
        f"0, of {len(groups[study.sink].mean)}.",
    )


def _top_table(
    study: Study, settings: MLPSubspaceSettings, groups: dict[str, _Group], order: Tensor
) -> Table:
    """The strongest ones; for z with their columns of the down projection."""
    sink = groups[study.sink]
    reference = groups[study.names[1]] if len(study.names) > 1 else None
    columns = ["dim", "share", "mean", "mean_reference"]
    extra: list[tuple[float, ...]] = [()] * len(order)
    note = ""
    if settings.mlp == "z":
        down = study.handle.stack.mlp(settings.layer).down.weight.detach().cpu().double()  # (D, F)
        norms = torch.linalg.vector_norm(down, dim=0)
        first = down[:, order[0]]
        tiny = torch.finfo(torch.float64).tiny
        cosines = (first @ down[:, order]) / (norms[order[0]] * norms[order]).clamp(min=tiny)
        columns += ["column_norm", "cosine_to_first"]
        extra = [
            (float(norms[dim]), float(cosine))
            for dim, cosine in zip(order.tolist(), cosines.tolist(), strict=True)
        ]
        note = f"Mean norm of the down projection's columns: {float(norms.mean()):.4g}."
    rows = [
        (
            int(dim),
            float(sink.energy.mean[dim]),
            float(sink.mean[dim]),
            float(reference.mean[dim]) if reference is not None and reference.count else None,
            *more,
        )
        for dim, more in zip(order.tolist(), extra, strict=True)
    ]
    title = f"Strongest {WORDS[settings.mlp]} at {study.sink}, layer {settings.layer}"
    return Table("top", title, tuple(columns), tuple(rows), note=note)


def _charts(
    study: Study, settings: MLPSubspaceSettings, groups: dict[str, _Group]
) -> tuple[Chart, ...]:
    sink = groups[study.sink]
    order = sink.mean_size.argsort(descending=True, stable=True)[:BARS]
    names = [name for name in study.names[:2] if groups[name].count]
    series = []
    for name in names:
        mean_size, deviation = groups[name].mean_size[order], groups[name].deviation[order]
        series.append(
            Series(
                name,
                numbers(mean_size.tolist()),
                numbers((mean_size - deviation).clamp(min=0).tolist()),
                numbers((mean_size + deviation).tolist()),
                name,
            )
        )
    held = sink.energy.mean.sort(descending=True).values.cumsum(0)[:64]
    return (
        Chart(
            "largest",
            f"The {len(order)} largest |{settings.mlp}| at {study.sink}, layer {settings.layer}",
            "bars",
            tuple(str(dim) for dim in order.tolist()),
            tuple(series),
            x_label="dimension",
            y_label="mean and deviation over tokens",
        ),
        Chart(
            "cumulative",
            f"Energy held by the strongest dimensions of {settings.mlp}, layer {settings.layer}",
            "lines",
            tuple(range(1, len(held) + 1)),
            (Series(study.sink, numbers(held.tolist()), role=study.sink),),
            x_label="dimensions, strongest first",
            y_label="share of the energy",
        ),
    )
