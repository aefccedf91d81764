"""`lower-attention`: does the model need the attention that its sinks get?

    a'[q, sink] = f * a[q, sink]    for every counted query, in every head of the chosen layers

Three arms: with the row's sum kept (what is taken goes to all other keys in proportion), without,
and, if requested, with the sum kept but the sinks' own contribution a[q, sink] * v[sink] left in
the output. Control: the same at as many random ordinary tokens. The measure is the answer's
log-probability; the lower attention of the sinks is the change itself.
"""

from __future__ import annotations

import torch

from sinkscope.experiments.bootstrap import Interval
from sinkscope.experiments.checks import check_layer, check_reference
from sinkscope.experiments.effects import PLAIN, Effects
from sinkscope.experiments.result import Chart, Findings, Series, Table, number, numbers
from sinkscope.experiments.settings import LowerAttentionSettings, StudySettings
from sinkscope.experiments.study import Study
from sinkscope.interventions.lower import LowerAttention
from sinkscope.models.loading import ModelHandle
from sinkscope.models.sites import NO_END

KEPT, CUT, VALUE = "sum kept", "sum not kept", "sum kept, value kept"


def check(handle: ModelHandle, settings: LowerAttentionSettings, asked: StudySettings) -> None:
    """Refuse, before any pass, missing layers, a factor that changes nothing, or a single group."""
    for layer in settings.layers or ():
        check_layer(handle, layer)
    if settings.factor == 1:
        raise ValueError("factor is 1.0, which changes nothing; allowed: from 0 to below 1.")
    check_reference(asked)


def run(study: Study, settings: LowerAttentionSettings) -> Findings:
    """Run the experiment."""
    study.plan(1)
    effects = Effects(study)
    ways = {KEPT: (True, False), CUT: (False, False)}
    if settings.keep_value:
        ways[VALUE] = (True, True)
    for case, inputs in study.prepared_cases("Lowering attention"):
        plain = study.forward_pass(case, inputs)
        sinks = case.groups[study.sink]
        draws = study.random(case)
        effects.measure(PLAIN, case, plain, [])

        def lowered(keys: tuple[int, ...], way: str, first: int = case.first) -> LowerAttention:
            renormalise, keep_value = ways[way]
            return LowerAttention(
                keys,
                settings.factor,
                renormalise,
                keep_value,
                settings.layers,
                range(first, NO_END),
            )

        for way in ways:
            effects.measure(way, case, plain, [lowered(sinks, way)])
            others = [[lowered(keys, way)] for keys in draws]
            effects.measure(f"random tokens, {way}", case, plain, *others)
    return _findings(study, settings, effects, tuple(ways))


def _findings(
    study: Study, settings: LowerAttentionSettings, effects: Effects, ways: tuple[str, ...]
) -> Findings:
    plain, resampling = effects.logs(PLAIN), study.resampling
    summary = []
    values = {}
    for way in ways:
        change = resampling.mean(effects.logs(way) - plain)
        other = resampling.mean(effects.logs(f"random tokens, {way}") - plain)
        apart = resampling.mean(effects.logs(way) - effects.logs(f"random tokens, {way}"))
        values[way] = {"change": number(change.value), "random": number(other.value)}
        summary.append(
            f"Attention to {study.sink} times {settings.factor:g}, {way}: the answer's "
            f"log-probability changes by {change} nats per token, by {other} at random tokens; the "
            f"difference is {apart}. {_needed(apart)}"
        )
    table = effects.table(range(study.layers))
    groups = _where_it_goes(study, effects, ways)
    return Findings(tuple(summary), (table, groups), tuple(effects.charts()), values=values)


def _needed(apart: Interval) -> str:
    if apart.high < 0:
        return "The answer needs this attention more than that to ordinary tokens."
    if apart.low > 0:
        return "The answer needs this attention less than that to ordinary tokens."
    return "This is not a clear difference."


def _where_it_goes(study: Study, effects: Effects, ways: tuple[str, ...]) -> Table:
    """Attention of each group in each arm, mean over all layers."""
    rows = []
    for index, name in enumerate(study.names):
        cells = [
            number(float(effects.attention(arm)[:, index].nanmean())) for arm in (PLAIN, *ways)
        ]
        rows.append((name, *cells))
    return Table(
        "groups",
        "Attention to a token of each group, mean over layers, heads and queries",
        ("tokens", PLAIN, *ways),
        tuple(rows),
    )


def token_chart(name: str, title: str, series: dict[str, torch.Tensor]) -> Chart:
    """Change of each answer token's log-probability, by its index in the answer."""
    longest = max(len(values) for values in series.values())
    return Chart(
        name,
        title,
        "lines",
        tuple(range(longest)),
        tuple(
            Series(label, numbers(values.tolist()), role=label) for label, values in series.items()
        ),
        x_label="token of the answer",
        y_label="change of its log-probability, nats",
    )
