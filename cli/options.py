"""Options made from settings: a verb declares a settings class and receives a checked instance.

    @verb
    def heatmap(image: ImageFile, model: ModelSettings, ...) -> None:

Each setting that is offered (`sinkscope.setting`) becomes an option of its name, help and default.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints

import typer

from sinkscope.cli.common import clear_errors
from sinkscope.setting import LISTS, REQUIRED, Setting, index_list, read, user_settings

S = TypeVar("S")


@dataclass(frozen=True)
class Group:
    """How one verb changes a class's settings: `Annotated[FindSettings, Group(...)]`.

    Attributes:
        but: fields that it does not offer.
        defaults: by field, if its default differs from the class's.
        left_out: by field, description of the default, if the verb decides it.
    """

    but: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    def settings(self, cls: type[Any]) -> tuple[Setting, ...]:
        """The settings of the class as the verb offers them."""
        return tuple(
            dataclasses.replace(
                one,
                default=self.defaults.get(one.field, one.default),
                left_out=self.left_out.get(one.field, one.left_out),
            )
            for one in user_settings(cls, *self.but)
        )


@dataclass(frozen=True)
class Draft(Generic[S]):
    """Settings that are completed later, for example from a model's profile.

    Attributes:
        cls: the settings class.
        given: by field, the given options; omitted optional ones are missing.
    """

    cls: type[S]
    given: Mapping[str, Any]

    def make(self, **otherwise: Any) -> S:
        """The settings; `otherwise` has values, by field, for omitted options.

        Raises:
            ValueError: a value is not allowed.
        """
        return self.cls(**{**otherwise, **self.given})


def verb(function: Callable[..., None]) -> Callable[..., None]:
    """The function for typer: with an option for each setting of the classes that it declares (by
    `Cls`, `Annotated[Cls, Group(...)]` or `Draft[Cls]`), and with clear errors."""
    hints = get_type_hints(function, include_extras=True)
    parameters: list[inspect.Parameter] = []
    asked: dict[str, tuple[type[Any], bool, tuple[Setting, ...]]] = {}
    for one in inspect.signature(function).parameters.values():
        cls, group, draft = _settings_class(hints[one.name])
        if cls is None:
            parameters.append(_keyword(one.name, hints[one.name], one.default))
            continue
        settings = group.settings(cls)
        asked[one.name] = cls, draft, settings
        parameters += [option(setting) for setting in settings]

    @functools.wraps(function)
    def call(**given: Any) -> None:
        with clear_errors():
            instances: dict[str, Any] = {}
            for name, (cls, draft, settings) in asked.items():
                given_values = {one: given.pop(one.name) for one in settings}
                values = {o.field: _read(o, v) for o, v in given_values.items() if v is not None}
                instances[name] = Draft(cls, values) if draft else cls(**values)
            function(**given, **instances)

    del call.__wrapped__  # otherwise typer and typing would unwrap it
    # Typer reads it.
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {one.name: one.annotation for one in parameters}
    return call


def _read(setting: Setting, value: Any) -> Any:
    if setting.kind == "indices" and not value.strip():
        return index_list(setting.name, value)  # given but empty is an error, not "all"
    return read(setting, value)


def option(setting: Setting) -> inspect.Parameter:
    """The option of one setting, as a parameter of typer's function.

    If omitted, it is the setting's default, or None if something else decides; a setting with
    neither is required.
    """
    kinds = {"switch": bool, "whole": int, "number": float}
    kind: Any = kinds.get(setting.kind, str)
    if setting.kind == "choice":
        kind = Literal[setting.choices]
    written = setting.default
    if setting.kind in LISTS and isinstance(written, tuple):
        written = ",".join(map(str, written)) or None
    if setting.left_out or not isinstance(written, bool | int | float | str):
        written = None  # described by `left_out`
    if setting.default is REQUIRED and not setting.left_out:
        written = inspect.Parameter.empty
    elif written is None:
        kind = kind | None
    names = [f"--{setting.name.replace('_', '-')}"]
    if setting.kind == "switch" and written is not False:
        names = [f"{names[0]}/--no-{names[0][2:]}"]
    metavar = setting.metavar or ("LIST" if setting.kind in LISTS else None)
    about = typer.Option(*names, help=setting.words, metavar=metavar)
    return _keyword(setting.name, Annotated[kind, about], written)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _settings_class(hint: Any) -> tuple[type[Any] | None, Group, bool]:
    """The settings class that a parameter declares, its group, and whether it is a draft; None: no
    class."""
    group = Group()
    if get_origin(hint) is Annotated:
        hint, *more = get_args(hint)
        group = next((one for one in more if isinstance(one, Group)), group)
    draft = get_origin(hint) is Draft
    if draft:
        (hint,) = get_args(hint)
    # A dataclass type, which mypy does not narrow.
    return (hint if dataclasses.is_dataclass(hint) else None), group, draft  # type: ignore[return-value]
