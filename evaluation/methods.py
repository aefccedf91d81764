"""Methods with all their settings: the requested ones (`evaluation.method_specs`), completed from a
model's sink profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sinkscope.config import VARSettings
from sinkscope.evaluation.method_specs import MethodSpec, var_settings
from sinkscope.interventions.var.checks import validate_var
from sinkscope.models.info import ModelInfo
from sinkscope.models.profiles import SinkProfile, check_fits, read_profile


@dataclass(frozen=True)
class Method:
    """A method with all its settings; `var` is None for the plain model."""

    name: str
    var: VARSettings | None = None


def resolve(
    methods: Sequence[MethodSpec], profile: SinkProfile | None, info: ModelInfo
) -> tuple[Method, ...]:
    """The methods with all their settings, checked against a model.

    Args:
        methods: as requested.
        profile: the model's own, or None.
        info: of the model.

    Raises:
        ValueError: no sink dimensions are known, or a setting does not fit the model.
    """
    methods_of_run = []
    for one in methods:
        if one.var is None:
            methods_of_run.append(Method(one.name))
            continue
        values = dict(one.var)
        method_profile = profile
        if (file := values.pop("profile", None)) is not None:
            method_profile = read_profile(Path(file))
            check_fits(method_profile, info.id, info.family, info.hidden_size, info.layers)
        if method_profile is None and "dims" not in values:
            raise ValueError(
                f"The method {one.name} needs sink dimensions, but {info.id} has no sink profile; "
                "give them (var:dims=...), or a profile (`sinkscope sinks find` makes one)."
            )
        if method_profile is not None:
            values.setdefault("dims", method_profile.dims)
            if tuple(values["dims"]) == method_profile.dims:
                values.setdefault("tau", method_profile.tau)
        settings = var_settings(one.name, values)
        try:
            validate_var(settings, info.hidden_size, info.layers, 1, info.heads)
        except ValueError as error:
            raise ValueError(f"The method {one.name}: {error}") from error
        methods_of_run.append(Method(one.name, settings))
    return tuple(methods_of_run)
