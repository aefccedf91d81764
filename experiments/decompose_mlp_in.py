"""`decompose-mlp-in`: which direction of an MLP's input switches the top neurons on?

For each top neuron j the gradient of z_j^2 at the sinks with respect to the MLP's input x (after
its norm), one row per sink token: G (n x D). SVD without centring: eigenvalues S^2 / n, v1 the
first right vector, with the sign that puts the sinks above the reference. Q = orth[v1 of each
neuron].

Arms, only at the sinks: x <- x - Q Q^T x; the same with a random span of the same rank, orthogonal
to Q; the same at random ordinary tokens; and before an RMS norm with weight gamma, where
U = Q / gamma, s <- s - U U^T (gamma^2 * s), which takes span(Q) out of what comes after the norm.
A LayerNorm centres and adds a bias, for which that is not defined: the arm is left out there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sinkscope.experiments.ablate_mlp import ABLATED, DIRECTION, TOKENS, histogram
from sinkscope.experiments.checks import check_layer, check_reference, check_top
from sinkscope.experiments.controls import orthonormal, random_basis
from sinkscope.experiments.effects import PLAIN, Effects
from sinkscope.experiments.neurons import top_neurons
from sinkscope.experiments.probes import AtTokens
from sinkscope.experiments.result import Cell, Chart, Findings, Series, Table, number, numbers
from sinkscope.experiments.settings import DecomposeMLPInSettings, StudySettings
from sinkscope.experiments.streaming import Rows
from sinkscope.experiments.study import Case, Pass, Study
from sinkscope.experiments.verdict import specific, verdict
from sinkscope.interventions.project import ProjectOut
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle
from sinkscope.models.sites import SiteSelection

BEFORE = "before the norm"
LISTED = 12  # eigenvalues


@dataclass(frozen=True)
class Direction:
    """What switches one neuron on.

    Attributes:
        neuron: its index.
        vector: float64 (D,): v1, of length 1.
        eigenvalues: float64: S^2 / n, falling, those above zero.
    """

    neuron: int
    vector: Tensor
    eigenvalues: Tensor

    @property
    def share(self) -> float:
        """Of the first eigenvalue in their sum."""
        return float(self.eigenvalues[0] / self.eigenvalues.sum())


def check(handle: ModelHandle, settings: DecomposeMLPInSettings, asked: StudySettings) -> None:
    """Refuse, before any pass, a missing or last layer, too many neurons, a single group, and the
    projection before the norm if it is not defined."""
    check_layer(handle, settings.layer, after=True)
    check_reference(asked)
    check_top(handle, settings.layer, settings.top, directions=True)
    if settings.before_norm and handle.stack.mlp(settings.layer).norm.kind != "rms":
        raise ValueError(
            f"before_norm is given, but the MLP's norm of {handle.info.family} is a LayerNorm, "
            "which centres and adds a bias: the projection before it is not defined; allowed: "
            "false, or leave it out."
        )


def run(study: Study, settings: DecomposeMLPInSettings) -> Findings:
    """Run the experiment.

    Raises:
        NoNeuronsError: no small set of neurons holds the sinks' energy.
    """
    layer = settings.layer
    norm = study.handle.stack.mlp(layer).norm
    before = norm.kind == "rms" if settings.before_norm is None else settings.before_norm
    study.plan(4)
    top = top_neurons(study, layer, settings.top, settings.min_share)
    directions, center = _directions(study, layer, top)
    basis = orthonormal(torch.stack([one.vector for one in directions], 1))
    arms = _Arms(study, layer, top, directions, center, basis)
    if before:
        arms.gamma = norm.weight.detach().double().cpu()
    for case, inputs in study.prepared_cases(f"Projecting in layer {layer}"):
        arms.measure(case, inputs)
    notes = (
        ()
        if before or settings.before_norm is not None
        else ("The MLP's norm is a LayerNorm; the projection before it is not defined: left out.",)
    )
    return _findings(study, arms, notes)


def gradients(study: Study, layer: int, top: Tensor, inputs: Tensor) -> Tensor:
    """float64 (k, n, D): gradient of z_j^2 with respect to the MLP's input, of each top neuron j at
    each of n tokens (n, D)."""
    mlp = study.handle.stack.mlp(layer)
    with study.handle.lock, torch.enable_grad():
        given = inputs.detach().clone().requires_grad_()
        z = mlp.inner(given[None])[0]  # (n, F)
        rows = []
        for neuron in top.tolist():
            # An MLP does not mix tokens, so the gradient of the sum is each token's own.
            (gradient,) = torch.autograd.grad(z[:, neuron].square().sum(), given, retain_graph=True)
            rows.append(gradient.detach().cpu().double())
    return torch.stack(rows)


def _directions(study: Study, layer: int, top: Tensor) -> tuple[list[Direction], Tensor]:
    """v1 of each neuron, and the mean input at the reference tokens (D,)."""
    rows_of = [Rows() for _ in top]
    sums: dict[str, Tensor] = {}
    for case, inputs in study.prepared_cases("Gradients"):
        probe = AtTokens(("mlp_in",), case.positions, (layer,))
        reader = study.forward_pass(case, inputs, [probe]).session[probe]
        values = reader.layer("mlp_in", layer)
        for name in study.names[:2]:
            group_sum = values[case.rows(name)].sum(0)
            sums[name] = sums[name] + group_sum if name in sums else group_sum
        raw = reader.raw("mlp_in", layer)
        rows = case.rows(study.sink).to(raw.device)
        for into, group_sum in zip(rows_of, gradients(study, layer, top, raw[rows]), strict=True):
            into.add(group_sum)
    sizes = study.sizes
    center = sums[study.reference] / sizes[study.reference]
    apart = sums[study.sink] / sizes[study.sink] - center
    directions = []
    for neuron, g in zip(top.tolist(), rows_of, strict=True):
        singular, right = g.decomposed()
        if not float(singular[0]) > 0:
            raise ValueError(f"Neuron {neuron} of layer {layer} has no gradient at the sinks.")
        vector = right[0] if float(right[0] @ apart) >= 0 else -right[0]
        directions.append(Direction(neuron, vector, singular.square() / g.count))
    return directions, center


@dataclass
class _Arms:
    """All arms, sample by sample, with the projections and z of each."""

    study: Study
    layer: int
    top: Tensor
    directions: list[Direction]
    center: Tensor
    basis: Tensor
    gamma: Tensor | None = None
    effects: Effects = field(init=False)
    sinks: list[Tensor] = field(default_factory=list)
    ordinary: list[Tensor] = field(default_factory=list)
    reference: list[Tensor] = field(default_factory=list)
    z: dict[str, list[Tensor]] = field(default_factory=dict)
    after: dict[str, list[Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.effects = Effects(self.study)

    def measure(self, case: Case, inputs: PromptInputs) -> None:
        """One sample."""
        study, sinks = self.study, case.groups[self.study.sink]
        positions = tuple(sorted({*case.positions, *case.others}))
        probe = AtTokens(("mlp_in",), positions, (self.layer,))
        plain = study.forward_pass(case, inputs, [probe])
        values = plain.session[probe].layer("mlp_in", self.layer)
        vectors = torch.stack([one.vector for one in self.directions], 1)  # (D, k)
        projected = dict(zip(positions, (values - self.center) @ vectors, strict=True))
        for into, tokens in (
            (self.sinks, sinks),
            (self.ordinary, case.others),
            (self.reference, case.groups[study.reference]),
        ):
            rows = [projected[position] for position in tokens]
            into.append(
                torch.stack(rows) if rows else torch.zeros(0, len(self.directions)).double()
            )
        at = SiteSelection("mlp_in", (self.layer,), sinks)
        seed, draws = study.settings.seed, range(study.settings.controls)
        self._arm(PLAIN, case, plain, [[]])
        self._arm(ABLATED, case, plain, [[ProjectOut(at, self.basis)]])
        randoms = [[ProjectOut(at, random_basis(self.basis, seed + draw))] for draw in draws]
        self._arm(DIRECTION, case, plain, randoms)
        if self.gamma is not None:
            under = SiteSelection("mlp_norm_in", (self.layer,), sinks)
            safe = torch.where(self.gamma == 0, 1.0, self.gamma)
            scaled = torch.where(self.gamma == 0, 0.0, 1 / safe)[:, None] * self.basis
            change = ProjectOut(under, scaled, self.gamma.square())
            self._arm(BEFORE, case, plain, [[change]])
        elsewhere = [
            SiteSelection("mlp_in", (self.layer,), chosen) for chosen in study.random(case)
        ]
        self.effects.measure(
            TOKENS, case, plain, *([ProjectOut(site, self.basis)] for site in elsewhere)
        )

    def _arm(self, name: str, case: Case, plain: Pass, draws: list[list[ProjectOut]]) -> None:
        """An arm, with z of the top neurons and the projections at the sinks."""
        look = AtTokens(("mlp_in", "z"), case.groups[self.study.sink], (self.layer,))
        sessions = self.effects.measure(name, case, plain, *draws, probes=[look])
        z = torch.stack([s[look].layer("z", self.layer)[:, self.top].abs() for s in sessions])
        self.z.setdefault(name, []).append(z.mean(0))
        first = self.directions[0].vector
        inside = torch.stack([s[look].layer("mlp_in", self.layer) @ first for s in sessions])
        self.after.setdefault(name, []).append(inside.mean(0))


def effective_rank(eigenvalues: Tensor) -> tuple[float, float]:
    """exp(entropy of l / sum l), and (sum l)^2 / sum l^2."""
    positive = eigenvalues.double().clamp(min=0)
    share = positive / positive.sum()
    entropy = -float(torch.special.xlogy(share, share).sum())
    return math.exp(entropy), float(positive.sum().square() / positive.square().sum())


def _findings(study: Study, arms: _Arms, notes: tuple[str, ...]) -> Findings:
    later = range(arms.layer + 1, study.layers)
    causal = arms.effects.causal(ABLATED, (DIRECTION, TOKENS), later)
    first = [part[:, 0] for part in arms.sinks]
    special = specific(first, [part[:, 0] for part in arms.ordinary], study.resampling)
    judged = verdict(
        study.settings, "input direction of the top neurons", causal, special, len(study.cases)
    )
    vectors = torch.stack([one.vector for one in arms.directions], 1)
    gram = vectors.T @ vectors
    ranks = effective_rank(torch.linalg.eigvalsh(gram))
    strongest = arms.directions[0]
    summary = [
        f"In layer {arms.layer}, one direction activates neuron {strongest.neuron}: it has "
        f"{strongest.share:.0%} of the energy of the neuron's gradient.",
        f"Without the span of {len(arms.directions)} such directions {causal.gone}.",
    ]
    if BEFORE in arms.effects.arms:
        removed = arms.effects.causal(BEFORE, [], later).removed
        summary.append(f"Taken out before the norm: {removed.percent()}.")
    values = {
        "layer": arms.layer,
        "top": arms.top.tolist(),
        "direction": strongest.vector.tolist(),
        "removed": causal.removed.value,
        "controls": {name: removed.value for name, removed in causal.controls.items()},
        "auc": special.auc.value,
        "effective_rank": list(ranks),
    }
    tables = (
        arms.effects.table(later),
        _direction_table(study, arms, ranks),
        _gram_table(arms, gram),
        _arm_table(arms),
    )
    charts = [*arms.effects.charts(), *_charts(study, arms)]
    return Findings(tuple(summary), tables, tuple(charts), judged, values, notes)


def _direction_table(study: Study, arms: _Arms, ranks: tuple[float, float]) -> Table:
    sinks, reference, others = (torch.cat(p) for p in (arms.sinks, arms.reference, arms.ordinary))
    rows = []
    for index, one in enumerate(arms.directions):
        auc = specific(
            [part[:, index] for part in arms.sinks],
            [part[:, index] for part in arms.ordinary],
            study.resampling,
        ).auc
        rows.append(
            (
                one.neuron,
                float(one.eigenvalues[0]),
                one.share,
                *effective_rank(one.eigenvalues),
                float(sinks[:, index].mean()),
                float(reference[:, index].mean()),
                float(others[:, index].mean()),
                number(auc.value),
            )
        )
    return Table(
        "directions",
        f"Input directions of the top neurons, layer {arms.layer}",
        (
            *("neuron", "eigenvalue", "share", "rank_entropy", "rank_participation"),
            *(f"mean_{study.sink}", f"mean_{study.reference}", "mean_others", "auc"),
        ),
        tuple(rows),
        note="mean: of v1 . (x - mean of the reference). Effective rank of the directions' Gram "
        f"matrix: {ranks[0]:.3g} (entropy), {ranks[1]:.3g} (participation).",
    )


def _gram_table(arms: _Arms, gram: Tensor) -> Table:
    neurons = [str(one.neuron) for one in arms.directions]
    rows: list[tuple[Cell, ...]] = [
        (name, *map(float, row)) for name, row in zip(neurons, gram.tolist(), strict=True)
    ]
    title = "Cosines of the directions with each other (Gram matrix)"
    return Table("gram", title, ("neuron", *neurons), tuple(rows))


def _arm_table(arms: _Arms) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, parts in arms.z.items():
        mean = torch.cat(parts).mean(0)
        inside = torch.cat(arms.after[name])
        rows.append((name, float(inside.mean()), *map(float, mean.tolist())))
    return Table(
        "neurons",
        "What the arms do at the sinks: v1 . x of the strongest neuron, and mean |z|",
        ("arm", "projection", *(f"z_{one.neuron}" for one in arms.directions)),
        tuple(rows),
    )


def _charts(study: Study, arms: _Arms) -> list[Chart]:
    neurons = tuple(str(one.neuron) for one in arms.directions)
    bars = tuple(
        Series(name, numbers(torch.cat(parts).mean(0).tolist()), role=name)
        for name, parts in arms.z.items()
    )
    spectrum = arms.directions[0].eigenvalues[:LISTED]
    return [
        histogram(
            "projections",
            f"Projection on the direction of neuron {arms.directions[0].neuron}",
            {
                study.sink: torch.cat(arms.sinks)[:, 0],
                study.reference: torch.cat(arms.reference)[:, 0],
            },
            "v1 . (x - mean of the reference)",
        ),
        Chart(
            "z",
            f"Top neurons of layer {arms.layer} at {study.sink}",
            "bars",
            neurons,
            bars,
            x_label="neuron",
            y_label="mean |z|",
        ),
        Chart(
            "eigenvalues",
            f"Spectrum of the gradients of neuron {arms.directions[0].neuron}",
            "bars",
            tuple(str(index + 1) for index in range(len(spectrum))),
            (Series("eigenvalue", numbers(spectrum.tolist())),),
            x_label="eigenvalue, falling",
            y_label="S^2 / n",
        ),
    ]
