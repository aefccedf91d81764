"""The page's own files: `web/static`, read as text."""

from __future__ import annotations

import re
from pathlib import Path

STATIC = Path(__file__).resolve().parents[1] / "static"


def read_static(name: str) -> str:
    """The text of a file in `web/static`, or of all files of a folder there, in order of name.

    Indentation, comments in scripts, and blanks beside signs in styles are removed: browsers do not
    need them, and every visitor would load them. No string in a script spans several lines, so
    these changes cannot touch the inside of a string.
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
    # A comment after code follows a sign and is not inside quotes; a test checks that.
    lines = (re.sub(r"(?<=[;,{}]) // .*", "", line).strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))


# Places that hold styles, apart from single components.
SCOPES = {"notice": ".notice-line"}


def page_style() -> str:
    """All styles of the page, as one sheet that the browser reads once.

    Gradio can take the style of a component as its template. But then it sets the style again with
    each value, and the browser recomputes the style of the whole document: with a long answer on
    screen that slows down every new token.
    """
    parts = [read_static("page.css")]
    for path in sorted(STATIC.glob("*.css")):
        if path.stem not in ("page", "standalone"):
            scope = SCOPES.get(path.stem, f"#{path.stem}")
            parts.append(f"{scope} {{\n{read_static(path.name)}\n}}")
    return "\n".join(parts)
