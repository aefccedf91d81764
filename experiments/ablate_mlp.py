"""`ablate-mlp`: do the sinks vanish when an MLP no longer writes the part that causes them?

direction   Q = QR(W_down[:, top neurons at the sink]); only at the sinks y <- y - Q Q^T y, where y
            is the MLP's output. Also span(Q) removed from the input of later layers, one layer at a
            time, beside random spans of its rank there.
magnitude   y <- y * min(1, |y_ref| / |y|), with |y_ref| the mean norm of the MLP's output at the
            reference tokens of the same sample.

Controls: a random span of the same rank, orthogonal to Q, at the sinks; the same change at as
many random ordinary tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sinkscope.experiments.checks import check_layer, check_reference, check_top
from sinkscope.experiments.controls import orthonormal, random_basis
from sinkscope.experiments.effects import PLAIN, Effects
from sinkscope.experiments.neurons import top_neurons
from sinkscope.experiments.probes import AtTokens
from sinkscope.experiments.result import Chart, Findings, Series, Table, numbers
from sinkscope.experiments.settings import AblateMLPSettings, StudySettings
from sinkscope.experiments.streaming import unit
from sinkscope.experiments.study import Case, Pass, Study
from sinkscope.experiments.verdict import specific, verdict
from sinkscope.interventions.base import Intervention
from sinkscope.interventions.project import ProjectOut
from sinkscope.interventions.scale import Scale
from sinkscope.models.loading import ModelHandle
from sinkscope.models.sites import SiteSelection

ABLATED, DIRECTION, TOKENS = "ablated", "random direction", "random tokens"


def check(handle: ModelHandle, settings: AblateMLPSettings, asked: StudySettings) -> None:
    """Refuse, before any pass, a missing or last layer, too many neurons, or a single group."""
    check_layer(handle, settings.layer, after=True)
    check_reference(asked)
    if settings.what == "direction":
        check_top(handle, settings.layer, settings.top, directions=True)


def run(study: Study, settings: AblateMLPSettings) -> Findings:
    """Run the experiment.

    Raises:
        NoNeuronsError: no small set of neurons holds the sinks' energy (direction).
    """
    direction = settings.what == "direction"
    study.plan(3 if direction else 1)
    top: Tensor | None = None
    basis: Tensor | None = None
    if direction:
        top = top_neurons(study, settings.layer, settings.top, settings.min_share)
        down = study.handle.stack.mlp(settings.layer).down.weight.detach()
        basis = orthonormal(down[:, top.to(down.device)].cpu())
    arms = _Arms(study, settings, basis)
    for case, inputs in study.prepared_cases(f"Ablating layer {settings.layer}"):
        positions = tuple(sorted({*case.positions, *case.others}))
        probe = AtTokens(("mlp_out",), positions, (settings.layer,))
        plain = study.forward_pass(case, inputs, [probe])
        written = plain.session[probe].layer("mlp_out", settings.layer)
        arms.measure(case, plain, dict(zip(positions, written, strict=True)))
    return _findings(study, settings, arms, top)


@dataclass
class _Arms:
    """All arms, sample by sample."""

    study: Study
    settings: AblateMLPSettings
    basis: Tensor | None
    effects: Effects = field(init=False)
    by_layer: Effects = field(init=False)
    by_layer_random: Effects = field(init=False)
    sinks: list[Tensor] = field(default_factory=list)
    ordinary: list[Tensor] = field(default_factory=list)
    stays: list[float] = field(default_factory=list)  # magnitude: along the sinks' own direction
    beside: list[float] = field(default_factory=list)  # of ordinary tokens, on the same direction

    def __post_init__(self) -> None:
        self.effects, self.by_layer = Effects(self.study), Effects(self.study)
        self.by_layer_random = Effects(self.study)

    def measure(self, case: Case, plain: Pass, written: dict[int, Tensor]) -> None:
        """One sample: `written` is the MLP's output by position."""
        study, settings, effects = self.study, self.settings, self.effects
        sinks = case.groups[study.sink]
        self.sinks.append(self._projection(written, sinks))
        self.ordinary.append(self._projection(written, case.others))
        effects.measure(PLAIN, case, plain, [])
        if self.basis is None:
            limit = float(
                torch.stack([written[p].norm() for p in case.groups[study.reference]]).mean()
            )
            factors = [min(1.0, limit / max(1e-300, float(written[p].norm()))) for p in sinks]
            factor = sum(factors) / len(factors)
            effects.measure(ABLATED, case, plain, [Scale(self._at(sinks), limit)])
            same: list[Sequence[Intervention]] = [
                [Scale(self._at(tokens), factor=factor)] if factor < 1 else []
                for tokens in study.random(case)
            ]
            effects.measure(TOKENS, case, plain, *same)
            self._what_stays(written, sinks, case.others, limit)
            return
        effects.measure(ABLATED, case, plain, [ProjectOut(self._at(sinks), self.basis)])
        randoms = ([ProjectOut(self._at(sinks), basis)] for basis in self._random_bases())
        effects.measure(DIRECTION, case, plain, *randoms)
        effects.measure(
            TOKENS,
            case,
            plain,
            *([ProjectOut(self._at(tokens), self.basis)] for tokens in study.random(case)),
        )
        if settings.each_layer:
            for by_layer in (self.by_layer, self.by_layer_random):
                by_layer.arms.setdefault(PLAIN, []).append(effects.arms[PLAIN][-1])
            for layer in range(settings.layer + 1, study.layers):
                at = SiteSelection("block_in", (layer,), sinks)
                self.by_layer.measure(str(layer), case, plain, [ProjectOut(at, self.basis)])
                randoms = ([ProjectOut(at, basis)] for basis in self._random_bases())
                self.by_layer_random.measure(str(layer), case, plain, *randoms)

    def _random_bases(self) -> list[Tensor]:
        """One for each draw, of the same rank as Q and orthogonal to it."""
        assert self.basis is not None
        asked = self.study.settings
        return [random_basis(self.basis, asked.seed + draw) for draw in range(asked.controls)]

    def _what_stays(
        self,
        written: dict[int, Tensor],
        sink_positions: Sequence[int],
        others: Sequence[int],
        limit: float,
    ) -> None:
        """The projection of the cut output on the sinks' own direction, compared with other
        tokens."""
        sinks = torch.stack([written[p] for p in sink_positions])
        direction = unit(sinks.mean(0))
        cut = unit(sinks) * torch.linalg.vector_norm(sinks, dim=-1).clamp(max=limit)[:, None]
        ordinary = torch.stack([written[p] for p in others])
        self.stays.append(float((cut @ direction).mean()))
        self.beside.append(float((ordinary @ direction).abs().mean()))

    def _at(self, positions: tuple[int, ...]) -> SiteSelection:
        return SiteSelection("mlp_out", (self.settings.layer,), positions)

    def _projection(self, written: dict[int, Tensor], positions: Sequence[int]) -> Tensor:
        """(n,): norm of the MLP's output in the span, or of all of it."""
        if not positions:
            return torch.zeros(0, dtype=torch.float64)
        values = torch.stack([written[position] for position in positions])
        if self.basis is not None:
            values = values @ self.basis
        sizes: Tensor = torch.linalg.vector_norm(values, dim=-1)
        return sizes


