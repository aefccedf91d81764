"""`scan`: where the sinks arise and what distinguishes them, layer by layer.

One pass per sample. For the chosen tokens, by layer: norms and spreads of keys (after norms and
rotary embedding), values, residual stream and MLP output; the cosine of later queries with their
keys; the attention they get. And where the sink arises (`experiments.origin`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sinkscope.experiments.checks import check_reference
from sinkscope.experiments.origin import STREAM, GroupParts, origin
from sinkscope.experiments.probes import AtTokens, KeyAttention, KeyAttentionReader, KeysByHead
from sinkscope.experiments.result import Chart, Findings, Series, Table, number, numbers
from sinkscope.experiments.settings import ScanSettings, StudySettings
from sinkscope.experiments.streaming import Mean, Vectors, concentration
from sinkscope.experiments.study import Case, Study
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle
from sinkscope.models.sites import Site

RATE = 0.3  # alpha_k above which a head of a sample counts for the sink rate
MASSIVE, MASSIVE_RATIO = 100.0, 1000.0  # arXiv 2402.17762
SITES: dict[str, tuple[Site, ...]] = {"v": ("v",), "hidden": STREAM, "mlp": ("mlp_out",)}


class Scan:
    """Sums over samples, by group: a few numbers per layer and the running sums of `Vectors`."""

    def __init__(self, study: Study, settings: ScanSettings) -> None:
        self._study, self._asked = study, settings
        wanted = {site for name in settings.print for site in SITES.get(name, ())}
        # Where the sink arises is always reported.
        self.sites: tuple[Site, ...] = tuple(
            site
            for site in ("block_in", "v", "attn_out", "mlp_out")
            if site in wanted or site != "v"
        )
        groups = study.names
        sites: tuple[Site, ...] = (*self.sites, "k")
        self.vectors = {(site, name): Vectors() for site in sites for name in groups}
        self.along = {
            (site, name): Vectors() for site in STREAM for name in groups
        }  # the same on only the sink dimensions
        self.attention = {name: Mean() for name in groups}  # (L, H)
        self.by_sample: dict[str, list[Tensor]] = {name: [] for name in groups}  # (L,), the same
        self.cosines = {name: Mean() for name in groups}  # (L, H)
        self.rates = {name: Mean() for name in groups}  # (L,), as the following
        self.massive = {name: Mean() for name in groups}
        self.peaks = {name: Mean() for name in groups}
        self.first_sample: Tensor | None = None  # (L, H, N): attention that each position gets

    def measure(self, case: Case, inputs: PromptInputs) -> None:
        """One pass of a sample."""
        study, prints = self._study, self._asked.print
        values = AtTokens(self.sites, case.positions)
        looks = "attn" in prints
        attention = KeyAttention(case.positions, case.first, rate=looks)
        keys = KeysByHead(case.positions, case.first)
        probes = [values, attention]  # whether it is a sink at all is always looked at
        probes += [keys] if {"q", "k"} & set(prints) else []
        everywhere = KeyAttention(tuple(range(case.length)), case.first)
        if looks and case.index == 0:
            probes.append(everywhere)
        plain = study.forward_pass(case, inputs, probes)
        session = plain.session
        for site in self.sites:
            stacked = session[values].stacked(site)  # (tokens, L, ...)
            for name in study.names:
                if len(rows := case.rows(name)):
                    self.vectors[site, name].add(stacked[rows])
                    if study.dims and site != "v":
                        self.along[site, name].add(stacked[rows][..., list(study.dims)])
                    if site == "block_in":
                        self._extremes(name, stacked[rows])
        self._attention(case, session[attention], rate=looks)
        if everywhere in probes:
            self.first_sample = session[everywhere].mean()
        if keys in probes:
            vectors, cosines = session[keys].vectors(), session[keys].cosines()
            for name in study.names:
                if len(rows := case.rows(name)):
                    self.vectors["k", name].add(vectors[rows])
                    self.cosines[name].add(cosines[..., rows].mean(-1))

    def _extremes(self, name: str, states: Tensor) -> None:
        size = states.abs()
        largest = size.amax(-1)
        median = size.median(-1).values
        massive = (largest > MASSIVE) & (largest > MASSIVE_RATIO * median)
        self.massive[name].add(massive.double().mean(0))
        self.peaks[name].add(concentration(states).mean(0))

    def _attention(self, case: Case, reader: KeyAttentionReader, rate: bool) -> None:
        mean = reader.mean()
        nothing = torch.full((self._study.layers,), float("nan"), dtype=torch.float64)
        for name in self._study.names:
            rows = case.rows(name)
            self.by_sample[name].append(mean[..., rows].mean((1, 2)) if len(rows) else nothing)
            if len(rows):
                self.attention[name].add(mean[..., rows].mean(-1))
                if rate:
                    above = (reader.alpha()[..., rows] > RATE).double()
                    self.rates[name].add(above.mean((1, 2)))

    def parts(self, name: str) -> GroupParts:
        """What `origin` needs of a group."""
        whole = {site: self.vectors[site, name].norm() for site in STREAM}
        along = (
            {site: self.along[site, name].norm() for site in STREAM} if self._study.dims else whole
        )
        return GroupParts(name, whole, along, self.attention[name].value().mean(1))


def check(handle: ModelHandle, settings: ScanSettings, asked: StudySettings) -> None:
    """Refuse, before any pass, a head that the model does not have, one group."""
    heads = handle.info.heads
    if settings.head is not None and settings.head >= heads:
        raise ValueError(f"head is {settings.head}; {handle.info.id} has heads 0 to {heads - 1}.")
    check_reference(asked)


def run(study: Study, settings: ScanSettings) -> Findings:
    """Run the experiment."""
    scan = Scan(study, settings)
    study.plan(1)
    for case, inputs in study.prepared_cases("Scanning"):
        scan.measure(case, inputs)
    charts = _charts(scan, study, settings)
    where, text, parts = origin(scan.parts(study.sink), scan.parts(study.reference), study.dims)
    tables = [_table(scan, study, settings), parts]
    summary = [text]
    if "attn" in settings.print:
        tables.append(_intervals(scan, study))
        summary.append(_most_attention(scan, study))
    return Findings(tuple(summary), tuple(tables), tuple(charts), values=where)


def _intervals(scan: Scan, study: Study) -> Table:
    """Attention with bootstrap intervals, and the sink's excess over the reference."""
    by_group = {name: torch.stack(rows) for name, rows in scan.by_sample.items()}  # (S, L)
    by_group["excess"] = by_group[study.sink] - by_group[study.reference]
    rows = []
    for name, values in by_group.items():
        for layer in range(study.layers):
            one = study.resampling.mean(values[:, layer])
            rows.append((name, layer, *numbers((one.value, one.low, one.high))))
    return Table(
        "attention",
        "Attention to a token of each group, with bootstrap intervals over samples "
        f"({study.settings.confidence:.0%})",
        ("tokens", "layer", "attention", "attention_low", "attention_high"),
        tuple(rows),
        keys=2,
        note=f"excess: {study.sink} minus {study.reference}, sample by sample.",
    )


