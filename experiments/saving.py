"""A result's files in a folder: result.json, one CSV file per table, figures as PNG and PDF."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from sinkscope.experiments.result import Result, Table
from sinkscope.utils import write_bytes_atomically


def save_result(folder: Path, result: Result, figures: bool = True) -> list[Path]:
    """Write everything; the folder is made if it is missing.

    Args:
        folder: the folder that they are written to.
        result: what.
        figures: draw the charts as well.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "result.json"]
    result.save(written[0])
    for table in result.findings.tables:
        path = folder / f"{table.name}.csv"
        text = csv_text(table, result.provenance())
        write_bytes_atomically(path, text.encode())
        written.append(path)
    if figures:
        from sinkscope.experiments.figures import (
            save_figures,
        )  # tables need no matplotlib

        written += save_figures(folder, result)
    return written


def csv_text(table: Table, about: str) -> str:
    """A table as CSV: a comment line with its provenance, the headings, the rows in full
    precision; an empty cell where there is no number."""
    out = io.StringIO()
    out.write(f"# {table.title}; {about}\n".replace("\r", " "))
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.columns)
    for row in table.rows:
        writer.writerow(["" if cell is None else cell for cell in row])
    return out.getvalue()
