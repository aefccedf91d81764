"""Writing a sink profile, and the findings beside it that say which samples it rests on."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

from sinkscope.models.profiles import SinkProfile
from sinkscope.utils import write_atomically


def write_profile(path: Path, profile: SinkProfile) -> None:
    """Write TOML that `models.profiles.read_profile` reads back as the very same profile.

    Raises:
        OSError: the folder is missing or not writable.
    """
    lines = [f"{f.name} = {_toml(getattr(profile, f.name))}" for f in fields(profile)]
    text = "\n".join(lines) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def findings_beside(profile: Path) -> Path:
    """Where the findings of a profile lie: `profile.toml` -> `profile.findings.json`."""
    return profile.with_name(f"{profile.stem}.findings.json")


def _toml(value: object) -> str:
    if isinstance(value, str):
        # JSON's escapes are TOML's; only the delete character must be escaped in addition.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return repr(value)
