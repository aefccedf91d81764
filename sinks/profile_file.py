"""Writing a sink profile, and the findings beside it that say which samples it rests on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import tomlkit

from sinkscope.models.profiles import SinkProfile
from sinkscope.utils import write_atomically


def write_profile(path: Path, profile: SinkProfile) -> None:
    """Write TOML that `models.profiles.read_profile` reads back as the very same profile.

    Raises:
        OSError: the folder is missing or not writable.
    """
    values = asdict(profile)
    text = tomlkit.dumps({k: list(v) if isinstance(v, tuple) else v for k, v in values.items()})
    write_atomically(path, lambda file: file.write(text.encode()))


def findings_beside(profile: Path) -> Path:
    """Where the findings of a profile lie: `profile.toml` -> `profile.findings.json`."""
    return profile.with_name(f"{profile.stem}.findings.json")
