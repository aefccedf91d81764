"""Reading the values that users give for a setting: in a control, an API argument or an option."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sinkscope.setting.checks import refuse
from sinkscope.setting.field import LISTS, Setting, user_settings

HIGHEST_INDEX = 9999  # in a list; above all layers, heads and dimensions of today's models
LONGEST_LIST = 1000  # characters of such a list


def read(one: Setting, value: Any) -> Any:
    """The value of a control, an API argument or an option, converted for the field.

    Controls give every number as a float and a list of indices as text; an empty one is None if the
    setting is optional.

    Raises:
        ValueError: with the setting's name for users.
    """
    if one.kind in LISTS and isinstance(value, str):
        return _listed(one, value) if value.strip() else None
    if (
        one.kind in ("text", "own")
        and one.optional
        and isinstance(value, str)
        and not value.strip()
    ):
        return None
    if one.kind == "whole" and not (value is None and one.optional):
        return whole(one.name, value)
    return value


def _listed(one: Setting, text: str) -> tuple[Any, ...]:
    if one.kind == "indices":
        return index_list(one.name, text)
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if one.kind == "names":
        return words
    try:
        return tuple(float(word) for word in words)
    except ValueError:
        raise refuse(one.name, text, "numbers such as 0.5, 1") from None


def read_all(cls: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `cls`, by field, from `values`, which uses the names for users.

    Raises:
        ValueError: as `read`.
    """
    return {o.field: read(o, values[o.name]) for o in user_settings(cls) if o.name in values}


def whole(setting: str, value: object) -> int:
    """The number of a control as an integer.

    Raises:
        ValueError: it is empty, infinite, not a number, or has a fraction.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    if not isinstance(value, float) or not math.isfinite(value) or int(value) != value:
        raise refuse(setting, value, "a whole number")
    return int(value)


def index_list(setting: str, text: str) -> tuple[int, ...]:
    """`7, 2-5` -> (2, 3, 4, 5, 7): the syntax of layers, heads and dimensions.

    Raises:
        ValueError: it is not such a list, or is empty; the text names the setting.
    """
    if len(text) > LONGEST_LIST:
        raise ValueError(
            f"{setting} is a list of {len(text)} characters; allowed: at most {LONGEST_LIST}."
        )
    indices: set[int] = set()
    for part in text.replace("–", "-").split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise refuse(setting, text, "indices such as 2-5 or 0, 3, 7")
        low, high = int(first), int(last or first)
        if high < low or high > HIGHEST_INDEX:
            raise ValueError(
                f"{setting} is {text!r}; a range goes upwards, to {HIGHEST_INDEX} at most."
            )
        indices.update(range(low, high + 1))
    return tuple(sorted(indices))
