"""The table of docs/models.md: every kind of folder that was tried, and what became of it.

    python -m tests.checkpoints.table --write

tries them all and writes the table; `tests/models/test_checkpoints.py` fails if the committed one
differs from the results.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from tests.checkpoints.cases import CASES, Case
from tests.checkpoints.outcomes import Outcome, attempt
from tests.checkpoints.published import ROOT, write_like
from tests.tiny_model import save_model

PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- made by tests.checkpoints.table: begin -->\n", "<!-- end -->\n"
PIXELS = {"max_pixels": 28 * 28 * 64}  # of the published layout around the tiny model


def table(tried: Iterable[tuple[Case, Outcome]]) -> str:
    """Markdown: a table for each group of cases."""
    parts: list[str] = []
    for group, rows in groupby(tried, key=lambda pair: pair[0].group):
        parts += [f"### {group}", "", "| folder | result |", "|---|---|"]
        parts += [f"| {_cell(case.name)} | {_cell(result(case, out))} |" for case, out in rows]
        parts.append("")
    return "\n".join(parts)


def result(case: Case, outcome: Outcome) -> str:
    """The outcome for a folder, in the words shown to a user."""
    words = outcome.words
    if case.cut and case.cut in words:  # a library's text follows
        words = words[: words.index(case.cut) + len(case.cut)] + " …"
    if outcome.loads:
        return f"loads, with the note: {words}" if words else "loads"
    return f"refused: {words}"


def committed() -> str:
    """The table on the page."""
    page = PAGE.read_text(encoding="utf-8")
    return page[page.index(BEGIN) + len(BEGIN) : page.index(END)]


def _cell(words: str) -> str:
    return words.replace("|", "\\|").replace("<|", "&lt;|")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--write", action="store_true", help="into docs/models.md")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as made:
        room = Path(made)
        model = save_model(room / "tiny")
        published = write_like(room / "published", model, PIXELS)
        tried = []
        for number, case in enumerate(CASES):
            own = room / str(number)
            own.mkdir()
            tried.append((case, attempt(case, published, model, own)))
    text = table(tried)
    if given.write:
        page = PAGE.read_text(encoding="utf-8")
        before, after = page[: page.index(BEGIN) + len(BEGIN)], page[page.index(END) :]
        PAGE.write_text(before + text + after, encoding="utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
