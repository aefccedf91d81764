"""Sink profiles: which dimensions of a model's residual stream mark its sinks, their source and
confidence.

A profile is one small TOML file. A model folder may hold its own `sink_profile.toml`; the published
ones are in `sinks/profiles/`, chosen by the model's id or, for a folder, by its family and sizes.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path

from sinkscope.untrusted import read_toml
from sinkscope.utils import PROJECT

PROFILE_FILE = "sink_profile.toml"
DEMO = PROJECT / "demo" / "model"  # what the id `demo` means
PUBLISHED = PROJECT / "sinks" / "profiles"


@dataclass(frozen=True)
class SinkProfile:
    """Sink dimensions of one model.

    Attributes:
        model: hub id, or a name.
        family: adapter name, e.g. `qwen2_5_vl`.
        hidden_size, layers: sizes of the text model that the dimensions belong to.
        dims: sink dimensions, indices into the residual stream.
        tau: threshold on the sink score phi that suits this model.
        source: where the dimensions come from.
        confidence: high, medium or low.
        note: what a user should know.
    """

    model: str
    family: str
    hidden_size: int
    layers: int
    dims: tuple[int, ...]
    tau: float
    source: str
    confidence: str
    note: str = ""

    def __post_init__(self) -> None:
        if not self.dims or any(not 0 <= d < self.hidden_size for d in self.dims):
            raise ValueError(
                f"dims is {self.dims!r}; allowed: at least one index from 0 to "
                f"{self.hidden_size - 1}."
            )
        if not 0 < self.tau <= math.sqrt(self.hidden_size):
            raise ValueError(
                f"tau is {self.tau!r}; allowed: above 0, at most sqrt(hidden_size) = "
                f"{math.sqrt(self.hidden_size):.1f}, "
                "the largest value that the sink score can take."
            )
        if self.confidence not in ("high", "medium", "low"):
            raise ValueError(f"confidence is {self.confidence!r}; allowed: high, medium, low.")


def read_profile(path: Path) -> SinkProfile:
    """Read a profile from TOML.

    Raises:
        ValueError: the file cannot be read, is not TOML, or a key is missing or wrong; the text
            names it.
    """
    values = read_toml(path, "The sink profile")
    known = {f.name: f for f in fields(SinkProfile)}
    required = [name for name in known if name != "note"]
    missing = [name for name in required if name not in values]
    unknown = [name for name in values if name not in known]
    if missing or unknown:
        what = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(unknown)}"
        raise ValueError(f"The sink profile {path.name} {what}; its keys are {', '.join(known)}.")
    try:
        return SinkProfile(**{**values, "dims": tuple(values["dims"])})
    except (TypeError, ValueError) as error:
        raise ValueError(f"The sink profile {path.name}: {error}") from error


def find_profile(
    model: str, folder: Path | None, family: str, hidden_size: int, layers: int
) -> SinkProfile | None:
    """The profile of a loaded model, or None.

    Args:
        model: the id that the user asked for.
        folder: the model's folder on disk, if it is one; its own profile wins.
        family, hidden_size, layers: from the loaded model; a profile for other sizes is never
            taken.

    Raises:
        ValueError: the folder's own profile is damaged, or is for another family or size.
    """
    if folder is not None and (folder / PROFILE_FILE).is_file():
        folder_profile = read_profile(folder / PROFILE_FILE)
        _check_sizes(folder_profile, str(folder / PROFILE_FILE), model, family, hidden_size, layers)
        return folder_profile
    fitting = [
        p
        for p in published()
        if (p.family, p.hidden_size, p.layers) == (family, hidden_size, layers)
    ]
    named = [p for p in fitting if p.model.lower() == model.lower()]
    if named or not fitting:
        return next(iter(named), None)
    # A fine-tune mostly keeps its base's sinks, but this one was not checked.
    base = fitting[0]
    return replace(
        base,
        model=model,
        confidence="low",
        source=f"taken from {base.model} because of its sizes ({base.source})",
    )


def check_fits(
    profile: SinkProfile, model: str, family: str, hidden_size: int, layers: int
) -> None:
    """Refuse a profile that was not made for this model.

    Dimensions are indices into one model's residual stream; on another model of the same sizes they
    mean nothing, and nothing would show that. So the name is compared too: its last part, because
    the model of a hub id may be in a folder of that name.

    Args:
        profile: the profile.
        model: the id that the user asked for, such as `handle.info.id`.
        family, hidden_size, layers: from the loaded model.

    Raises:
        ValueError: naming both models and their sizes.
    """
    _check_sizes(profile, f"of {profile.model}", model, family, hidden_size, layers)
    if not _same_model(profile.model, model):
        raise ValueError(
            f"The sink profile is of {profile.model}, and the model is {model}: their sizes "
            "agree, but the dimensions may not. If they do, write "
            f"model = {json.dumps(model)} in the file."
        )


def _check_sizes(
    profile: SinkProfile, name: str, model: str, family: str, hidden_size: int, layers: int
) -> None:
    if (profile.family, profile.hidden_size, profile.layers) != (family, hidden_size, layers):
        raise ValueError(
            f"The sink profile {name} is for {profile.family} with hidden size "
            f"{profile.hidden_size} and {profile.layers} layers; the model {model} is {family} "
            f"with hidden size {hidden_size} and {layers} layers."
        )


def _same_model(one: str, other: str) -> bool:
    if one.lower() == other.lower():
        return True
    places = [DEMO if name == "demo" else Path(name) for name in (one, other)]
    if all(place.is_dir() for place in places):
        return places[0].samefile(places[1])
    return places[0].name.lower() == places[1].name.lower()


def published() -> tuple[SinkProfile, ...]:
    """All profiles that come with SinkScope."""
    return tuple(read_profile(path) for path in sorted(PUBLISHED.glob("*.toml")))
