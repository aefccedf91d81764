"""A report as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sinkscope.evaluation.report import words
from sinkscope.evaluation.report.facts import facts
from sinkscope.evaluation.report.gather import Flip, Section
from sinkscope.evaluation.report.questions import QuestionLookup
from sinkscope.evaluation.report.tables import Table, summary, tables

MOST_FLIPS = 20
MOST_FAILURES = 100


def markdown(sections: Sequence[Section], lookups: Sequence[QuestionLookup]) -> str:
    """The whole report; `lookups` has the questions of each section."""
    lines = ["# Evaluation report", ""]
    if len(sections) > 1:
        lines += [*_table(summary(sections)), ""]
    for section, questions in zip(sections, lookups, strict=True):
        lines += _section(section, questions)
    return "\n".join(lines).rstrip() + "\n"


def _section(section: Section, lookup: QuestionLookup) -> Iterator[str]:
    yield from (f"## {_text(section.title)}", "")
    yield from (_text(words.state(section)), "")
    for warning in section.warnings:
        yield from (f"> **Warning:** {_text(warning)}", "")
    for conclusion in words.conclusions(section):
        yield f"- {_text(conclusion)}"
    yield ""
    for table in tables(section):
        yield from (f"### {_text(table.title)}", "", *_table(table), "")
    if section.failures:
        yield from _failures(section)
    if section.flips:
        yield from _flips(section, lookup)
    yield from ("### How this run was made", "")
    for name, value in facts(section):
        yield f"- {_text(name)}: {_text(value)}"
    yield ""


def _failures(section: Section) -> Iterator[str]:
    yield from (f"### Questions without an answer ({words.count(len(section.failures))})", "")
    rows = tuple((f.question, f.method, f.reason) for f in section.failures[:MOST_FAILURES])
    yield from _table(Table("", ("question", "method", "reason"), rows, 3))
    if (more := len(section.failures) - MOST_FAILURES) > 0:
        yield f"\n{words.count(more)} more are in failures.csv."
    yield ""


def _flips(section: Section, lookup: QuestionLookup) -> Iterator[str]:
    yield from (f"### Questions whose score changed ({words.count(len(section.flips))})", "")
    rows = tuple(_flip(flip, lookup) for flip in section.flips[:MOST_FLIPS])
    columns = ("question", "method", "truth", "answer before", "answer after", "change")
    yield from _table(Table("", columns, rows, 6))
    if len(section.flips) > MOST_FLIPS:
        yield f"\nThe first {MOST_FLIPS}; all of them are in changed.csv."
    if lookup.reason:
        yield f"\n{_text(lookup.reason)}."
    yield ""


def _flip(flip: Flip, lookup: QuestionLookup) -> tuple[str, ...]:
    question = lookup.questions.get(flip.after.question)
    text = flip.after.question + (f": {question.text}" if question else "")
    return (
        *(text, flip.after.method, _short(flip.after.truth)),
        *(_short(flip.before.answer), _short(flip.after.answer)),
        "fixed" if flip.fixed else "broken",
    )


def _short(value: object, most: int = 160) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def _table(table: Table) -> list[str]:
    rule = ["---:" if table.is_number(i) else "---" for i in range(len(table.columns))]
    lines = [_row(table.columns), _row(rule), *(_row(row) for row in table.rows)]
    return [*lines, "", _text(table.note)] if table.note else lines


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_text(cell).replace("|", "\\|") for cell in cells) + " |"


def _text(text: str) -> str:
    """Escaped text: no line break, HTML, emphasis, link or heading."""
    line = " ".join(text.split())
    for sign in "\\`*_[]<>#":
        line = line.replace(sign, f"\\{sign}")
    return line
