"""Methods compared on the same questions: test, effect size, uncertainty and verdict.

Questions that every method answered are compared; the rest are counted and named. The first figure
of the metric decides. If it is a mean of independent right-or-wrong items, its interval is
Wilson's, the difference's Newcombe's, the test McNemar's exact one. Otherwise it is the paired
cluster bootstrap.

p-values of a family are corrected together (Holm): all methods of a run against the baseline are
one family, all categories of all methods another. Other figures than the first have intervals and
no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sinkscope.evaluation.base import Judged
from sinkscope.evaluation.metrics.tally import Tally, TallyMetric
from sinkscope.evaluation.statistics import bootstrap
from sinkscope.evaluation.statistics.intervals import (
    Interval,
    detectable,
    detectable_share,
    holm,
    mcnemar,
    paired_difference,
    wilson,
)
from sinkscope.evaluation.statistics.settings import CompareSettings

BETTER, WORSE, NONE_SHOWN, UNDEFINED = "better", "worse", "no difference shown", "not defined"
FEW_CLUSTERS = 30  # below this the bootstrap's intervals are too short
EXACT, RESAMPLED = "McNemar, exact", "paired cluster bootstrap"


class NothingToCompareError(ValueError):
    """No question has an answer of every method."""


@dataclass(frozen=True)
class Estimate:
    """A figure of one method with its interval; `how` is the interval's name."""

    figure: str
    value: float
    interval: Interval
    how: str


@dataclass(frozen=True)
class Difference:
    """One method against another in one figure, over all questions or one category.

    Attributes:
        method, against, figure, category: "" for all categories.
        value, base: the figure of both.
        interval: of value - base.
        p, adjusted: before and after Holm's correction; NaN for a figure without a verdict.
        test: its name.
        detectable: the smallest true difference that this sample would have shown (power 0.8, alpha
            before correction).
        fixed, broken, same: questions whose score rose, fell, stayed.
        clusters: number of independent units.
        verdict: "better", "worse", "no difference shown", or "not defined"; "" for a figure without
            a verdict.
    """

    method: str
    against: str
    figure: str
    category: str
    value: float
    base: float
    interval: Interval
    p: float
    adjusted: float
    test: str
    detectable: float
    fixed: int
    broken: int
    same: int
    clusters: int
    verdict: str = ""

    @property
    def difference(self) -> float:
        """The method's figure minus the other's."""
        return self.value - self.base


@dataclass(frozen=True)
class Comparison:
    """All comparisons of a run.

    Attributes:
        metric: what the figures are.
        main: name of the figure that decides.
        methods: in the order given.
        questions: ids that every method answered.
        left_out: id -> methods without an answer to it.
        estimates: method -> its figures.
        differences: the main figure over all questions, corrected together.
        others: the other figures, without verdict.
        categories: the main figure by category, corrected together.
        by_category: category -> method -> the main figure.
    """

    metric: TallyMetric
    main: str
    methods: tuple[str, ...]
    questions: tuple[str, ...]
    left_out: Mapping[str, tuple[str, ...]]
    estimates: Mapping[str, tuple[Estimate, ...]]
    differences: tuple[Difference, ...]
    others: tuple[Difference, ...]
    categories: tuple[Difference, ...]
    by_category: Mapping[str, Mapping[str, Estimate]]
    settings: CompareSettings


