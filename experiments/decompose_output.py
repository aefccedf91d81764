"""`decompose-output`: a layer's output Y = R + A + M at each group of tokens: residual (the block's
input), attention and MLP.

Norm and spread of each, and what each adds along the sink dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sinkscope.experiments.bootstrap import Interval
from sinkscope.experiments.checks import check_layer
from sinkscope.experiments.probes import AtTokens
from sinkscope.experiments.result import Cell, Chart, Findings, Series, Table, number, numbers
from sinkscope.experiments.settings import DecomposeOutputSettings, StudySettings
from sinkscope.experiments.streaming import Spread, Vectors
from sinkscope.experiments.study import Study
from sinkscope.models.loading import ModelHandle
from sinkscope.models.sites import Site

PARTS: tuple[tuple[str, Site], ...] = (
    ("Y", "block_out"),
    ("residual", "block_in"),
    ("attn", "attn_out"),
    ("mlp", "mlp_out"),
)
FOUND = 2  # dimensions that are taken where no sink dimensions are known


def check(handle: ModelHandle, settings: DecomposeOutputSettings, asked: StudySettings) -> None:
    """Refuse, before any pass, a layer that the model does not have."""
    check_layer(handle, settings.layer)


def run(study: Study, settings: DecomposeOutputSettings) -> Findings:
    """Run the experiment."""
    layer = settings.layer
    study.plan(1)
    pairs = [(part, name) for part, _ in PARTS for name in study.names]
    vectors = {pair: Vectors() for pair in pairs}
    spreads = {pair: Spread() for pair in pairs}
    sums: dict[tuple[str, str], Tensor] = {}
    for case, inputs in study.prepared_cases(f"Layer {layer}"):
        probe = AtTokens(tuple(site for _, site in PARTS), case.positions, (layer,))
        session = study.forward_pass(case, inputs, [probe]).session
        for part, site in PARTS:
            values = session[probe].layer(site, layer)
            for name in study.names:
                rows = case.rows(name)
                spreads[part, name].add(values[rows])  # an empty entry keeps the samples aligned
                if len(rows):
                    vectors[part, name].add(values[rows])
                    group_sum = values[rows].sum(0)
                    sums[part, name] = (
                        sums[part, name] + group_sum if (part, name) in sums else group_sum
                    )
    table = _table(study, vectors)
    dims, known = _dims(study, sums, vectors)
    along, means = _along(study, sums, vectors, dims, layer)
    return Findings(
        _summary(study, vectors, layer),
        (table, _intervals(study, vectors, spreads), along),
        _charts(study, vectors, spreads, means, dims, layer),
        values={"layer": layer, "dims": list(dims)},
        notes=(
            ()
            if known
            else (
                f"No sink dimensions are known; taken are the {len(dims)} in which the mean of Y "
                f"at {study.sink} differs most from that at the other tokens: "
                f"{', '.join(map(str, dims))}.",
            )
        ),
    )


def _spread(vectors: Vectors) -> float | None:
    return number(float(vectors.spread())) if vectors.count > 1 else None


def _table(study: Study, vectors: dict[tuple[str, str], Vectors]) -> Table:
    """The older script's table, one row per group."""
    rows: list[tuple[Cell, ...]] = []
    for name in study.names:
        group_vectors = {part: vectors[part, name] for part, _ in PARTS}
        if not group_vectors["Y"].count:
            rows.append((name, *[None] * 8))
            continue
        spread = {part: _spread(one) for part, one in group_vectors.items()}
        norm = {part: number(float(one.norm())) for part, one in group_vectors.items()}
        rows.append(
            (
                name,
                norm["Y"],
                spread["Y"],
                *(norm[part] for part in ("residual", "attn", "mlp")),
                *(spread[part] for part in ("residual", "attn", "mlp")),
            )
        )
    return Table(
        "output",
        "Norm and spread over samples",
        (
            *("tokens", "norm_Y", "spread_Y", "norm_residual", "norm_attn", "norm_mlp"),
            *("spread_residual", "spread_attn", "spread_mlp"),
        ),
        tuple(rows),
    )


def _norm_interval(study: Study, vectors: Vectors, spread: Spread) -> Interval:
    sums = [float(norm) for norm in spread.norms]
    counts = [float(count) for count in spread.counts]
    return study.resampling.ratio(
        torch.tensor(sums, dtype=torch.float64), torch.tensor(counts, dtype=torch.float64)
    )


def _intervals(
    study: Study,
    vectors: dict[tuple[str, str], Vectors],
    spreads: dict[tuple[str, str], Spread],
) -> Table:
    rows = []
    for (part, name), group_vectors in vectors.items():
        if not group_vectors.count:
            continue
        norm = _norm_interval(study, group_vectors, spreads[part, name])
        spread = spreads[part, name].interval(study.resampling)
        rows.append(
            (
                part,
                name,
                *(number(value) for value in (norm.value, norm.low, norm.high)),
                *(number(value) for value in (spread.value, spread.low, spread.high)),
                group_vectors.count,
            )
        )
    confidence = study.settings.confidence
    return Table(
        "intervals",
        f"The same with bootstrap intervals over samples ({confidence:.0%})",
        (
            *("part", "tokens", "norm", "norm_low", "norm_high"),
            *("spread", "spread_low", "spread_high", "count"),
        ),
        tuple(rows),
        keys=2,
    )


