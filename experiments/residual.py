"""The sink dimensions of the residual stream, layer by layer: the contributions of embedding,
attention and MLP at the sinks and at other tokens (`mlp-subspace --mlp residual`)."""

from __future__ import annotations

import torch
from torch import Tensor

from sinkscope.experiments.probes import AtTokens
from sinkscope.experiments.result import Chart, Findings, Series, Table, numbers
from sinkscope.experiments.study import Study
from sinkscope.models.sites import Site

FOUND = 2  # number of dimensions if no sink dimensions are known
SITES: tuple[Site, ...] = ("block_in", "attn_out", "mlp_out")


def follow_residual(study: Study, layer: int) -> Findings:
    """Follow the sink dimensions through all layers.

    Args:
        study: model and samples.
        layer: at whose output they are searched for, if none are known.
    """
    reference = study.reference
    study.plan(1 if study.dims else 2)
    dims = study.dims or _largest(study, layer)
    sums: dict[tuple[Site, str], Tensor] = {}
    for case, inputs in study.prepared_cases("Following the residual stream"):
        probe = AtTokens(SITES, case.positions)
        reader = study.forward_pass(case, inputs, [probe]).session[probe]
        for site in SITES:
            values = reader.stacked(site)[..., list(dims)]  # (tokens, L, dims)
            for name in (study.sink, reference):
                group_sum = values[case.rows(name)].sum(0)
                sums[site, name] = (
                    sums[site, name] + group_sum if (site, name) in sums else group_sum
                )
    sizes = study.sizes
    means = {(site, name): total / sizes[name] for (site, name), total in sums.items()}
    rows = []
    for index in range(study.layers):
        for dim_index, dim in enumerate(dims):
            cells = [float(means[site, study.sink][index, dim_index]) for site in SITES]
            other = [float(means[site, reference][index, dim_index]) for site in SITES]
            apart = [a - b for a, b in zip(cells, other, strict=True)]
            rows.append((index, dim, *cells, *apart))
    table = Table(
        "residual",
        f"Sink dimensions by layer: at {study.sink}, and the difference to {reference}",
        (
            *("layer", "dim", "at_input", "attention_adds", "mlp_adds"),
            *("at_input_apart", "attention_apart", "mlp_apart"),
        ),
        tuple(rows),
        keys=2,
        note="Means over tokens. at_input of layer 0 is the embedding, or the vision tower's.",
    )
    summary = [
        _largest_part(study, means, dims, dim_index, reference) for dim_index in range(len(dims))
    ]
    known = "" if study.dims else f" (largest at the output of layer {layer})"
    return Findings(
        tuple(summary),
        (table,),
        _charts(study, means, dims, reference),
        values={"dims": list(dims), "layer": layer},
        notes=(f"Dimensions {', '.join(map(str, dims))}{known}.",),
    )


def _largest(study: Study, layer: int) -> tuple[int, ...]:
    """The dimensions in which the sinks differ most at a layer's output."""
    totals: dict[str, Tensor] = {}
    for case, inputs in study.prepared_cases("Looking for dimensions"):
        probe = AtTokens(("block_out",), case.positions, (layer,))
        values = study.forward_pass(case, inputs, [probe]).session[probe].layer("block_out", layer)
        for name in study.names[:2]:
            group_sum = values[case.rows(name)].sum(0)
            totals[name] = totals[name] + group_sum if name in totals else group_sum
    sizes = study.sizes
    apart = totals[study.names[0]] / sizes[study.names[0]]
    apart = apart - totals[study.names[1]] / sizes[study.names[1]]
    return tuple(apart.abs().topk(min(FOUND, len(apart))).indices.tolist())


def _largest_part(
    study: Study,
    means: dict[tuple[Site, str], Tensor],
    dims: tuple[int, ...],
    dim_index: int,
    reference: str,
) -> str:
    parts: list[tuple[str, float]] = []
    apart = {site: means[site, study.sink] - means[site, reference] for site in SITES}
    parts.append(("the input of layer 0", float(apart["block_in"][0, dim_index])))
    for layer in range(study.layers):
        parts.append(
            (f"the attention of layer {layer}", float(apart["attn_out"][layer, dim_index]))
        )
        parts.append((f"the MLP of layer {layer}", float(apart["mlp_out"][layer, dim_index])))
    name, value = max(parts, key=lambda part: abs(part[1]))
    return (
        f"Dimension {dims[dim_index]}: the largest difference of {study.sink} and {reference} is "
        f"made by {name} ({value:.4g})."
    )


def _charts(
    study: Study,
    means: dict[tuple[Site, str], Tensor],
    dims: tuple[int, ...],
    reference: str,
) -> tuple[Chart, ...]:
    layers = tuple(range(study.layers))
    words = {
        "block_in": "at the layer's input",
        "attn_out": "attention adds",
        "mlp_out": "MLP adds",
    }
    charts = []
    for dim_index, dim in enumerate(dims):
        series = []
        for site in SITES:
            sink_means, other = (
                means[site, study.sink][:, dim_index],
                means[site, reference][:, dim_index],
            )
            series.append(
                Series(f"{study.sink}, {words[site]}", numbers(sink_means.tolist()), role=site)
            )
            apart = torch.sub(sink_means, other)
            name = f"difference to {reference}, {words[site]}"
            series.append(Series(name, numbers(apart.tolist()), role=f"{site} apart"))
        charts.append(
            Chart(
                f"residual_{dim}",
                f"Dimension {dim} of the residual stream",
                "lines",
                layers,
                tuple(series),
                y_label="mean value",
            )
        )
    return tuple(charts)