def compare(
    metric: TallyMetric,
    answers: Mapping[str, Sequence[Judged]],
    settings: CompareSettings | None = None,
) -> Comparison:
    """Compare methods.

    Args:
        answers: method -> its judged answers, each question once.

    Raises:
        NothingToCompareError: no question has an answer of every method.
        ValueError: the baseline is not one of the methods, or a question occurs twice.
    """
    chosen = settings or CompareSettings()
    common, left_out = _common(answers, chosen)
    whole = _part(metric, common, chosen)
    main = next(iter(whole.tallies[chosen.baseline].figures()))
    pairs = [(name, chosen.baseline) for name in answers if name != chosen.baseline]
    pairs += [(a, b) for a, b in chosen.controls if a in answers and b in answers]
    differences = [whole.difference(a, b, main, "") for a, b in pairs]
    names = list(whole.estimates[chosen.baseline])
    others = [whole.difference(a, b, name, "") for a, b in pairs for name in names if name != main]
    parts = _categories(metric, common, chosen)
    by_category = {
        category: {name: estimates[main] for name, estimates in part.estimates.items()}
        for category, part in parts.items()
    }
    inside = [part.difference(a, b, main, c) for c, part in parts.items() for a, b in pairs]
    return Comparison(
        metric=metric,
        main=main,
        methods=tuple(answers),
        questions=tuple(one.id for one in common[chosen.baseline]),
        left_out=left_out,
        estimates={name: tuple(estimates.values()) for name, estimates in whole.estimates.items()},
        differences=_judged(metric, differences, chosen.alpha),
        others=tuple(replace(one, p=math.nan, adjusted=math.nan) for one in others),
        categories=_judged(metric, inside, chosen.alpha),
        by_category=by_category,
        settings=chosen,
    )


@dataclass(frozen=True)
class _Part:
    """All questions or one category's: answers in one order, tallies, draws, estimates."""

    metric: TallyMetric
    answers: Mapping[str, Sequence[Judged]]
    tallies: Mapping[str, Tally]
    draws: bootstrap.Resamples
    estimates: Mapping[str, Mapping[str, Estimate]]
    exact: bool
    settings: CompareSettings

    def difference(self, method: str, against: str, figure: str, category: str) -> Difference:
        ours, theirs = self.answers[method], self.answers[against]
        changes = [a.judgement.score - b.judgement.score for a, b in zip(ours, theirs, strict=True)]
        fixed, broken = sum(x > 0 for x in changes), sum(x < 0 for x in changes)
        value, base = (self.estimates[name][figure].value for name in (method, against))
        first = figure == next(iter(self.estimates[method]))
        if self.exact and first:
            both = sum(
                a.judgement.score * b.judgement.score == 1
                for a, b in zip(ours, theirs, strict=True)
            )
            n = len(changes)
            interval = paired_difference(
                both, fixed, broken, n - both - fixed - broken, self.settings.confidence
            )
            p, test = mcnemar(fixed, broken), EXACT
            shown = detectable_share(fixed + broken, n, self.settings.alpha)
        else:
            drawn = self.draws.difference(method, against, figure)
            interval = bootstrap.percentiles(drawn, self.settings.confidence)
            changed = {one.cluster for one, change in zip(ours, changes, strict=True) if change}
            p, test = max(bootstrap.p_value(drawn), _least(len(changed))), RESAMPLED
            error = bootstrap.standard_error(drawn)
            shown = detectable(error, self.settings.alpha)
            if error == 0:
                interval = self._unchanged(figure, float(drawn[0]))
            # With fewer changed questions no difference is ever shown.
            least = math.ceil(math.log2(2 / self.settings.alpha))
            fewest = min(1.0, least / len(changes)) if self._is_share(figure) else 0.0
            shown = max(shown, fewest) or math.nan
        return Difference(
            *(method, against, figure, category, value, base, interval, p, p, test, shown),
            *(fixed, broken, len(changes) - fixed - broken, self.draws.clusters),
        )

    def _is_share(self, figure: str) -> bool:
        return "*" not in self.metric.points and figure not in self.metric.points

    def _unchanged(self, figure: str, value: float) -> Interval:
        """The interval if every draw is the same, when the bootstrap would report certainty. For a
        share: at most as many clusters may differ as Wilson's interval of 0 of C allows. For
        another figure it is unknown."""
        if not self._is_share(figure):
            return Interval(math.nan, math.nan)
        room = wilson(0, self.draws.clusters, self.settings.confidence).high
        return Interval(max(-1.0, value - room), min(1.0, value + room))


