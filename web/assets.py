"""The page's own files: `web/static`, read as text."""

from __future__ import annotations

from pathlib import Path

STATIC = Path(__file__).resolve().parent / "static"


def read_static(name: str) -> str:
    """The text of a file in `web/static`; of a folder, all of its files in the order of names.

    Scripts come without the lines that are comments and without indentation: a browser needs
    neither, and every visitor would load them. No text in them goes over several lines, so neither
    can be part of one.
    """
    path = STATIC / name
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return "\n".join(_lean(file) for file in files)


def _lean(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".js":
        return text
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))
