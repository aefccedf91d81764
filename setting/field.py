"""A setting as a dataclass field, and what is known about it."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

S = TypeVar("S")
Kind = Literal["switch", "whole", "number", "choice", "text", "indices", "numbers", "names", "own"]
LISTS = ("indices", "numbers", "names")  # which users write with commas

REQUIRED: Any = dataclasses.MISSING  # default of a required setting
KEY = "setting"  # in the metadata of a field


@dataclass(frozen=True)
class Setting:
    """One setting of a settings class.

    Attributes:
        help: what it does, in whole sentences.
        low, high: the allowed range, both ends included, of a number and of each of several. A
            whole number always has both.
        above: `low` itself is not allowed.
        unit: of the number, in the plural.
        slider_range: the range of its slider on the page; without one it is a box for a number.
        step: of the slider.
        label: of its control; by default made from the name.
        name: its name for users, if the field's own name is ambiguous outside its class.
        left_out: its value when users leave it out, in words, if the default does not show it.
        user_facing: whether it appears on the page, as an option and in the API. Otherwise it is
            only for Python and settings files, or follows from another setting.
        metavar: name of its value in the help of its option.
        allowed: the allowed values in words, if range or choices do not say it.
        choice_labels: the page's name of each choice.
        converter: for a field of another type: a function of name and value that converts a given
            value or text; raises ValueError as `check` does.
        field, kind, optional, choices, default: read off the dataclass field by `settings_of`.
    """

    help: str
    low: float | None = None
    high: float | None = None
    above: bool = False
    unit: str = ""
    slider_range: tuple[float, float] | None = None
    step: float | None = None
    label: str = ""
    name: str = ""
    left_out: str = ""
    user_facing: bool = True
    metavar: str = ""
    allowed: str = ""
    choice_labels: tuple[str, ...] = ()
    converter: Callable[[str, Any], Any] | None = None
    field: str = ""
    kind: Kind = "text"
    optional: bool = False
    choices: tuple[str, ...] = ()
    default: Any = None

    @property
    def words(self) -> str:
        """Help, range with unit, and default, for the help of an option."""
        return " ".join(
            [*self._sentences(), *([f"Default: {self.left_out}."] if self.left_out else [])]
        )

    @property
    def attribute(self) -> str:
        """The same for a docstring, where only None means "left out"."""
        none = self.left_out and self.default is None
        return " ".join([*self._sentences(), *([f"None: {self.left_out}."] if none else [])])

    def _sentences(self) -> list[str]:
        if self.low is not None and self.high is not None and self.high <= 10**5:
            return [self.help, f"{range_words(self).capitalize()}{self.unit and ' ' + self.unit}."]
        named = not self.unit or self.unit in self.help
        return [self.help] if named else [self.help, f"In {self.unit}."]


def setting(default: Any, help: str, **about: Any) -> Any:
    """A dataclass field that is a setting.

    Args:
        default: its value when it is left out; `REQUIRED` where it must be given.
        help: what it does.
        about: further attributes of `Setting`.
    """
    return dataclasses.field(default=default, metadata={KEY: Setting(help, **about)})


def like(cls: type[Any], name: str, **changes: Any) -> Any:
    """A field that is the setting `name` of another class, with changes.

    Args:
        cls: a settings class.
        name: of its field.
        changes: `default`, or attributes of `Setting`.
    """
    (one,) = (one for one in dataclasses.fields(cls) if one.name == name)
    default = changes.pop("default", one.default)
    about = dataclasses.replace(one.metadata[KEY], **changes)
    return dataclasses.field(default=default, metadata={KEY: about})


def settings_of(cls: type[Any]) -> tuple[Setting, ...]:
    """The settings of a settings class, in the order of its fields.

    Raises:
        TypeError: a field's type is not supported, or an integer has no bounds.
    """
    hints = get_type_hints(cls)
    settings = []
    for one in dataclasses.fields(cls):
        if KEY not in one.metadata:
            continue
        about: Setting = one.metadata[KEY]
        where = f"{cls.__name__}.{one.name}"
        kind, optional, choices = _kind(hints[one.name], where, about.converter is not None)
        if kind == "whole" and (about.low is None or about.high is None):
            raise TypeError(f"{cls.__name__}.{one.name} is a whole number without low and high.")
        settings.append(
            dataclasses.replace(
                about,
                field=one.name,
                name=about.name or one.name,
                kind=kind,
                optional=optional,
                choices=choices,
                default=one.default,
            )
        )
    return tuple(settings)


def user_settings(cls: type[Any], *but: str) -> tuple[Setting, ...]:
    """The settings offered to users, without the named fields."""
    return tuple(one for one in settings_of(cls) if one.user_facing and one.field not in but)


def _kind(hint: Any, where: str, custom: bool) -> tuple[Kind, bool, tuple[str, ...]]:
    """Kind, whether None is allowed, and the choices of a field's type."""
    optional = False
    if get_origin(hint) in (Union, types.UnionType):
        optional = type(None) in get_args(hint)
        hint, *others = (part for part in get_args(hint) if part is not type(None))
        hint = Union if others else hint
    if custom:
        return "own", optional, ()
    if get_origin(hint) is Literal:
        return "choice", optional, get_args(hint)
    item_type, *more = get_args(hint) if get_origin(hint) is tuple else (None,)
    if more == [...] and get_origin(item_type) is Literal:
        return "names", optional, get_args(item_type)
    kinds: dict[Any, Kind] = {
        bool: "switch",
        int: "whole",
        float: "number",
        str: "text",
        tuple[int, ...]: "indices",
        tuple[float, ...]: "numbers",
        tuple[str, ...]: "names",
    }
    if hint not in kinds:
        raise TypeError(f"{where} is a {hint}; a setting is one of {', '.join(map(str, kinds))}.")
    return kinds[hint], optional, ()


def explained(cls: type[S]) -> type[S]:
    """Add what the fields say about themselves to the class's docstring."""
    lines = [
        f"    {one.name}: {dataclasses.replace(one.metadata[KEY], default=one.default).attribute}"
        for one in dataclasses.fields(cls)  # type: ignore[arg-type]  # `cls` is a dataclass
        if KEY in one.metadata
    ]
    cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__ or ""), "", "Attributes:", *lines])
    return cls


def range_words(one: Setting) -> str:
    """`from 0 to 1`: the range of a number."""
    low = "" if one.low is None else _number_words(one.low)
    high = "" if one.high is None else _number_words(one.high)
    if one.above:
        return f"above {low}" + (f", at most {high}" if high else "")
    return f"from {low} to {high}" if high else f"from {low} up"


def _number_words(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"
