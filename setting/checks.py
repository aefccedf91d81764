"""Checks of settings when their dataclass is made; errors are one sentence."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from sinkscope.setting.field import Setting, range_words, settings_of
from sinkscope.untrusted import cut

MOST_INDEX = 999_999  # of layers, heads and dimensions in any model
LONGEST_SHOWN = 200  # characters of a refused value


def check(settings: Any) -> None:
    """Check all settings of a frozen dataclass, and convert their values to the plain Python type
    of each field. For its `__post_init__`.

    A slider may give 1 for 1.0, an array gives its scalars; transformers, JSON and safetensors
    accept neither.

    Raises:
        ValueError: naming the setting, its value and what is allowed.
    """
    for one in settings_of(type(settings)):
        object.__setattr__(settings, one.field, checked(one, getattr(settings, one.field)))


def checked(one: Setting, value: Any) -> Any:
    """The value as the setting's field takes it.

    Raises:
        ValueError: as `check`.
    """
    value = _plain(value)
    if value is None and one.optional:
        return None
    if one.converter is not None:
        return one.converter(one.field or one.name, value)
    usable, value = _usable(one, value)
    if not usable:
        raise refuse(one.field or one.name, value, allowed_words(one))
    return value


def _usable(one: Setting, value: Any) -> tuple[bool, Any]:
    if one.kind == "switch":
        return isinstance(value, bool), value
    if one.kind == "choice":
        return isinstance(value, str) and value in one.choices, value
    if one.kind == "text":
        return isinstance(value, str) and bool(value.strip()), value
    if one.kind in ("whole", "number"):
        return _usable_number(one, value)
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        return False, value
    try:
        given = list(value)
    except TypeError:  # an array without axes
        return False, value
    item_setting = dataclasses.replace(one, kind="number")
    if one.kind == "indices":
        item_setting = dataclasses.replace(one, kind="whole", low=0, high=MOST_INDEX)
    elif one.kind == "names":
        item_setting = dataclasses.replace(one, kind="choice" if one.choices else "text")
    items = [_usable(item_setting, _plain(item)) for item in given]
    values = tuple(item for _, item in items)
    fits = all(usable for usable, _ in items) and (bool(items) or one.default == ())
    if fits and one.kind != "numbers":
        fits = len(set(values)) == len(values)
    return fits, values if fits else value


def _usable_number(one: Setting, value: Any) -> tuple[bool, Any]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False, value
    number: float
    if one.kind == "whole":
        if not isinstance(value, int):
            return False, value
        number = int(value)  # of a subclass
    elif abs(value) < 2**1000:
        number = float(value)
    else:
        return False, value
    low = -math.inf if one.low is None else one.low
    high = math.inf if one.high is None else one.high
    inside = low <= number <= high and not (one.above and number == low)
    return inside, number if inside else value


def _plain(value: Any) -> Any:
    """A scalar of NumPy or torch as Python's own."""
    if hasattr(value, "dtype") and getattr(value, "shape", None) == ():
        return value.item()
    return value


def allowed_words(one: Setting) -> str:
    """The allowed values of a setting, for the end of an error message."""
    if one.allowed:
        return one.allowed
    words = {
        "switch": "true or false",
        "choice": ", ".join(one.choices),
        "text": "a text that is not empty",
        "whole": f"a whole number {range_words(one)}",
        "number": "a number" if one.low is None else f"a number {range_words(one)}",
        "indices": "at least one whole number from 0 up, each once",
        "numbers": f"at least one number {range_words(one)}",
        "names": f"some of {', '.join(one.choices)}" if one.choices else "a list of texts",
        "own": "what the setting says",
    }[one.kind]
    if not one.optional:
        return words
    return f"all (leave it out), or {words}" if one.kind == "indices" else words


def refuse(setting: str, value: object, allowed: str) -> ValueError:
    """The error that names a setting, its value and what is allowed."""
    return ValueError(f"{setting} is {shown(value)}; allowed: {allowed}.")


def shown(value: object) -> str:
    """A refused value, for a message: `repr`, shortened."""
    if isinstance(value, int) and abs(value) >= 10**50:
        # Python does not print integers of more than 4300 digits.
        sign = "negative " if value < 0 else ""
        digits = round(value.bit_length() * math.log10(2))
        return f"a {sign}whole number of about {digits} digits"
    try:
        words = repr(value)
    except ValueError:  # such an integer inside it
        words = f"a {type(value).__name__}"
    return cut(words, LONGEST_SHOWN)
