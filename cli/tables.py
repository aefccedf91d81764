"""Tables on standard output: Rich's on a terminal, plain aligned text for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import typer

BAR = 12  # characters of a whole bar


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: its heading; two lines if several columns share one.
        bar: on a terminal a bar is shown next to its values, which are percentages.
        left: left-aligned; the last column always is.
    """

    name: str
    bar: bool = False
    left: bool = False


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
    """Print rows of texts under their headings."""
    if sys.stdout.isatty():
        _print_rich(columns, list(rows))
    else:
        for line in plain_table(columns, list(rows)):
            typer.echo(line)


def plain_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of the plain table: cells two blanks apart, numbers at the right."""
    deep = max(column.name.count("\n") for column in columns) + 1
    heads = [([""] * deep + column.name.split("\n"))[-deep:] for column in columns]
    last = len(columns) - 1
    wide = [
        max(map(len, [*head, *(row[index] for row in rows)])) if index < last else 0
        for index, head in enumerate(heads)
    ]

    def line(cells: Sequence[str]) -> str:
        texts = (
            cell.ljust(wide[index]) if column.left or index == last else cell.rjust(wide[index])
            for index, (column, cell) in enumerate(zip(columns, cells, strict=True))
        )
        return "  ".join(texts).rstrip()

    return [*(line([head[k] for head in heads]) for k in range(deep)), *map(line, rows)]


def _print_rich(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    last = len(columns) - 1
    for index, column in enumerate(columns):
        at_left = column.left or index == last
        table.add_column(
            Text(column.name),
            justify="left" if at_left else "right",
            no_wrap=index != last,
            overflow="fold",
        )
        if column.bar:
            table.add_column("", style="blue", no_wrap=True)
    for row in rows:
        cells = []
        for column, cell in zip(columns, row, strict=True):
            cells.append(Text(cell))  # never markup: it may be a model's text
            if column.bar:
                cells.append(Text(_bar(float(cell[:-1]) / 100) if cell.endswith("%") else ""))
        table.add_row(*cells)
    Console().print(table)


def _bar(share: float) -> str:
    eighths = round(min(max(share, 0.0), 1.0) * BAR * 8)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (" ▏▎▍▌▋▊▉"[rest] if rest else "")).ljust(BAR)