def _most_attention(scan: Scan, study: Study) -> str:
    mean = scan.attention[study.sink].value()  # (L, H)
    by_layer = mean.mean(1)
    if not bool(torch.isfinite(by_layer).any()):
        return f"No later query sees {study.sink}."
    layer = int(by_layer.nan_to_num(-1.0).argmax())
    head = int(mean[layer].argmax())
    return (
        f"A token of {study.sink} gets the most attention in layer {layer} "
        f"(mean over heads {float(by_layer[layer]):.4g}, "
        f"head {head} {float(mean[layer, head]):.4g})."
    )


def _by_layer(values: Tensor) -> Tensor:
    """(L, ...) -> (L,): mean over heads."""
    return values if values.ndim == 1 else values.mean(1)


def _spread(vectors: Vectors) -> Tensor:
    """The spread; NaN if a group has a single vector in all samples."""
    return vectors.spread() if vectors.count > 1 else torch.full_like(vectors.norm(), float("nan"))


def _columns(scan: Scan, study: Study, name: str, settings: ScanSettings) -> dict[str, Tensor]:
    """Quantities of one group, each (L,)."""
    columns: dict[str, Tensor] = {}
    if scan.vectors["block_in", name].count == 0:
        return columns
    for quantity in settings.print:
        if quantity == "q":
            columns["cos_qk"] = scan.cosines[name].value().mean(1)
        elif quantity in ("k", "v"):
            vectors = scan.vectors[quantity, name]
            columns[f"norm_{quantity}"] = _by_layer(vectors.norm())
            columns[f"spread_{quantity}"] = _by_layer(_spread(vectors))
        elif quantity == "hidden":
            vectors = scan.vectors["block_in", name]
            columns["norm_hidden"], columns["spread_hidden"] = vectors.norm(), _spread(vectors)
            columns["energy_concentration"] = scan.peaks[name].value()
            columns["massive_share"] = scan.massive[name].value()
        elif quantity == "attn":
            columns["attention"] = scan.attention[name].value().mean(1)
            columns["sink_rate"] = scan.rates[name].value()
        else:
            vectors = scan.vectors["mlp_out", name]
            columns["log10_norm_mlp"] = vectors.norm().log10()
            columns["spread_mlp"] = _spread(vectors)
    return columns


