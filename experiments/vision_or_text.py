"""`vision-or-text`: do the sinks come from the vision tower, or arise in the language model?

The vision tower's output is the input of layer 0. It is changed there, only at the sinks:

dims zeroed     the massive dimensions (the sink dimensions; or, where none are known, those in
                which the sinks differ most at the input of layer 0) are set to 0.
dims swapped    they are exchanged with those of a matched ordinary token.
tokens swapped  the whole vector is exchanged.

If the sinks vanish when their massive dimensions are gone at the input, the vision tower made them.
If they stay, but follow the vector to the other token, the tower decides which token becomes a sink
and the language model makes the massive values. If they do neither, the position in the prompt
decides. Controls: as many random dimensions zeroed; the massive ones zeroed at random ordinary
tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sinkscope.experiments.bootstrap import Interval
from sinkscope.experiments.catalogue import EXPERIMENTS
from sinkscope.experiments.checks import check_layer, check_reference
from sinkscope.experiments.controls import random_tokens
from sinkscope.experiments.effects import PLAIN, Effects
from sinkscope.experiments.probes import AtTokens
from sinkscope.experiments.result import Chart, Findings, Series, Table, number, numbers
from sinkscope.experiments.settings import StudySettings, VisionOrTextSettings
from sinkscope.experiments.study import Case, Study
from sinkscope.experiments.verdict import verdict
from sinkscope.interventions.base import Intervention
from sinkscope.interventions.damp import DampDims
from sinkscope.interventions.swap import SwapTokens
from sinkscope.models.loading import ModelHandle
from sinkscope.models.sites import SiteSelection
from sinkscope.utils import number_of

ZEROED, DIMS, TOKENS = "dims zeroed", "dims swapped", "tokens swapped"
RANDOM_DIMS, RANDOM_TOKENS = "random dims zeroed", "random tokens, dims zeroed"


def check(handle: ModelHandle, settings: VisionOrTextSettings, asked: StudySettings) -> None:
    """Refuse, before any pass, a text model, a model of one layer, a single group, and so many
    dimensions that there are no others."""
    if not handle.family.sees_images:
        text_experiments = ", ".join(row.name for row in EXPERIMENTS if not row.needs_images)
        raise ValueError(
            f"{handle.info.id} is a text model and has no vision tower; vision-or-text is for "
            f"models that see images. Allowed with {handle.info.id}: {text_experiments}, on "
            "prompts of text."
        )
    check_layer(handle, 0, after=True)
    check_reference(asked)
    most = handle.info.hidden_size // 2
    if asked.dims is not None and len(asked.dims) > most:
        raise ValueError(
            f"dims has {len(asked.dims)} dimensions; allowed: at most {most}, half of the model's, "
            "because they are compared with as many random others."
        )


def run(study: Study, settings: VisionOrTextSettings) -> Findings:
    """Run the experiment.

    Raises:
        ValueError: a sample has fewer reference tokens than sinks to swap them with.
    """
    for case in study.cases:
        sinks, other = len(case.groups[study.sink]), len(case.groups[study.reference])
        if other < sinks:
            raise ValueError(
                f"{case.sample.id} has {number_of(sinks, 'token')} of {study.sink} and {other} of "
                f"{study.reference} to swap them with; allowed: as many or more, such as "
                "tokens sinks,ordinary."
            )
    study.plan(1 if study.dims else 2)
    dims = study.dims or _massive(study, settings.massive)
    effects = Effects(study)
    for case, inputs in study.prepared_cases("Changing the input of layer 0"):
        plain = study.forward_pass(case, inputs)
        for arm, draws in _arms(study, case, dims).items():
            effects.measure(arm, case, plain, *draws)
    return _findings(study, effects, dims)


def _arms(study: Study, case: Case, dims: tuple[int, ...]) -> dict[str, list[list[Intervention]]]:
    sinks, other = case.groups[study.sink], case.groups[study.reference]
    pairs = tuple(zip(sinks, other, strict=False))
    size, draws = study.handle.info.hidden_size, range(study.settings.controls)
    rest = [dim for dim in range(size) if dim not in dims]

    def zero(positions: tuple[int, ...], which: tuple[int, ...]) -> list[Intervention]:
        return [DampDims(SiteSelection("block_in", (0,), positions), which)]

    seed = study.settings.seed
    return {
        PLAIN: [[]],
        ZEROED: [zero(sinks, dims)],
        DIMS: [[SwapTokens("block_in", (0,), pairs, dims)]],
        TOKENS: [[SwapTokens("block_in", (0,), pairs)]],
        RANDOM_DIMS: [zero(sinks, random_tokens(rest, len(dims), seed + d + 1)) for d in draws],
        RANDOM_TOKENS: [zero(tokens, dims) for tokens in study.random(case)],
    }


def _massive(study: Study, count: int) -> tuple[int, ...]:
    """The dimensions in which sinks and reference differ most at the input of layer 0."""
    sums: dict[str, Tensor] = {}
    for case, inputs in study.prepared_cases("Looking for massive dimensions"):
        probe = AtTokens(("block_in",), case.positions, (0,))
        values = study.forward_pass(case, inputs, [probe]).session[probe].layer("block_in", 0)
        for name in study.names[:2]:
            group_sum = values[case.rows(name)].sum(0)
            sums[name] = sums[name] + group_sum if name in sums else group_sum
    sizes = study.sizes
    apart = sums[study.sink] / sizes[study.sink] - sums[study.reference] / sizes[study.reference]
    return tuple(sorted(apart.abs().topk(min(count, len(apart) // 2)).indices.tolist()))


@dataclass(frozen=True)
class _Followed:
    """How much of the excess attention is at the other token after a swap."""

    dims: Interval
    tokens: Interval


def _followed(study: Study, effects: Effects, later: range) -> _Followed:
    sink, reference = (study.names.index(n) for n in (study.sink, study.reference))

    def mean(arm: str, group: int) -> Tensor:
        return effects.attention(arm)[:, group, later.start : later.stop].mean(1)

    excess = mean(PLAIN, sink) - mean(PLAIN, reference)

    def share(arm: str) -> Interval:
        gained = mean(arm, reference) - mean(PLAIN, reference)
        return study.resampling.ratio(gained, excess)

    return _Followed(share(DIMS), share(TOKENS))


def _findings(study: Study, effects: Effects, dims: tuple[int, ...]) -> Findings:
    later = range(1, study.layers)
    causal = effects.causal(ZEROED, (RANDOM_DIMS, RANDOM_TOKENS), later)
    followed = _followed(study, effects, later)
    factor = f"massive dims at the input of layer 0 ({', '.join(map(str, dims))})"
    judged = verdict(study.settings, factor, causal, None, len(study.cases))
    left = effects.causal(TOKENS, [], later).removed
    enough = study.settings.removed
    if judged.causal:
        origin = "vision tower"
        text = "The sinks come from the vision tower: they vanish without what it wrote there."
    elif left.value >= enough and followed.tokens.value >= 0.5:
        origin = "language model, chosen by the vision tower"
        text = (
            "The massive values arise in the language model, but what the vision tower writes "
            "decides at which token: the sinks move with the whole vector."
        )
    else:
        origin = "language model"
        text = (
            "The sinks arise in the language model: neither their massive dimensions at the input "
            "nor the whole vector there moves them."
        )
    if not causal.excess.value > 0:
        origin, text = "none", "The sinks get no more attention than the reference tokens."
    summary = (
        text,
        f"After the swap of whole tokens {followed.tokens.percent()} of the excess attention is at "
        f"{study.reference}, and {left.percent()} of it has left {study.sink}.",
    )
    table = Table(
        "followed",
        "Where the excess attention is after a swap",
        ("swap", f"gone_from_{study.sink}", f"now_at_{study.reference}", "low", "high"),
        tuple(
            (
                name,
                number(effects.causal(name, [], later).removed.value),
                *(number(value) for value in (at.value, at.low, at.high)),
            )
            for name, at in ((DIMS, followed.dims), (TOKENS, followed.tokens))
        ),
    )
    values = {"origin": origin, "dims": list(dims), "removed": number(causal.removed.value)}
    charts = (*effects.charts(), *_reference_chart(study, effects))
    return Findings(summary, (effects.table(later), table), charts, judged, values)


def _reference_chart(study: Study, effects: Effects) -> list[Chart]:
    """What the reference tokens get in each arm: a sink that moved is seen here."""
    index = study.names.index(study.reference)
    series = tuple(
        Series(
            arm,
            numbers(effects.attention(arm)[:, index].nanmean(0).tolist()),
            role=arm,
        )
        for arm in (PLAIN, DIMS, TOKENS)
    )
    return [
        Chart(
            "reference_attention",
            f"Attention to {study.reference}",
            "lines",
            tuple(range(study.layers)),
            series,
            y_label="attention",
            note="Mean over samples, heads and queries.",
        )
    ]
