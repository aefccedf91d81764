"""The output of `experiment`: findings in sentences, tables, the verdict."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from sinkscope.experiments.result import Cell, Result, Table

MOST_ROWS = 60  # of a table; the rest is in the files
WIDE = 220  # columns if the terminal's width is unknown


def print_result(result: Result) -> None:
    """Print a result on standard output."""
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDE)
    console.print(f"[bold]{escape(result.question)}[/bold]", highlight=False)
    console.print(escape(result.provenance()), highlight=False)
    groups = ", ".join(f"{name} {count}" for name, count in result.groups.items())
    console.print(f"Tokens: {escape(groups)}; {result.seconds:.1f} s\n", highlight=False)
    for table in result.findings.tables:
        console.print(_rich(table))
        if len(table.rows) > MOST_ROWS:
            left = len(table.rows) - MOST_ROWS
            console.print(f"and {left} more rows (--output writes them all)", highlight=False)
    for text in result.findings.summary:
        console.print(escape(text), highlight=False)
    for note in result.findings.notes:
        console.print(f"[yellow]Note:[/yellow] {escape(note)}", highlight=False)
    verdict = result.findings.verdict
    if verdict is not None:
        console.print(f"\n[bold]Verdict: {verdict.word}[/bold]", highlight=False)
        for text in verdict.text:
            console.print(escape(text), highlight=False)
        if verdict.thresholds:
            console.print(f"Thresholds: {escape('; '.join(verdict.thresholds))}.", highlight=False)


def _rich(table: Table) -> RichTable:
    rich_table = RichTable(
        title=escape(table.title), title_justify="left", caption=escape(table.note)
    )
    rich_table.caption_justify = "left"
    for index, column in enumerate(table.columns):
        left = index < table.keys and any(isinstance(row[index], str) for row in table.rows)
        rich_table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for row in table.rows[:MOST_ROWS]:
        rich_table.add_row(*(escape(_cell(cell)) for cell in row))
    return rich_table


def _cell(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return str(cell)
