"""A report in a terminal, by rich."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from sinkscope.evaluation.report import words
from sinkscope.evaluation.report.gather import Section
from sinkscope.evaluation.report.tables import Table, summary, tables

MOST_FAILURES = 10
_COLOURS = {"better": "green", "worse": "red", "no difference shown": "yellow"}


def show(sections: Sequence[Section], console: Console) -> None:
    """Print the tables and conclusions. Texts of data and models are never interpreted as
    markup."""
    if len(sections) > 1:
        console.print(_table(summary(sections)))
    for section in sections:
        console.rule(Text(section.title))
        style = "" if section.complete else "bold red"
        console.print(Text(words.state(section), style=style))
        for warning in section.warnings:
            console.print(Text(f"Warning: {warning}", style="yellow"))
        for table in tables(section):
            console.print(_table(table))
        for failure in section.failures[:MOST_FAILURES]:
            message = f"No answer: {failure.question} by {failure.method}: {failure.reason}"
            console.print(Text(message, style="red"))
        if (more := len(section.failures) - MOST_FAILURES) > 0:
            console.print(Text(f"... and {words.count(more)} more without an answer.", style="red"))
        for message in words.conclusions(section):
            console.print(Text(f"• {message}"))


def _table(table: Table) -> RichTable:
    rich_table = RichTable(title=Text(table.title), title_justify="left", caption_justify="left")
    if table.note:
        rich_table.caption = Text(table.note)
    for i, name in enumerate(table.columns):
        rich_table.add_column(Text(name), justify="right" if table.is_number(i) else "left")
    for row in table.rows:
        rich_table.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
    return rich_table
