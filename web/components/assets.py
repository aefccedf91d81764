"""The page's own files: `web/static`, read as text."""

from __future__ import annotations

import re
from pathlib import Path

STATIC = Path(__file__).resolve().parents[1] / "static"


def read_static(name: str) -> str:
    """The text of a file in `web/static`; of a folder, all of its files in the order of names.

    They come without indentation, scripts without comments, styles without blanks beside their
    signs: a browser needs none of it, and every visitor would load it. No text in a script goes
    over several lines, so neither can be part of one.
    """
    path = STATIC / name
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return "\n".join(_lean(file) for file in files)


def _lean(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".css":
        return re.sub(
            r" ?([{};,]|: )[\s]*", lambda sign: sign[1].strip(), re.sub(r"\s+", " ", text)
        )
    # A comment after code stands behind a sign and no open quote, which a test checks.
    lines = (re.sub(r"(?<=[;,{}]) // .*", "", line).strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))


# Of what a style is, where that is no single component.
SCOPES = {"notice": ".notice-line"}


def page_style() -> str:
    """All style of the page, as one sheet that is read once.

    Gradio can take the style of a drawn part as its template, but then sets it anew with each
    value, and the browser computes the style of the whole document again: with a long answer on
    screen that makes every new token dearer.
    """
    parts = [read_static("page.css")]
    for path in sorted(STATIC.glob("*.css")):
        if path.stem not in ("page", "standalone"):
            scope = SCOPES.get(path.stem, f"#{path.stem}")
            parts.append(f"{scope} {{\n{read_static(path.name)}\n}}")
    return "\n".join(parts)
