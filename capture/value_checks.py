"""Checks of a trace file's plain values; error texts are the end of a sentence."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from sinkscope.models.family import PromptLayout


def indices(name: str, value: Iterable[Any]) -> tuple[int, ...]:
    numbers = wholes(name, value)
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"its {name} are {list(numbers)}, one of them twice")
    return numbers


def positions_in(name: str, value: Iterable[Any], layout: PromptLayout) -> tuple[int, ...]:
    numbers = wholes(name, value)
    if any(position >= layout.length for position in numbers):
        raise ValueError(f"its {name} are beyond the prompt's {layout.length} tokens")
    return numbers


def pair(name: str, value: Any) -> tuple[int, int]:
    first, second = value
    return whole(name, first, 1), whole(name, second, 1)


def whole(name: str, value: Any, low: int = 0) -> int:
    if type(value) is not int or value < low:
        raise ValueError(f"its {name} is {shown(value)}, where a whole number from {low} should be")
    return value


def wholes(name: str, value: Iterable[Any]) -> tuple[int, ...]:
    numbers = tuple(value)
    if set(map(type, numbers)) - {int} or min(numbers, default=0) < 0:
        raise ValueError(f"its {name} has {shown(numbers)}, where whole numbers from 0 should be")
    return numbers


def number(name: str, value: Any, low: float = 0.0) -> float:
    if type(value) not in (float, int) or not low <= value < math.inf:
        raise ValueError(f"its {name} is {shown(value)}, where a number should be")
    return float(value)


def text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"its {name} is {shown(value)}, where a text should be")
    return value


def texts(name: str, value: Iterable[Any]) -> tuple[str, ...]:
    values = tuple(value)
    if isinstance(value, str) or set(map(type, values)) - {str}:
        raise ValueError(f"its {name} has something that is not text")
    return values


def var_report(value: Any, layout: PromptLayout) -> dict[str, Any] | None:
    """What a trace says about VAR. Its settings and layers are read by name, wherever it is
    shown."""
    if value is None:
        return None
    report = mapping("var", value)
    if report.get("settings") is not None:
        _var_settings(mapping("var.settings", report["settings"]))
    layers = report.get("layers") or []
    if not isinstance(layers, list):
        raise ValueError(f"its var.layers is {shown(layers)}, where a list should be")
    for layer in layers:
        whole("layer", mapping("var.layers", layer)["layer"])
        positions_in("var.layers", layer.get("positions", ()), layout)
    return report


def _var_settings(value: dict[str, Any]) -> None:
    """Those that are drawn or put into the form; other versions have other names besides."""
    for name in ("tau", "keep", "max_sink_share", "min_image_mass"):
        if value.get(name) is not None:
            number(f"var.{name}", value[name])
    for name in ("layers", "dims"):
        if value.get(name) is not None:
            wholes(f"var.{name}", value[name])
    for head in value.get("heads") or ():
        wholes("var.heads", head)


def run_settings(value: Any) -> dict[str, Any]:
    """The settings of a run; other versions may have other names."""
    settings = mapping("settings", value)
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