def _table(scan: Scan, study: Study, settings: ScanSettings) -> Table:
    by_group = {name: _columns(scan, study, name, settings) for name in study.names}
    columns = list(by_group[study.sink])
    rows = [
        (
            name,
            layer,
            *(
                number(float(group_columns[column][layer])) if column in group_columns else None
                for column in columns
            ),
        )
        for name, group_columns in by_group.items()
        for layer in range(study.layers)
    ]
    return Table(
        "layers",
        "By layer and group of tokens",
        ("tokens", "layer", *columns),
        tuple(rows),
        keys=2,
        note="Means over samples, tokens of the group, heads and (attention, cos_qk) queries. "
        f"sink_rate: share of samples and heads with alpha > {RATE:g}.",
    )


LABELS = {
    "cos_qk": ("Cosine of later queries with the key", "cosine"),
    "norm_k": ("Norm of keys", "mean |k|"),
    "spread_k": ("Spread of keys", "spread, mean over heads"),
    "norm_v": ("Norm of values", "mean |v|"),
    "spread_v": ("Spread of values", "spread, mean over heads"),
    "norm_hidden": ("Norm of the residual stream at the layer's input", "mean |x|"),
    "spread_hidden": ("Spread of the residual stream at the layer's input", "spread"),
    "energy_concentration": ("Energy in the 4 largest dimensions", "share of |x|^2"),
    "massive_share": ("Tokens with a massive activation", "share"),
    "attention": ("Attention received", "attention"),
    "sink_rate": ("Sink rate", "share of samples and heads"),
    "log10_norm_mlp": ("Norm of the MLP's output", "log10 of mean |MLP out|"),
    "spread_mlp": ("Spread of the MLP's output", "spread"),
}


NOTES = {
    "attention": "Mean over samples, heads and queries. Bands: standard deviation over heads.",
    "norm_hidden": "Bands: standard deviation over tokens.",
}


def _charts(scan: Scan, study: Study, settings: ScanSettings) -> list[Chart]:
    by_group = {name: _columns(scan, study, name, settings) for name in study.names}
    layers = tuple(range(study.layers))
    charts = []
    for column in by_group[study.sink]:
        title, label = LABELS[column]
        lines = [
            _line(scan, name, column, columns[column])
            for name, columns in by_group.items()
            if column in columns and bool(torch.isfinite(columns[column]).any())
        ]
        if lines:
            charts.append(
                Chart(
                    column,
                    title,
                    "lines",
                    layers,
                    tuple(lines),
                    y_label=label,
                    log=column == "norm_hidden",
                    note=NOTES.get(column, ""),
                )
            )
    if "attn" in settings.print:
        charts.append(_one_head(scan, study, settings))
        mean = scan.attention[study.sink].value()  # (L, H)
        charts.append(
            Chart(
                "attention_by_head",
                f"Attention to {study.sink} by layer and head",
                "heat",
                tuple(range(mean.shape[1])),
                tuple(Series(str(layer), numbers(mean[layer].tolist())) for layer in layers),
                x_label="head",
                y_label="layer",
                note="Mean over samples and queries.",
            )
        )
    return charts


def _one_head(scan: Scan, study: Study, settings: ScanSettings) -> Chart:
    """One head by layer, in the first sample: the attention that each position gets from later
    queries."""
    seen = scan.first_sample
    assert seen is not None
    case = study.cases[0]
    sink_attention = seen[:, :, list(case.groups[study.sink])].mean(-1)  # (L, H)
    most = int(sink_attention.nan_to_num(0.0).amax(0).argmax())
    head = most if settings.head is None else settings.head
    return Chart(
        "one_head",
        f"Head {head} by layer: attention that each position gets",
        "heat",
        tuple(range(case.length)),
        tuple(
            Series(str(layer), numbers(seen[layer, head].tolist())) for layer in range(len(seen))
        ),
        x_label=f"position in {case.sample.id}",
        y_label="layer",
        note=f"Mean over the queries from {case.first} on. {study.sink}: positions "
        f"{', '.join(map(str, case.groups[study.sink][:12]))}.",
    )


def _line(scan: Scan, name: str, column: str, values: Tensor) -> Series:
    """A group's line; attention with its deviation over heads, norms over vectors."""
    deviation: Tensor | None = None
    if column == "attention":
        deviation = scan.attention[name].value().std(1, correction=0)
    elif column == "norm_hidden":
        deviation = scan.vectors["block_in", name].deviation()
    if deviation is None:
        return Series(name, numbers(values.tolist()), role=name)
    return Series(
        name,
        numbers(values.tolist()),
        numbers((values - deviation).tolist()),
        numbers((values + deviation).tolist()),
        name,
    )
