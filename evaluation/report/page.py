"""A report as one HTML page without scripts or requests, for any browser, mail or print.

All text from data, models and files is escaped. A policy in the page forbids everything except its
own style and images.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from sinkscope.evaluation.report import words
from sinkscope.evaluation.report.charts import Bar, Dot, curve, forest
from sinkscope.evaluation.report.facts import facts
from sinkscope.evaluation.report.gather import Flip, Section, Sweep
from sinkscope.evaluation.report.questions import QuestionLookup, small_images
from sinkscope.evaluation.report.tables import Table, summary, tables
from sinkscope.evaluation.statistics.compare import BETTER, WORSE, Difference, Estimate

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
MOST_FAILURES = 500
_KIND = {BETTER: "better", WORSE: "worse"}


@dataclass(frozen=True)
class PageContent:
    """The content of a page besides its figures.

    Attributes:
        found: questions of each section.
        flips: how many changed questions a section shows; changed.csv has all of them.
        maps: (section's title, question, method) -> a picture as a data URL, and its description.
    """

    found: Sequence[QuestionLookup]
    flips: int = 60
    maps: Mapping[tuple[str, str, str], tuple[str, str]] = field(default_factory=dict)


def page(sections: Sequence[Section], shown: PageContent) -> str:
    """The page's text."""
    style = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    body: list[str] = ["<h1>Evaluation report</h1>"]
    if len(sections) > 1:
        body.append(_table(summary(sections)))
        links = (
            f'<li><a href="#run-{i}">{_e(one.title)}</a></li>' for i, one in enumerate(sections)
        )
        body.append(f"<nav><ul>{''.join(links)}</ul></nav>")
    for i, section in enumerate(sections):
        body.append(f'<section id="run-{i}">')
        body += _section(section, shown.found[i], shown)
        body.append("</section>")
    title = _e(" · ".join(one.title for one in sections))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_e(POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{title} · SinkScope evaluation</title><style>{style}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _section(section: Section, lookup: QuestionLookup, shown: PageContent) -> Iterator[str]:
    yield f"<h2>{_e(section.title)}</h2>"
    yield f'<p class="{"state" if section.complete else "alarm"}">{_e(words.state(section))}</p>'
    for warning in section.warnings:
        yield f'<p class="alarm">Warning: {_e(warning)}</p>'
    yield '<ul class="findings">'
    verdicts = [one.verdict for one in section.comparison.differences] if section.comparison else []
    for i, conclusion in enumerate(words.conclusions(section)):
        kind = _KIND.get(verdicts[i], "none") if i < len(verdicts) else "none"
        yield f'<li class="{kind}">{_e(conclusion)}</li>'
    yield "</ul>"
    yield from _charts(section)
    for table in tables(section):
        yield _table(table)
    yield from _failures(section)
    yield from _flips(section, lookup, shown)
    yield "<details><summary>How this run was made</summary><dl>"
    for name, value in facts(section):
        yield f"<dt>{_e(name)}</dt><dd>{_e(value)}</dd>"
    yield "</dl></details>"


def _charts(section: Section) -> Iterator[str]:
    comparison = section.comparison
    if comparison is None or not comparison.differences:
        return
    unit = "" if words.is_points(comparison.metric, comparison.main) else " (percentage points)"
    name = words.figure_name(comparison.main)
    scale = 1.0 if not unit else 100.0
    overall = [
        _bar(one, f"{one.method} against {one.against}", scale) for one in comparison.differences
    ]
    title = f"Difference in {name}"
    yield _figure(forest(overall, title + unit, title), "Point: difference; line: its interval.")
    for sweep in section.sweeps:
        yield _figure(_sweep(section, sweep, scale, unit), "Band: the baseline with its interval.")
    baseline = comparison.settings.baseline
    by_category = [
        _bar(
            one,
            f"{one.category}: {one.method}"
            + ("" if one.against == baseline else f" against {one.against}"),
            scale,
        )
        for one in comparison.categories
    ]
    yield _figure(forest(by_category, title + unit, f"{title} by category"), "By category.")


def _bar(one: Difference, label: str, scale: float) -> Bar:
    low, high = scale * one.interval.low, scale * one.interval.high
    return Bar(label, scale * one.difference, low, high, _KIND.get(one.verdict, "none"))


def _sweep(section: Section, sweep: Sweep, scale: float, unit: str) -> str:
    comparison = section.comparison
    assert comparison is not None
    main = {name: estimates[0] for name, estimates in comparison.estimates.items()}

    def dot(x: float, one: Estimate) -> Dot:
        return Dot(x, scale * one.value, scale * one.interval.low, scale * one.interval.high)

    dots = [dot(point.value, main[point.method]) for point in sweep.points]
    name = words.figure_name(comparison.main)
    across = (f"{sweep.setting} of {sweep.name}", name + (" (%)" if unit else ""))
    base = dot(0.0, main[comparison.settings.baseline])
    return curve(dots, base, across, f"{name} by {sweep.setting} of {sweep.name}")


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{_e(caption)}</figcaption></figure>" if svg else ""


def _table(table: Table) -> str:
    heads = "".join(f'<th scope="col">{_e(name)}</th>' for name in table.columns)
    rows = []
    for row in table.rows:
        cells = []
        for i, cell in enumerate(row):
            kind = "number" if table.is_number(i) else ""
            if table.columns[i] == "verdict":
                kind = f"verdict {_KIND.get(cell, '')}".strip()
            cells.append(f'<td class="{kind}">{_e(cell)}</td>' if kind else f"<td>{_e(cell)}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    note = f"<p>{_e(table.note)}</p>" if table.note else ""
    title = f"<h3>{_e(table.title)}</h3>" if table.title else ""
    return (
        f'{title}<div class="wide"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{note}"
    )


def _failures(section: Section) -> Iterator[str]:
    if not section.failures:
        return
    rows = tuple((f.question, f.method, f.reason) for f in section.failures[:MOST_FAILURES])
    title = f"Questions without an answer ({words.count(len(section.failures))})"
    more = len(section.failures) - MOST_FAILURES
    note = f"{words.count(more)} more are in failures.csv." if more > 0 else ""
    yield _table(Table(title, ("question", "method", "reason"), rows, 3, note))


def _flips(section: Section, lookup: QuestionLookup, shown: PageContent) -> Iterator[str]:
    if not section.flips:
        return
    yield f"<h3>Questions whose score changed ({words.count(len(section.flips))})</h3>"
    if len(section.flips) > shown.flips:
        yield f"<p>The first {shown.flips} are shown; changed.csv has all of them.</p>"
    if lookup.reason:
        yield f"<p>{_e(lookup.reason)}, so they are named by their ids.</p>"
    for flip in section.flips[: shown.flips]:
        yield from _flip(section, flip, lookup, shown)


def _flip(
    section: Section, flip: Flip, lookup: QuestionLookup, shown: PageContent
) -> Iterator[str]:
    after = flip.after
    question = lookup.questions.get(after.question)
    kind, word = ("better", "fixed") if flip.fixed else ("worse", "broken")
    head = f"{after.question}" + (f" · {after.category}" if after.category else "")
    yield f'<article class="flip"><h4><span class="{kind}">{word}</span> by {_e(after.method)}: '
    yield f"{_e(head)}</h4>"
    if question is not None:
        images, wrong = small_images(question)
        pictures = "".join(
            f'<img src="{_e(image)}" alt="image {i}">' for i, image in enumerate(images)
        )
        yield f'<div class="images">{pictures}</div>' if pictures else ""
        yield f"<p>{_e(wrong)}</p>" if wrong else ""
        yield f'<p class="question">{_e(question.text)}</p>'
        if question.options:
            options = "".join(f"<li>{_e(a)}. {_e(text)}</li>" for a, text in question.options)
            yield f'<ul class="options">{options}</ul>'
    yield f"<p>Truth: <strong>{_e(_listed(after.truth))}</strong></p>"
    yield '<div class="answers">'
    keys = [(section.title, one.question, one.method) for one in (flip.before, after)]
    both = all(key in shown.maps for key in keys)  # a single point shows nothing
    for record, key in zip((flip.before, after), keys, strict=True):
        yield f"<div><h5>{_e(record.method)}</h5><blockquote>{_e(record.answer or '')}</blockquote>"
        yield f"<p>{_e(_about(record))}</p>"
        if both:
            flip_maps = shown.maps[key]
            yield f'<figure><img src="{_e(flip_maps[0])}" alt="{_e(flip_maps[1])}">'
            yield f"<figcaption>{_e(flip_maps[1])}</figcaption></figure>"
        yield "</div>"
    yield "</div></article>"


def _about(record: Any) -> str:
    taken = "nothing" if record.extraction is None else f"{record.extraction!r}"
    parts = [f"taken as {taken}", f"score {record.score:g}"]
    if record.log_probabilities:
        mean = sum(record.log_probabilities) / len(record.log_probabilities)
        parts.append(f"mean log-probability {mean:.3f}")
    if record.sinks is not None:
        parts.append(f"{record.sinks} sinks")
    if record.rows_changed:
        parts.append(f"{100 * record.rows_changed:.1f} % of rows changed")
        parts.append(f"attention mass moved {record.mass_moved or 0:.4f}")
    if record.finish == "length":
        parts.append("cut at the token limit")
    return "; ".join(parts)


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _e(text: str) -> str:
    return html.escape(text)