def _findings(
    study: Study, settings: AblateMLPSettings, arms: _Arms, top: Tensor | None
) -> Findings:
    later = range(settings.layer + 1, study.layers)
    controls = [name for name in (DIRECTION, TOKENS) if name in arms.effects.arms]
    causal = arms.effects.causal(ABLATED, controls, later)
    special = specific(arms.sinks, arms.ordinary, study.resampling)
    factor = "span of the top neurons" if top is not None else "size of the MLP's output"
    judged = verdict(study.settings, factor, causal, special, len(study.cases))
    tables = [arms.effects.table(later)]
    charts = arms.effects.charts()
    values: dict[str, Any] = {
        "layer": settings.layer,
        "top": None if top is None else top.tolist(),
        "removed": causal.removed.value,
        "controls": {name: control.value for name, control in causal.controls.items()},
        "auc": special.auc.value,
    }
    change = study.resampling.mean(arms.effects.logs(ABLATED) - arms.effects.logs(PLAIN))
    change_made = (
        f"Without the {factor} in layer {settings.layer}"
        if top is not None
        else f"With the MLP's output of layer {settings.layer} cut to the reference tokens' norm"
    )
    summary = [
        f"{change_made}, {causal.gone} in layers {later.start} to {later.stop - 1}; the answer's "
        f"log-probability changes by {change} nats per token."
    ]
    if top is None:
        stays, beside = (sum(values) / len(values) for values in (arms.stays, arms.beside))
        values |= {"along_own_direction": stays, "ordinary_along_it": beside}
        summary.append(
            "The cut keeps the output's direction: along it the sinks still have "
            f"{stays:.3g}, ordinary tokens {beside:.3g} (mean absolute value)."
        )
    if top is not None:
        summary.append(f"Top neurons: {', '.join(map(str, top.tolist()))}.")
    if arms.by_layer.arms:
        table, chart = _one_at_a_time(study, arms, later)
        tables.append(table)
        charts.append(chart)
    charts.append(_histogram(arms, factor))
    return Findings(tuple(summary), tuple(tables), tuple(charts), judged, values)


