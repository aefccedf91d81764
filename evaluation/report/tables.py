"""The tables of a section, as rows of texts for every format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sinkscope.evaluation.report import words
from sinkscope.evaluation.report.gather import Section
from sinkscope.evaluation.statistics.compare import Difference


@dataclass(frozen=True)
class Table:
    """A title, column names, rows of texts, and which columns hold numbers (from this one on)."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers_from: int = 1
    note: str = ""

    def is_number(self, column: int) -> bool:
        """Whether this column is right-aligned."""
        return column >= self.numbers_from and self.columns[column] not in ("by", "verdict")


def tables(section: Section) -> list[Table]:
    """The non-empty tables of the section, in reading order."""
    result = []
    if section.comparison is not None:
        result += [_figures(section), _differences(section), _categories(section)]
    result += [_usage(section), _other_judge(section)]
    return [table for table in result if table is not None and table.rows]


def summary(sections: Sequence[Section]) -> Table:
    """All runs at a glance."""
    rows = []
    for section in sections:
        comparison = section.comparison
        task = f"{section.run.config.run.task} ({section.protocol.name})"
        if comparison is None:
            rows.append((section.title, task, "-", "-", "-", "-", "nothing to compare"))
            continue
        by_method = {
            one.method: one for one in comparison.differences if one.against == _base(section)
        }
        for method in comparison.methods:
            main = comparison.estimates[method][0]
            one = by_method.get(method)
            rows.append(
                (
                    section.title,
                    task,
                    method,
                    words.count(len(comparison.questions)),
                    words.value(comparison.metric, main.figure, main.value),
                    ""
                    if one is None
                    else words.change(comparison.metric, one.figure, one.difference),
                    "baseline" if method == _base(section) else one.verdict if one else "",
                )
            )
    columns = ("run", "task", "method", "questions", "figure", "difference", "verdict")
    return Table("Summary", columns, tuple(rows), numbers_from=3)


def _base(section: Section) -> str:
    assert section.comparison is not None
    return section.comparison.settings.baseline


def _figures(section: Section) -> Table:
    comparison = section.comparison
    assert comparison is not None
    names = [one.figure for one in comparison.estimates[comparison.methods[0]]]
    rows = []
    for i, name in enumerate(names):
        for method in comparison.methods:
            one = comparison.estimates[method][i]
            ends = words.interval(comparison.metric, name, one.interval)
            shown = words.value(comparison.metric, name, one.value)
            rows.append((words.figure_name(name), method, shown, ends, one.how))
    confidence = f"{100 * comparison.settings.confidence:.0f} % interval"
    columns = ("figure", "method", "value", confidence, "by")
    return Table("Figures", columns, tuple(rows), numbers_from=2)


def _differences(section: Section) -> Table:
    comparison = section.comparison
    assert comparison is not None
    rows = tuple(_difference(section, one) for one in (*comparison.differences, *comparison.others))
    note = (
        "p after Holm's correction, only for the first figure; intervals are not corrected. "
        "Detectable: the true difference that such a sample shows in about 80 of 100 cases."
    )
    return Table("Differences", _columns(section, "figure"), rows, 3, note)


def _categories(section: Section) -> Table | None:
    comparison = section.comparison
    assert comparison is not None
    if not comparison.by_category:
        return None
    if not comparison.differences:
        method = comparison.methods[0]
        rows: tuple[tuple[str, ...], ...] = tuple(
            (
                category,
                words.value(comparison.metric, by[method].figure, by[method].value),
                words.interval(comparison.metric, by[method].figure, by[method].interval),
            )
            for category, by in comparison.by_category.items()
        )
        return Table("Categories", ("category", "value", "interval"), rows)
    rows = tuple(_difference(section, one) for one in comparison.categories)
    return Table("Categories", _columns(section, "category"), rows, 3)


def _columns(section: Section, first: str) -> tuple[str, ...]:
    comparison = section.comparison
    assert comparison is not None
    confidence = f"{100 * comparison.settings.confidence:.0f} % interval"
    return (
        *(first, "method", "against", "verdict", "difference", confidence),
        *("p", "fixed", "broken", "same", "value", "other's", "detectable"),
    )


def _difference(section: Section, one: Difference) -> tuple[str, ...]:
    comparison = section.comparison
    assert comparison is not None
    metric, figure = comparison.metric, one.figure
    size = words.change(metric, figure, one.detectable).removeprefix("+")
    judged = bool(one.verdict)
    return (
        one.category or words.figure_name(figure),
        one.method,
        one.against,
        one.verdict,
        words.change(metric, figure, one.difference),
        words.changes(metric, figure, one.interval),
        words.p(one.adjusted) if judged else "",
        *(words.count(n) if judged else "" for n in (one.fixed, one.broken, one.same)),
        words.value(metric, figure, one.value),
        words.value(metric, figure, one.base),
        size if judged else "",
    )


def _usage(section: Section) -> Table:
    def shown(number: float | None, form: str) -> str:
        return "-" if number is None else format(number, form)

    rows = []
    for method, one in section.usage.items():
        counts = (words.count(n) for n in (one.answered, one.unparsable, one.cut))
        means = (
            (one.tokens, ".1f"),
            (one.seconds, ".3f"),
            (one.sinks, ".1f"),
            (one.rows_changed, ".4f"),
            (one.mass_moved, ".4f"),
        )
        rows.append((method, *counts, *(shown(number, form) for number, form in means)))
    columns = (
        *("method", "answers", "unparsable", "cut at the token limit", "tokens", "seconds"),
        *("sinks", "rows changed", "mass moved"),
    )
    note = "The columns from tokens on are means per answer. Unparsable answers count as wrong."
    return Table("Answers", columns, tuple(rows), 1, note)


def _other_judge(section: Section) -> Table | None:
    if not section.other_judge:
        return None
    protocol_judge = section.protocol.judge.name
    rows = tuple((name, f"{100 * mean:.1f} %") for name, mean in section.other_judge.items())
    note = (
        f"The figures above are by the judge {section.run.config.run.judge}. The protocol's own "
        f"judge is {protocol_judge}; these are its mean scores of the same answers."
    )
    return Table(
        f"By the protocol's own judge, {protocol_judge}", ("method", "mean score"), rows, 1, note
    )
