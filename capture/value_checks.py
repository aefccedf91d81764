"""Checks of a trace file's plain values; error texts are the end of a sentence."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from sinkscope.models.family import PromptLayout


def indices(name: str, said: Iterable[Any]) -> tuple[int, ...]:
    made = wholes(name, said)
    if len(set(made)) != len(made):
        raise ValueError(f"its {name} are {list(made)}, one of them twice")
    return made


def positions_in(name: str, said: Iterable[Any], layout: PromptLayout) -> tuple[int, ...]:
    made = wholes(name, said)
    if any(position >= layout.length for position in made):
        raise ValueError(f"its {name} are beyond the prompt's {layout.length} tokens")
    return made


def pair(name: str, said: Any) -> tuple[int, int]:
    first, second = said
    return whole(name, first, 1), whole(name, second, 1)


def whole(name: str, value: Any, low: int = 0) -> int:
    if type(value) is not int or value < low:
        raise ValueError(f"its {name} is {shown(value)}, where a whole number from {low} should be")
    return value


def wholes(name: str, said: Iterable[Any]) -> tuple[int, ...]:
    made = tuple(said)
    if set(map(type, made)) - {int} or min(made, default=0) < 0:
        raise ValueError(f"its {name} has {shown(made)}, where whole numbers from 0 should be")
    return made


def number(name: str, value: Any, low: float = 0.0) -> float:
    if type(value) not in (float, int) or not low <= value < math.inf:
        raise ValueError(f"its {name} is {shown(value)}, where a number should be")
    return float(value)


def text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"its {name} is {shown(value)}, where a text should be")
    return value


def texts(name: str, said: Iterable[Any]) -> tuple[str, ...]:
    made = tuple(said)
    if isinstance(said, str) or set(map(type, made)) - {str}:
        raise ValueError(f"its {name} has something that is no text")
    return made


def var_report(said: Any, layout: PromptLayout) -> dict[str, Any] | None:
    """What a trace says about VAR. Its settings and layers are read by name, wherever it is
    shown."""
    if said is None:
        return None
    report = mapping("var", said)
    if report.get("settings") is not None:
        _var_settings(mapping("var.settings", report["settings"]))
    layers = report.get("layers") or []
    if not isinstance(layers, list):
        raise ValueError(f"its var.layers is {shown(layers)}, where a list should be")
    for layer in layers:
        whole("layer", mapping("var.layers", layer)["layer"])
        positions_in("var.layers", layer.get("positions", ()), layout)
    return report


def _var_settings(said: dict[str, Any]) -> None:
    """Those that are drawn or put into the form; other versions have other names besides."""
    for name in ("tau", "keep", "max_sink_share", "min_image_mass"):
        if said.get(name) is not None:
            number(f"var.{name}", said[name])
    for name in ("layers", "dims"):
        if said.get(name) is not None:
            wholes(f"var.{name}", said[name])
    for head in said.get("heads") or ():
        wholes("var.heads", head)


def run_settings(said: Any) -> dict[str, Any]:
    """The settings of a run; other versions may have other names."""
    settings = mapping("settings", said)
    if (temperature := settings.get("temperature")) is not None:
        number("temperature", temperature)
    return settings


def mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"its {name} is {shown(value)}, where an object should be")
    return value


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