def _dims(
    study: Study,
    sums: dict[tuple[str, str], Tensor],
    vectors: dict[tuple[str, str], Vectors],
) -> tuple[tuple[int, ...], bool]:
    """The sink dimensions, and whether they were known."""
    if study.dims:
        return study.dims, True
    sink_mean = _mean(sums, vectors, "Y", study.sink)
    others = [name for name in study.names[1:2] if vectors["Y", name].count]
    for name in others:
        sink_mean = sink_mean - _mean(sums, vectors, "Y", name)
    return tuple(sink_mean.abs().topk(min(FOUND, len(sink_mean))).indices.tolist()), False


def _mean(
    sums: dict[tuple[str, str], Tensor],
    vectors: dict[tuple[str, str], Vectors],
    part: str,
    name: str,
) -> Tensor:
    """float64 (D,): mean vector."""
    return sums[part, name] / vectors[part, name].count


def _along(
    study: Study,
    sums: dict[tuple[str, str], Tensor],
    vectors: dict[tuple[str, str], Vectors],
    dims: tuple[int, ...],
    layer: int,
) -> tuple[Table, dict[tuple[str, str], Tensor]]:
    """What each part adds along the sink dimensions."""
    means = {
        (part, name): _mean(sums, vectors, part, name)[list(dims)]
        for part, _ in PARTS
        for name in study.names
        if vectors[part, name].count
    }
    rows: list[tuple[Cell, ...]] = [
        (part, name, *map(float, values.tolist())) for (part, name), values in means.items()
    ]
    return (
        Table(
            "dimensions",
            f"Mean along the sink dimensions, layer {layer}",
            ("part", "tokens", *(f"dim_{dim}" for dim in dims)),
            tuple(rows),
            keys=2,
            note="Y = residual + attn + mlp.",
        ),
        means,
    )


def _summary(study: Study, vectors: dict[tuple[str, str], Vectors], layer: int) -> tuple[str, ...]:
    norms = {part: float(vectors[part, study.sink].norm()) for part, _ in PARTS[1:]}
    most = max(norms, key=lambda part: norms[part])
    summary = [
        f"In layer {layer}, at {study.sink}, the largest part of the output is "
        f"{ {'residual': 'the residual stream', 'attn': 'attention', 'mlp': 'the MLP'}[most] } "
        f"(norm {norms[most]:.4g} of {float(vectors['Y', study.sink].norm()):.4g})."
    ]
    if len(study.names) > 1 and vectors[most, study.names[1]].count:
        other = float(vectors[most, study.names[1]].norm())
        ratio = norms[most] / other if other else math.inf
        summary.append(f"That is {ratio:.3g} times its norm at {study.names[1]}.")
    return tuple(summary)


def _charts(
    study: Study,
    vectors: dict[tuple[str, str], Vectors],
    spreads: dict[tuple[str, str], Spread],
    means: dict[tuple[str, str], Tensor],
    dims: tuple[int, ...],
    layer: int,
) -> tuple[Chart, ...]:
    parts = tuple(part for part, _ in PARTS)
    names = [name for name in study.names if vectors["Y", name].count]

    def bars(name: str, which: str) -> Series:
        values = [
            _norm_interval(study, vectors[part, name], spreads[part, name])
            if which == "norm"
            else spreads[part, name].interval(study.resampling)
            for part in parts
        ]
        return Series(
            name,
            numbers([one.value for one in values]),
            numbers([one.low for one in values]),
            numbers([one.high for one in values]),
            name,
        )

    note = "Bars: bootstrap intervals over samples. Y = residual + attn + mlp."
    charts = [
        Chart(
            "norm",
            f"Norm of the parts of layer {layer}'s output",
            "bars",
            parts,
            tuple(bars(name, "norm") for name in names),
            x_label="",
            y_label="mean norm",
            log=True,
            note=note,
        ),
        Chart(
            "spread",
            f"Spread of the parts of layer {layer}'s output",
            "bars",
            parts,
            tuple(bars(name, "spread") for name in names if vectors["Y", name].count > 1),
            x_label="",
            y_label="spread over samples",
            note=note + f" Isotropic directions: {study.handle.info.hidden_size**-0.5:.3g}.",
        ),
    ]
    for index, dim in enumerate(dims):
        charts.append(
            Chart(
                f"dim_{dim}",
                f"Dimension {dim} of the parts of layer {layer}'s output",
                "bars",
                parts,
                tuple(
                    Series(
                        name,
                        numbers([float(means[part, name][index]) for part in parts]),
                        role=name,
                    )
                    for name in names
                ),
                x_label="",
                y_label="mean value",
            )
        )
    return tuple(charts)
