"""A written profile is read back equal, whatever its texts contain; settings are checked."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from sinkscope.config import from_mapping
from sinkscope.models.profiles import SinkProfile, read_profile
from sinkscope.sinks.finding.findings import Findings
from sinkscope.sinks.profile_file import findings_beside, write_profile
from sinkscope.sinks.settings import FindSettings

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "profiles"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@limits(max_examples=50, deadline=None)
@given(TEXT, TEXT, TEXT, st.sets(st.integers(0, 99), min_size=1, max_size=5), st.floats(0.01, 10))
def test_round_trip(model: str, source: str, note: str, dims: set[int], tau: float) -> None:
    profile = SinkProfile(model, "fam", 100, 4, tuple(dims), tau, source, "low", note)
    with TemporaryDirectory() as folder:
        write_profile(Path(folder) / "p.toml", profile)
        assert read_profile(Path(folder) / "p.toml") == profile


def test_findings_lie_beside_the_profile() -> None:
    assert findings_beside(Path("a/b.c.toml")) == Path("a/b.c.findings.json")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_percent", 0),
        ("top_percent", 51),
        ("min_ratio", 0.9),
        ("tokens_by", "magic"),
        ("layers", ()),
        ("layers", (1, 1)),
        ("min_share", 1.5),
        ("min_contrast", float("nan")),
        ("min_layers", 0),
        ("bootstrap", 10),
        ("confidence", 1.0),
        ("batch_size", True),
    ],
)
def test_settings_outside_their_range_are_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} is "):
        FindSettings(**{name: value})  # type: ignore[arg-type]


def test_settings_survive_plain_values_and_only_some_change_what_is_measured() -> None:
    settings = FindSettings(layers=(3, 1), top_percent=2.0)
    assert settings.layers == (1, 3)
    assert from_mapping(FindSettings, settings.as_dict(), "settings") == settings
    plain = FindSettings().measuring()
    assert FindSettings(min_contrast=9.0, seed=1, batch_size=4).measuring() == plain
    assert FindSettings(min_ratio=9.0).measuring() != plain


@pytest.mark.parametrize("name", ["first", "found"])
def test_a_profile_of_an_earlier_version_opens(name: str) -> None:
    path = FIXTURES / f"{name}.toml"
    profile = read_profile(path)
    said = tomllib.loads(path.read_text(encoding="utf-8"))
    assert {**dataclasses.asdict(profile), "dims": list(profile.dims)} == said


def test_findings_of_an_earlier_version_open() -> None:
    path = findings_beside(FIXTURES / "found.toml")
    found = Findings.open(path)
    held, said = json.loads(json.dumps(found.as_dict())), json.loads(path.read_text("utf-8"))
    assert kept(held, said) == said  # fields of later versions are empty
    assert {sample["question"] for sample in held["samples"]} == {""}
    assert found.dims == read_profile(FIXTURES / "found.toml").dims


def kept(held: Any, said: Any) -> Any:
    """The parts of `held` that a file of an earlier version has too."""
    if isinstance(said, dict):
        return {key: kept(held[key], value) for key, value in said.items()}
    if isinstance(said, list) and len(said) == len(held):
        return [kept(*pair) for pair in zip(held, said, strict=True)]
    return held
