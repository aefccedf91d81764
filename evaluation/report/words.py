"""Numbers and findings in words. A loss and "no difference shown" are stated as clearly as a
gain."""

from __future__ import annotations

import math

from sinkscope.evaluation.metrics.tally import TallyMetric
from sinkscope.evaluation.report.gather import Section
from sinkscope.evaluation.statistics.compare import (
    BETTER,
    NONE_SHOWN,
    UNDEFINED,
    WORSE,
    Comparison,
    Difference,
)
from sinkscope.evaluation.statistics.intervals import Interval

NAMES = {
    "accuracy": "accuracy",
    "macro_accuracy": "accuracy, mean of the categories",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "yes_ratio": 'share of "yes"',
    "unparsable": "unparsable answers",
    "pair_accuracy": "pairs with both right",
    "incomplete_pairs": "pairs without both answers",
    "chair_s": "CHAIR_s (captions with a hallucination)",
    "chair_i": "CHAIR_i (hallucinated mentions)",
    "mentions": "objects mentioned per caption",
    "total": "MME score",
}


def figure_name(name: str) -> str:
    """A figure's displayed name, with its subset's before it."""
    subset, dot, rest = name.rpartition(".")
    shown = NAMES.get(rest, rest.replace("_", " "))
    return f"{subset}: {shown}" if dot else shown


def is_points(metric: TallyMetric, figure: str) -> bool:
    """Whether a figure is in points, not a fraction of 1."""
    return "*" in metric.points or figure in metric.points


def value(metric: TallyMetric, figure: str, number: float) -> str:
    """`61.1 %`, `1711.4`, or `not defined`."""
    if math.isnan(number):
        return UNDEFINED
    return f"{number:.1f}" if is_points(metric, figure) else f"{100 * number:.1f} %"


def change(metric: TallyMetric, figure: str, number: float) -> str:
    """`+1.3`, in percentage points or the figure's own."""
    if math.isnan(number):
        return UNDEFINED
    scaled = number if is_points(metric, figure) else 100 * number
    return f"{0.0 if round(scaled, 1) == 0 else scaled:+.1f}".replace("-", "−")


def interval(metric: TallyMetric, figure: str, ends: Interval) -> str:
    """`58.0 to 64.1 %`."""
    if math.isnan(ends.low):
        return UNDEFINED
    if is_points(metric, figure):
        return f"{ends.low:.1f} to {ends.high:.1f}"
    return f"{100 * ends.low:.1f} to {100 * ends.high:.1f} %"


def changes(metric: TallyMetric, figure: str, ends: Interval) -> str:
    """`−0.4 to +3.0`."""
    low, high = change(metric, figure, ends.low), change(metric, figure, ends.high)
    return UNDEFINED if math.isnan(ends.low) else f"{low} to {high}"


def p(number: float) -> str:
    """`0.014`, `< 0.001`."""
    if math.isnan(number):
        return UNDEFINED
    return "< 0.001" if number < 0.001 else f"{number:.3f}"


def p_is(number: float) -> str:
    """`p = 0.014`, `p < 0.001`."""
    return f"p {p(number)}" if number < 0.001 else f"p = {p(number)}"


def count(number: int) -> str:
    """`1,000`."""
    return f"{number:,}"


def finding(comparison: Comparison, one: Difference) -> str:
    """One comparison in one to three sentences."""
    metric = comparison.metric
    name = figure_name(one.figure)
    in_category = f" in {one.category}" if one.category else ""
    figures = (
        f"{value(metric, one.figure, one.value)} against {value(metric, one.figure, one.base)}"
    )
    if one.verdict == UNDEFINED:
        return (
            f"{one.method} and {one.against} cannot be compared{in_category}: {name} is "
            "not defined."
        )
    unit = "" if is_points(metric, one.figure) else " percentage points"
    many = comparison.differences if not one.category else comparison.categories
    corrected = f" after Holm's correction for {len(many)} comparisons" if len(many) > 1 else ""
    sure = (
        f"{change(metric, one.figure, one.difference)}{unit}, "
        f"{100 * comparison.settings.confidence:.0f} % interval "
        f"{changes(metric, one.figure, one.interval)}; {one.test}, "
        f"{p_is(one.adjusted)}{corrected}"
    )
    questions = "question" if one.fixed == 1 else "questions"
    moved = f"{count(one.fixed)} {questions} became better, {count(one.broken)} worse."
    if one.verdict == NONE_SHOWN:
        return (
            f"No difference shown between {one.method} and {one.against}{in_category}: "
            f"{name} {figures} "
            f"({sure}). {moved} {could_have(comparison, one)}"
        )
    assert one.verdict in (BETTER, WORSE)
    return (
        f"{one.method} is {one.verdict} than {one.against}{in_category}: {name} {figures} "
        f"({sure}). "
        f"{moved}"
    )


def could_have(comparison: Comparison, one: Difference) -> str:
    """The smallest differences that the sample could have shown."""
    if math.isnan(one.detectable):
        return "The smallest difference that such a sample can show is not known."
    unit = "" if is_points(comparison.metric, one.figure) else " percentage points"
    size = change(comparison.metric, one.figure, one.detectable).removeprefix("+")
    many = len(comparison.categories if one.category else comparison.differences)
    before = " before correction" if many > 1 else ""
    return (
        f"Such a sample shows a true difference of {size}{unit} with a probability of about 80 %"
        f"{before}; a smaller one may remain undetected."
    )


def state(section: Section) -> str:
    """How complete the run is, in a sentence; failures are always reported."""
    wanted = "an unknown number of" if section.expected is None else count(section.expected)
    parts = [f"{count(section.answered)} of {wanted} questions have an answer of every method."]
    failed = len({failure.question for failure in section.failures})
    if failed:
        parts.append(f"{count(failed)} failed and are in no figure; they are listed below.")
    if section.comparison and (others := len(section.comparison.left_out) - failed) > 0:
        parts.append(f"{count(others)} more lack a method's answer and are in no figure.")
    if section.run.missing:
        numbers = ", ".join(map(str, section.run.missing))
        parts.append(f"There are no answers of shards {numbers}.")
    if not section.complete:
        parts.insert(0, "THE RUN IS NOT COMPLETE.")
    return " ".join(parts)


def conclusions(section: Section) -> list[str]:
    """The findings for every method, and for its control if there is one."""
    comparison = section.comparison
    if comparison is None:
        return [f"Nothing can be compared: {section.reason}"]
    sentences = [finding(comparison, one) for one in comparison.differences]
    if not comparison.differences:
        sentences.append(f"{comparison.methods[0]} is the only method, so nothing is compared.")
    verdicts = {(one.method, one.against): one for one in comparison.differences}
    baseline = comparison.settings.baseline
    for (method, twin), one in verdicts.items():
        gained = verdicts.get((method, baseline))
        if twin == baseline or gained is None or gained.verdict != BETTER:
            continue
        if one.verdict != BETTER:
            sentences.append(
                f"So the gain of {method} is not shown to come from the sinks: treating as many "
                "random tokens in the same way is not shown to be worse."
            )
    return sentences
