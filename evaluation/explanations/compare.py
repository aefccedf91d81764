"""From records to figures: each method's scores with intervals, and its differences to controls.

All methods are compared on the same targets. Clusters (images) are drawn with replacement, the same
draws for every method (`statistics.bootstrap`); p-values of one score are corrected by Holm over
all its comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sinkscope.evaluation.explanations.controls import CENTRE, CONTROLS, RANDOM
from sinkscope.evaluation.explanations.settings import ScoreReportSettings
from sinkscope.evaluation.metrics.tally import Array, Tally, ratio, summed
from sinkscope.evaluation.record import AnswerRecord
from sinkscope.evaluation.statistics import bootstrap
from sinkscope.evaluation.statistics.intervals import Interval, holm, wilson
from sinkscope.evaluation.statistics.settings import ALPHA

# Name -> title, direction (+1: more is better), chance level in words.
SCORES: dict[str, tuple[str, int, str]] = {
    "pointing": ("Pointing game", 1, "the object's share of the cells"),
    "energy": ("Energy inside", 1, "the object's share of the cells"),
    "nss": ("NSS", 1, "0"),
    "auc": ("AUC", 1, "0.5"),
    "obj_iou": ("Obj-IoU", 1, "that of random"),
    "insertion": ("Insertion AUC (nats)", 1, "that of random"),
    "deletion": ("Deletion AUC (nats)", -1, "that of random"),
}
ABOVE, BELOW, NOT_SHOWN = "better", "worse", "no difference shown"


@dataclass(frozen=True)
class ControlDifference:
    """A difference to a control: paired, with interval, corrected p and verdict."""

    control: str
    difference: float
    interval: Interval
    p: float
    verdict: str


@dataclass(frozen=True)
class Figure:
    """A score of one method: its mean over the targets."""

    score: str
    method: str
    value: float
    interval: Interval
    targets: int
    against: tuple[ControlDifference, ...] = ()


@dataclass(frozen=True)
class Scores:
    """All figures of a run.

    Attributes:
        figures: score -> method -> figure.
        methods: those with figures, in the order of records.
        targets, clusters: of the figures.
        chance: the object's mean share of the cells.
        left_out: reason -> targets that no method was asked about.
        failed: targets with an error; reason -> how many.
        lacking: method -> reason -> targets for which the method has no map.
        common: targets left out of all figures because some method has no map of them.
    """

    figures: Mapping[str, Mapping[str, Figure]]
    methods: tuple[str, ...]
    targets: int
    clusters: int
    chance: float
    left_out: Mapping[str, int]
    failed: Mapping[str, int]
    lacking: Mapping[str, Mapping[str, int]]
    common: int


def compare_scores(
    records: Sequence[AnswerRecord], settings: ScoreReportSettings | None = None
) -> Scores:
    """Raises ValueError if no target has scores."""
    settings = settings or ScoreReportSettings()
    by_target: dict[str, dict[str, AnswerRecord]] = {}
    for record in records:
        by_target.setdefault(record.question, {})[record.method] = record
    left_out: dict[str, int] = {}
    failed: dict[str, int] = {}
    lacking: dict[str, dict[str, int]] = {}
    usable: list[dict[str, AnswerRecord]] = []
    for found in by_target.values():
        first = next(iter(found.values()))
        if first.error is not None:
            failed[first.error] = failed.get(first.error, 0) + 1
        elif first.details.get("left_out"):
            reason = str(first.details["lacking"])
            left_out[reason] = left_out.get(reason, 0) + 1
        else:
            usable.append(found)
            for name, record in found.items():
                if (why := record.details.get("lacking")) is not None:
                    of = lacking.setdefault(name, {})
                    of[str(why)] = of.get(str(why), 0) + 1
    if not usable:
        raise ValueError(
            "No target has scores: " + "; ".join(f"{n} x {r}" for r, n in left_out.items()) + "."
            if left_out
            else "No target has scores yet."
        )
    never = {name for name, of in lacking.items() if sum(of.values()) == len(usable)}
    methods = tuple(name for name in usable[0] if name not in never)
    both = [
        found for found in usable if all(name in found and _has(found[name]) for name in methods)
    ]
    if not both:
        raise ValueError("No target has a map of every method, so they cannot be compared.")
    tallies = {name: _tally([found[name] for found in both]) for name in methods}
    draws = bootstrap.resample(tallies, settings.resamples, settings.bootstrap_seed)
    figures = {
        score: _figures(score, methods, tallies, draws, settings, len(both))
        for score in SCORES
        if score in both[0][methods[0]].details["scores"]
    }
    shares = [found[methods[0]].details for found in both]
    chance = sum(one["cells"] / one["of"] for one in shares) / len(shares)
    return Scores(
        figures,
        methods,
        len(both),
        draws.clusters,
        chance,
        left_out,
        failed,
        lacking,
        len(usable) - len(both),
    )


def _has(record: AnswerRecord) -> bool:
    return "scores" in record.details


def _tally(records: Sequence[AnswerRecord]) -> Tally:
    entries: list[tuple[str, str, float]] = []
    for record in records:
        for score, value in record.details["scores"].items():
            # Without a value it is undefined for this target, for every method.
            defined = value is not None
            entries.append((record.cluster, score, value if defined else 0.0))
            entries.append((record.cluster, f"n {score}", float(defined)))
    return summed(entries, _means)


def _means(totals: Mapping[str, Array]) -> dict[str, Array]:
    return {
        name: ratio(value, totals[f"n {name}"])
        for name, value in totals.items()
        if not name.startswith("n ")
    }


def _figures(
    score: str,
    methods: Sequence[str],
    tallies: Mapping[str, Tally],
    draws: bootstrap.Resamples,
    settings: ScoreReportSettings,
    targets: int,
) -> dict[str, Figure]:
    values = {name: float(tallies[name].figures()[score]) for name in methods}
    controls = [name for name in CONTROLS if name in methods]
    pairs = [(name, other) for name in methods for other in controls if name != other]
    pairs = [(name, other) for name, other in pairs if (name, other) != (RANDOM, CENTRE)]
    drawn = {pair: draws.difference(*pair, score) for pair in pairs}
    adjusted = dict(
        zip(pairs, holm([bootstrap.p_value(drawn[pair]) for pair in pairs]), strict=True)
    )
    sign = SCORES[score][1]
    figures = {}
    for name in methods:
        against = tuple(
            ControlDifference(
                other,
                values[name] - values[other],
                bootstrap.percentiles(drawn[name, other], settings.confidence),
                adjusted[name, other],
                _verdict(values[name] - values[other], adjusted[name, other], sign),
            )
            for other in controls
            if (name, other) in drawn
        )
        ends = draws.interval(name, score, settings.confidence)
        if score == "pointing" and values[name] in (0.0, 1.0):
            # All images have it, or none: the bootstrap would report certainty.
            right = draws.clusters if values[name] else 0
            ends = wilson(right, draws.clusters, settings.confidence)
        figures[name] = Figure(score, name, values[name], ends, targets, against)
    return figures


def _verdict(difference: float, p: float, sign: int) -> str:
    if math.isnan(p) or p >= ALPHA or difference == 0:
        return NOT_SHOWN
    return ABOVE if (difference > 0) == (sign > 0) else BELOW


def plain(scores: Scores) -> dict[str, Any]:
    """As JSON has it."""
    return {
        "targets": scores.targets,
        "clusters": scores.clusters,
        "chance": scores.chance,
        "left_out": dict(scores.left_out),
        "failed": dict(scores.failed),
        "lacking": {name: dict(of) for name, of in scores.lacking.items()},
        "figures": {
            score: {
                name: {
                    "value": _number(one.value),
                    "low": _number(one.interval.low),
                    "high": _number(one.interval.high),
                    "against": {
                        a.control: [_number(a.difference), _number(a.p), a.verdict]
                        for a in one.against
                    },
                }
                for name, one in of.items()
            }
            for score, of in scores.figures.items()
        },
    }


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value
