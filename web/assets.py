"""The page's own files: `web/static`, read as text."""

from __future__ import annotations

from pathlib import Path

STATIC = Path(__file__).resolve().parent / "static"


def read_static(name: str) -> str:
    """The text of a file in `web/static`; of a folder, all of its files in the order of names."""
    path = STATIC / name
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)
