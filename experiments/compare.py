"""Two runs of one experiment side by side: rows with the same keys, lines in one figure."""

from __future__ import annotations

import dataclasses

from sinkscope.experiments.result import Cell, Chart, Findings, Result, Series, Table, setting_text

MOST_NAMED = 3  # settings that distinguish two results in their names


def compare(one: Result, other: Result) -> Result:
    """Two results as one: each table has the figures of both and their difference, each chart the
    series of both.

    Raises:
        ValueError: one of them is a comparison itself, they are of different experiments, or have
            no table in common.
    """
    if is_comparison(one) or is_comparison(other):
        raise ValueError("A comparison is given; allowed: two results of one run each.")
    if one.experiment != other.experiment:
        raise ValueError(
            f"The results are of different experiments, {one.experiment} and {other.experiment}; "
            "allowed: two of the same."
        )
    names = _names(one, other)
    theirs = {table.name: table for table in other.findings.tables}
    tables = tuple(
        _table(table, theirs[table.name], names)
        for table in one.findings.tables
        if table.name in theirs
    )
    if not tables:
        raise ValueError("The two results have no table in common.")
    drawn = {chart.name: chart for chart in other.findings.charts}
    charts = tuple(
        _chart(chart, drawn[chart.name], names)
        for chart in one.findings.charts
        if chart.name in drawn and chart.kind != "heat" and _same_axis(chart, drawn[chart.name])
    )
    summary, notes, more = [], [], []
    for name, result in zip(names, (one, other), strict=True):
        summary += [f"{name}: {text}" for text in result.findings.summary]
        if result.findings.verdict is not None:
            summary.append(f"{name}: verdict {result.findings.verdict.word}.")
        notes.append(f"{name} is {result.provenance()}")
        more += [f"{name}: {text}" for text in result.findings.notes]
    return dataclasses.replace(
        one,
        settings={"A": one.settings, "B": other.settings},
        samples=(*one.samples, *other.samples),
        source=f"{one.source} / {other.source}",
        groups={name: one.groups[name] for name in one.groups if name in other.groups},
        findings=Findings(tuple(summary), tables, charts, notes=(*notes, *more)),
        seconds=one.seconds + other.seconds,
    )


def is_comparison(result: Result) -> bool:
    """Whether it is two results side by side."""
    return set(result.settings) == {"A", "B"}


def _names(one: Result, other: Result) -> tuple[str, str]:
    """A and B, with their difference: the model, or the settings that differ."""
    ids = str(one.model.get("id")), str(other.model.get("id"))
    if ids[0] != ids[1]:
        return f"A ({ids[0]})", f"B ({ids[1]})"
    differs: list[tuple[str, str]] = []
    for part in ("experiment", "study"):
        a, b = one.settings.get(part, {}), other.settings.get(part, {})
        differs += [
            (f"{name} {setting_text(a.get(name))}", f"{name} {setting_text(b.get(name))}")
            for name in (*a, *(name for name in b if name not in a))
            if setting_text(a.get(name)) != setting_text(b.get(name))
        ]
    if not differs:
        return "A", "B"
    first, second = (", ".join(texts[:MOST_NAMED]) for texts in zip(*differs, strict=True))
    return f"A ({first})", f"B ({second})"


def _table(one: Table, other: Table, names: tuple[str, str]) -> Table:
    keys = one.keys
    columns = [column for column in one.columns[keys:] if column in other.columns[keys:]]
    first = {row[:keys]: dict(zip(one.columns, row, strict=True)) for row in one.rows}
    second = {row[:keys]: dict(zip(other.columns, row, strict=True)) for row in other.rows}
    rows = []
    for key in [*first, *(key for key in second if key not in first)]:
        cells: list[Cell] = []
        for column in columns:
            a, b = first.get(key, {}).get(column), second.get(key, {}).get(column)
            cells += [a, b, _difference(a, b)]
        rows.append((*key, *cells))
    heads = [name for column in columns for name in (f"{column} A", f"{column} B", f"{column} B-A")]
    return Table(
        one.name,
        f"{_titles(one, other)}: {names[0]} and {names[1]}",
        (*one.columns[:keys], *heads),
        tuple(rows),
        keys,
        one.note,
    )


def _titles(one: Table | Chart, other: Table | Chart) -> str:
    """The title of both: a layer in it may differ."""
    return one.title if one.title == other.title else f"{one.title} / {other.title}"


def _same_axis(one: Chart, other: Chart) -> bool:
    """Lines may differ in length; everything else needs the same x values."""
    return one.kind == other.kind and (one.kind == "lines" or one.x == other.x)


def _chart(one: Chart, other: Chart, names: tuple[str, str]) -> Chart:
    longest = max(one.x, other.x, key=len)

    def renamed(chart: Chart, name: str) -> list[Series]:
        more = (None,) * (len(longest) - len(chart.x))
        return [
            dataclasses.replace(
                series,
                name=f"{name.split()[0]}: {series.name}",
                role=f"{name} {series.role}",
                y=(*series.y, *more),
                low=None if series.low is None else (*series.low, *more),
                high=None if series.high is None else (*series.high, *more),
            )
            for series in chart.series
        ]

    return dataclasses.replace(
        one,
        title=_titles(one, other),
        x=longest,
        series=(*renamed(one, names[0]), *renamed(other, names[1])),
        note=f"{one.note} {names[0]} and {names[1]}.".strip(),
    )


def _difference(first: Cell, second: Cell) -> Cell:
    """second - first of two numbers; None if one is not a number."""
    if isinstance(first, bool) or isinstance(second, bool):
        return None
    if isinstance(first, int | float) and isinstance(second, int | float):
        return second - first
    return None
