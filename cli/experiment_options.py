"""Command-line options made of the fields of a settings dataclass, and settings made of options.

A tuple is a list with commas (`0,1,8`, `q,k`), everything else is what it is.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

from sinkscope.config import index_list
from sinkscope.experiments.settings import token_names


def options_of(settings: type[Any]) -> dict[str, tuple[Any, Any]]:
    """Name -> (annotation, default) of each field, those without a default first."""
    hints = get_type_hints(settings)
    made = {}
    for field in dataclasses.fields(settings):
        plain, optional = _without_none(hints[field.name])
        default = field.default
        listed = get_origin(plain) is tuple
        if listed and isinstance(default, tuple):
            default = ",".join(map(str, default))
        annotation: Any = str if listed else plain
        if optional or (listed and default is None):
            annotation = annotation | None
        option = typer.Option(
            help=field.metadata.get("help", ""), metavar="LIST" if listed else None
        )
        required = default is dataclasses.MISSING
        made[field.name] = (Annotated[annotation, option], ... if required else default)
    return dict(sorted(made.items(), key=lambda item: item[1][1] is not ...))


def settings_from(settings: type[Any], given: Mapping[str, Any]) -> Any:
    """The settings of options' values.

    Raises:
        ValueError: a value that is not allowed; the text names it.
    """
    hints = get_type_hints(settings)
    values = {}
    for field in dataclasses.fields(settings):
        value = given[field.name]
        plain, _ = _without_none(hints[field.name])
        if get_origin(plain) is tuple and isinstance(value, str):
            value = _list(field.name, value, get_args(plain)[0])
        values[field.name] = value
    return settings(**values)


def _list(name: str, text: str, kind: Any) -> tuple[Any, ...]:
    if name == "tokens":
        return token_names(text)
    if kind is int:
        return index_list(name, text)
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if kind is not float:
        return words
    try:
        return tuple(float(word) for word in words)
    except ValueError:
        raise ValueError(f"{name} is {text!r}; allowed: numbers with commas.") from None


def _without_none(hint: Any) -> tuple[Any, bool]:
    """A type without `None`, and whether it had it."""
    if get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        if len(kinds) == 1:
            return kinds[0], True
    return hint, False
