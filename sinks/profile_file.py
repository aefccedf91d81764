"""Writes a sink profile. The findings beside it say which samples it is based on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import tomlkit

from sinkscope.models.profiles import SinkProfile
from sinkscope.utils import write_bytes_atomically


def write_profile(path: Path, profile: SinkProfile) -> None:
    """Write TOML that `models.profiles.read_profile` reads back as an equal profile.

    Raises:
        OSError: the folder is missing or not writable.
    """
    values = asdict(profile)
    text = tomlkit.dumps({k: list(v) if isinstance(v, tuple) else v for k, v in values.items()})
    write_bytes_atomically(path, text.encode())


def findings_beside(profile: Path) -> Path:
    """The path of a profile's findings: `profile.toml` -> `profile.findings.json`."""
    return profile.with_name(f"{profile.stem}.findings.json")