def _one_at_a_time(study: Study, arms: _Arms, later: range) -> tuple[Table, Chart]:
    """The span removed from one later layer's input, and random spans of the same rank: the effect
    in that layer and after it."""
    removed, random = (
        [effects.causal(str(at), [], range(at, study.layers)).removed for at in later]
        for effects in (arms.by_layer, arms.by_layer_random)
    )
    table = Table(
        "one_layer_at_a_time",
        "span(Q) removed from one later layer's input at the sinks",
        ("layer", "removed", "removed_low", "removed_high", "random", "random_low", "random_high"),
        tuple(
            (layer, *numbers((one.value, one.low, one.high, other.value, other.low, other.high)))
            for layer, one, other in zip(later, removed, random, strict=True)
        ),
        note="removed: share of the excess attention in this layer and all later ones; random: the "
        "same by a random span of the same rank, orthogonal to Q.",
    )
    chart = Chart(
        "one_layer_at_a_time",
        "span(Q) removed from one later layer's input",
        "lines",
        tuple(later),
        tuple(
            Series(
                name,
                numbers([interval.value for interval in intervals]),
                numbers([interval.low for interval in intervals]),
                numbers([interval.high for interval in intervals]),
                name,
            )
            for name, intervals in ((ABLATED, removed), (DIRECTION, random))
        ),
        y_label="share of the excess attention gone",
        note="Bands: bootstrap intervals over samples.",
    )
    return table, chart


def _histogram(arms: _Arms, factor: str) -> Chart:
    return histogram(
        "projections",
        f"Size of the MLP's output ({factor})",
        {"sinks": torch.cat(arms.sinks), "ordinary": torch.cat(arms.ordinary)},
        "size",
    )


def histogram(name: str, title: str, groups: dict[str, Tensor], label: str) -> Chart:
    """A histogram of several groups of values in shared bins."""
    everything = torch.cat([values.double() for values in groups.values()])
    low, high = float(everything.min()), float(everything.max())
    edges = torch.linspace(low, high if high > low else low + 1, 41, dtype=torch.float64)
    series = tuple(
        Series(
            group,
            numbers(torch.histc(values.double(), 40, float(edges[0]), float(edges[-1])).tolist()),
            role=group,
        )
        for group, values in groups.items()
    )
    return Chart(
        name,
        title,
        "histogram",
        tuple(edges.tolist()),
        series,
        x_label=label,
        y_label="share of the tokens",
    )
