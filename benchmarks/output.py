"""Printing the result of a benchmark, and writing it into the folder of --output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer


def check_folder(output: Path | None) -> None:
    """Refuse an --output that is not a folder, before anything is measured.

    Raises:
        ValueError: it does not exist.
    """
    if output is not None and not output.is_dir():
        raise ValueError(f"The folder {output} of --output does not exist.")


def write_result(
    result: dict[str, Any], table: str, name: str, as_json: bool, output: Path | None
) -> None:
    """Print the table, or the JSON, and write both into `output` as NAME.txt and NAME.json."""
    text = json.dumps(result, indent=2)
    typer.echo(text if as_json else table)
    if output is not None:
        (output / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        (output / f"{name}.txt").write_text(table + "\n", encoding="utf-8")