def _part(
    metric: TallyMetric, answers: Mapping[str, Sequence[Judged]], settings: CompareSettings
) -> _Part:
    tallies = {name: metric.tally(records) for name, records in answers.items()}
    draws = bootstrap.resample(tallies, settings.resamples, settings.seed)
    every = next(iter(answers.values()))
    exact = metric.independent and len({one.cluster for one in every}) == len(every)
    exact = exact and all(
        one.judgement.score in (0.0, 1.0) for records in answers.values() for one in records
    )
    estimates: dict[str, dict[str, Estimate]] = {}
    for method, tally in tallies.items():
        estimates[method] = {}
        for i, (figure, value) in enumerate(tally.figures().items()):
            if exact and i == 0:
                right = sum(one.judgement.score == 1 for one in answers[method])
                interval, how = wilson(right, len(every), settings.confidence), "Wilson"
            else:
                interval, how = draws.interval(method, figure, settings.confidence), "bootstrap"
                share = "*" not in metric.points and figure not in metric.points
                if share and interval.low == interval.high and value in (0.0, 1.0):
                    # All clusters have it, or none: the bootstrap would report certainty.
                    right = draws.clusters if value == 1.0 else 0
                    interval = wilson(right, draws.clusters, settings.confidence)
                    how = "Wilson, of clusters"
            estimates[method][figure] = Estimate(figure, float(value), interval, how)
    return _Part(metric, answers, tallies, draws, estimates, exact, settings)


def _common(
    answers: Mapping[str, Sequence[Judged]], settings: CompareSettings
) -> tuple[dict[str, list[Judged]], dict[str, tuple[str, ...]]]:
    """The answers to questions that every method answered, in one order; and the rest."""
    if settings.baseline not in answers:
        raise ValueError(
            f"The baseline is {settings.baseline!r}; allowed: {', '.join(answers) or 'no method'}."
        )
    by_id: dict[str, dict[str, Judged]] = {}
    for method, records in answers.items():
        by_id[method] = {one.id: one for one in records}
        if len(by_id[method]) != len(records):
            raise ValueError(f"A question has more than one answer by {method}.")
    order = dict.fromkeys(one.id for records in answers.values() for one in records)
    missing = {
        name: tuple(method for method in answers if name not in by_id[method]) for name in order
    }
    kept = [name for name in order if not missing[name]]
    if not kept:
        raise NothingToCompareError(
            "No question has an answer of every method: "
            + ", ".join(f"{method} has {len(records)}" for method, records in answers.items())
            + "."
        )
    common = {method: [by_id[method][name] for name in kept] for method in answers}
    return common, {name: methods for name, methods in missing.items() if methods}


def _categories(
    metric: TallyMetric, common: Mapping[str, Sequence[Judged]], settings: CompareSettings
) -> dict[str, _Part]:
    names = sorted({one.category for one in next(iter(common.values()))})
    if len(names) < 2:
        return {}
    return {
        name or "(none)": _part(
            metric,
            {m: [one for one in records if one.category == name] for m, records in common.items()},
            settings,
        )
        for name in names
    }


def _least(changed: int) -> float:
    """The smallest two-sided p that this many changed clusters can give: that of a sign test if all
    changed in one direction. The bootstrap draws only from these clusters, so with one, or a few
    that agree, it would report certainty."""
    return min(1.0, 2.0 ** (1 - changed))


def _judged(
    metric: TallyMetric, differences: Sequence[Difference], alpha: float
) -> tuple[Difference, ...]:
    adjusted = holm([one.p for one in differences])
    return tuple(
        replace(one, adjusted=p, verdict=_verdict(metric, replace(one, adjusted=p), alpha))
        for one, p in zip(differences, adjusted, strict=True)
    )


def _verdict(metric: TallyMetric, one: Difference, alpha: float) -> str:
    if math.isnan(one.difference) or math.isnan(one.adjusted):
        return UNDEFINED
    if one.adjusted >= alpha or one.difference == 0:
        return NONE_SHOWN
    return BETTER if (one.difference > 0) != (one.figure in metric.lower_is_better) else WORSE
