"""A report as CSV files: numbers as they are, without rounding."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence

from sinkscope.evaluation.report.gather import Section
from sinkscope.evaluation.report.questions import QuestionLookup

FIGURES = ("run", "task", "protocol", "method", "category", "figure", "value", "low", "high", "by")
DIFFERENCES = (
    *("run", "task", "protocol", "method", "against", "category", "figure", "value", "other"),
    *("difference", "low", "high", "test", "p", "p_holm", "detectable", "fixed", "broken", "same"),
    *("clusters", "questions", "verdict"),
)
CHANGED = (
    *("run", "question", "index", "category", "method", "change", "text", "truth", "answer_before"),
    *("answer_after", "extraction_before", "extraction_after", "score_before", "score_after"),
    *("sinks", "rows_changed", "mass_moved"),
)
FAILURES = ("run", "question", "method", "reason")


def csv_files(sections: Sequence[Section], lookups: Sequence[QuestionLookup]) -> dict[str, str]:
    """Name of a file -> its text."""
    both = list(zip(sections, lookups, strict=True))
    return {
        "figures.csv": _written(FIGURES, (row for one in sections for row in _figures(one))),
        "differences.csv": _written(
            DIFFERENCES, (row for one in sections for row in _differences(one))
        ),
        "changed.csv": _written(CHANGED, (row for one, of in both for row in _changed(one, of))),
        "failures.csv": _written(
            FAILURES,
            (
                (one.title, failure.question, failure.method, failure.reason)
                for one in sections
                for failure in one.failures
            ),
        ),
    }


def _head(section: Section) -> tuple[str, str, str]:
    return section.title, section.run.config.run.task, section.protocol.name


def _figures(section: Section) -> Iterator[Sequence[object]]:
    comparison = section.comparison
    if comparison is None:
        return
    for method, estimates in comparison.estimates.items():
        for one in estimates:
            ends = one.interval
            yield (*_head(section), method, "", one.figure, one.value, ends.low, ends.high, one.how)
    for category, by in comparison.by_category.items():
        for method, one in by.items():
            ends = one.interval
            row = (category, one.figure, one.value, ends.low, ends.high, one.how)
            yield (*_head(section), method, *row)


def _differences(section: Section) -> Iterator[Sequence[object]]:
    comparison = section.comparison
    if comparison is None:
        return
    for one in (*comparison.differences, *comparison.others, *comparison.categories):
        yield (
            *(*_head(section), one.method, one.against, one.category, one.figure),
            *(one.value, one.base, one.difference, one.interval.low, one.interval.high, one.test),
            *(one.p, one.adjusted, one.detectable, one.fixed, one.broken, one.same, one.clusters),
            *(one.fixed + one.broken + one.same, one.verdict),
        )


def _changed(section: Section, lookup: QuestionLookup) -> Iterator[Sequence[object]]:
    for flip in section.flips:
        before, after = flip.before, flip.after
        question = lookup.questions.get(after.question)
        yield (
            *(section.title, after.question, after.index, after.category, after.method),
            *("fixed" if flip.fixed else "broken", question.text if question else ""),
            *(after.truth, before.answer, after.answer, before.extraction, after.extraction),
            *(before.score, after.score, after.sinks, after.rows_changed, after.mass_moved),
        )


def _written(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(value) for value in row])
    return out.getvalue()


def _cell(value: object) -> object:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return value if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)
