"""The methods that are compared: the plain model, VAR by any settings, and VAR's random control.

    default                          the plain model
    var                              VAR by the model's own sink profile
    var:keep=0.3,dialect=paper       with other settings; any field of `config.VARSettings`
    var:profile=my.toml              dimensions and threshold of a profile file
    var-random                       as many random vision tokens treated as if they were sinks

A sweep repeats every VAR method for each value of a setting; the names then have the value, such
as `var keep=0.3`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sinkscope.config import VARSettings
from sinkscope.setting import read, settings_of

KINDS = ("default", "var", "var-random")
# By field name; `layers` needs no prefix here, because nothing else has layers.
_SETTINGS = {
    one.field: dataclasses.replace(one, name=one.field) for one in settings_of(VARSettings)
}
SETTINGS = (*_SETTINGS, "profile")


@dataclass(frozen=True)
class MethodSpec:
    """A method as requested; settings that are left out come from the model's profile.

    Attributes:
        name: unique in a run.
        var: fields of `VARSettings`, and `profile`, the name of a file; None: the plain model.
    """

    name: str
    var: Mapping[str, Any] | None = None


def parse_methods(methods: Sequence[str], sweeps: Sequence[str] = ()) -> tuple[MethodSpec, ...]:
    """Read methods and sweeps as a user writes them.

    Args:
        methods: `KIND[:SETTING=VALUE,...]`, such as `var:keep=0.3,dims=458,2570`.
        sweeps: `SETTING=VALUE,VALUE,...`; lists (dims, layers, heads) are separated by `/`.

    Raises:
        ValueError: an unknown kind or setting, an invalid value, no method at all, the same
            one twice, or a sweep if no method is VAR.
    """
    if not methods:
        raise ValueError(f"No method is given; allowed: {', '.join(KINDS)}.")
    read = [_method(text) for text in methods]
    grid = [_sweep(text) for text in sweeps]
    if grid and all(one.var is None for one in read):
        raise ValueError("A sweep is given, but no method is var or var-random.")
    specs: list[MethodSpec] = []
    for one in read:
        if one.var is None or not grid:
            specs.append(one)
            continue
        for choice in itertools.product(
            *([(key, value) for value in given] for key, given in grid)
        ):
            name = " ".join([one.name, *(f"{key}={_shown(value)}" for key, value in choice)])
            specs.append(MethodSpec(name, {**one.var, **dict(choice)}))
    return distinct(specs)


def distinct(methods: Sequence[MethodSpec]) -> tuple[MethodSpec, ...]:
    """The methods, after a check that each has its own name.

    Raises:
        ValueError: two have the same name, or there is no method.
    """
    names = [one.name for one in methods]
    if not names:
        raise ValueError(f"No method is given; allowed: {', '.join(KINDS)}.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"The method {twice[0]!r} is given twice; allowed: each one once.")
    return tuple(methods)


def _method(text: str) -> MethodSpec:
    kind, colon, rest = text.partition(":")
    kind = kind.strip()
    if kind not in KINDS:
        raise ValueError(f"method is {text!r}; allowed: {', '.join(KINDS)}, with :SETTING=VALUE.")
    given = _values(text, rest) if colon else {}
    if kind == "default":
        if given:
            raise ValueError(f"method is {text!r}; default is the plain model and has no settings.")
        return MethodSpec("default")
    if kind == "var-random":
        given.setdefault("control", "random")
    name = kind if not rest.strip() else f"{kind}:{rest.strip()}"
    if "dims" in given:
        var_settings(name, {key: value for key, value in given.items() if key != "profile"})
    return MethodSpec(name, given)


def _values(text: str, rest: str) -> dict[str, Any]:
    """`keep=0.3,dims=1,2` -> {keep: 0.3, dims: (1, 2)}: without =, a piece continues the list."""
    pieces: list[str] = []
    for piece in rest.split(","):
        if "=" in piece or not pieces:
            pieces.append(piece)
        else:
            pieces[-1] += f",{piece}"
    values: dict[str, Any] = {}
    for piece in pieces:
        key, sign, value = (part.strip() for part in piece.partition("="))
        if not sign or not value:
            raise ValueError(f"method is {text!r}; allowed after the colon: SETTING=VALUE,...")
        if key in values:
            raise ValueError(f"method is {text!r}; {key} is given twice.")
        values[key] = _value(key, value)
    return values


def _sweep(text: str) -> tuple[str, list[Any]]:
    key, sign, values = (part.strip() for part in text.partition("="))
    if not sign:
        raise ValueError(f"sweep is {text!r}; allowed: SETTING=VALUE,VALUE,...")
    apart = "/" if key in ("dims", "layers", "heads") else ","
    given = [_value(key, value.strip()) for value in values.split(apart)]
    if len(set(given)) != len(given):
        raise ValueError(f"sweep is {text!r}; a value is given twice.")
    return key, given


def _value(key: str, text: str) -> Any:
    if key not in SETTINGS:
        raise ValueError(f"{key!r} is not a setting of VAR; allowed: {', '.join(SETTINGS)}.")
    if key == "profile":
        return text
    one = _SETTINGS[key]
    kinds: dict[str, tuple[type[float], str]] = {
        "number": (float, "a number"),
        "whole": (int, "a whole number"),
    }
    if one.kind not in kinds:
        return read(one, text)
    kind, words = kinds[one.kind]
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{key} is {text!r}; allowed: {words}.") from None


def var_settings(name: str, values: Mapping[str, Any]) -> VARSettings:
    """VAR's settings of a method.

    Raises:
        ValueError: one is not allowed; the text names the method.
    """
    try:
        return VARSettings(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The method {name}: {error}") from error


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
