"""Every slider at both ends, as the browser sends it: JSON turns 2.0 into 2."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import sinkscope
from sinkscope.config import GenerationSettings, VARSettings
from sinkscope.setting import REQUIRED, Setting, read, settings_of
from sinkscope.setting.field import KEY

# Modules that hold settings, without those that would load a page or a model.
HOLDERS = ("config", "sinks", "experiments", "evaluation", "cli")


def settings_classes() -> list[type[Any]]:
    found = {}
    for part in HOLDERS:
        module = importlib.import_module(f"{sinkscope.__name__}.{part}")
        names = [module.__name__]
        for one in pkgutil.iter_modules(getattr(module, "__path__", []), f"{module.__name__}."):
            names += [one.name] if "settings" in one.name or part == "cli" else []
        for name in names:
            for value in vars(importlib.import_module(name)).values():
                is_settings = isinstance(value, type) and dataclasses.is_dataclass(value)
                if is_settings and any(KEY in one.metadata for one in dataclasses.fields(value)):
                    found[f"{value.__module__}.{value.__name__}"] = value
    return list(found.values())


def ends(one: Setting) -> Iterator[float]:
    assert one.slider_range is not None
    for end in one.slider_range:
        yield from {end: None, float(end): None}


SLIDERS = [(cls, one) for cls in settings_classes() for one in settings_of(cls) if one.slider_range]
CASES = [
    pytest.param(cls, one, end, id=f"{cls.__name__}.{one.field}={end!r}")
    for cls, one in SLIDERS
    for end in ends(one)
]


def test_the_sliders_are_found() -> None:
    names = {one.name for _, one in SLIDERS}
    assert {"temperature", "top_p", "repetition_penalty", "tau", "keep", "top_percent"} <= names


def needed(cls: type[Any]) -> dict[str, Any]:
    """A value for each required field."""
    return {
        one.field: (0,) if one.kind == "indices" else "x"
        for one in settings_of(cls)
        if one.default is REQUIRED
    }


@pytest.mark.parametrize(("cls", "one", "end"), CASES)
def test_an_end_is_allowed_and_becomes_the_fields_own_type(
    cls: type[Any], one: Setting, end: float
) -> None:
    made = cls(**{**needed(cls), one.field: read(one, end)})
    value = getattr(made, one.field)
    assert value == end
    assert type(value) is (int if one.kind == "whole" else float)


GENERATION = {one.field: one for one in settings_of(GenerationSettings) if one.slider_range}
VAR = {one.field: one for one in settings_of(VARSettings) if one.slider_range}


@pytest.mark.tiny
@pytest.mark.parametrize(
    ("field", "end"),
    [
        (name, end if end % 1 else int(end))
        for name, one in GENERATION.items()
        for end in one.slider_range or ()
    ],
)
def test_an_answer_at_the_end_of_a_slider_of_generation(
    field: str, end: float, photo: Image.Image, tiny_folder: Path
) -> None:
    """All settings of a run: transformers refuses 2 for 2.0 as temperature or penalty."""
    from sinkscope.attention_extractor import generate
    from sinkscope.config import ModelSettings
    from sinkscope.models.loading import load_model

    handle = load_model(ModelSettings(str(tiny_folder)))
    inputs = handle.prepare([photo], "What is it?")
    # Sampled, because otherwise most of these have no effect.
    values: dict[str, Any] = {"max_new_tokens": 3, "temperature": 1, "layers": (1,), field: end}
    trace = generate(handle, inputs, GenerationSettings(**values))
    assert 1 <= len(trace.tokens) <= values["max_new_tokens"]
    assert trace.settings[field] == end


@pytest.mark.tiny
@pytest.mark.parametrize(
    ("field", "end"),
    [(name, int(end)) for name, one in VAR.items() for end in one.slider_range or ()],
)
def test_an_answer_at_the_end_of_a_slider_of_var(
    field: str, end: int, photo: Image.Image, tiny_folder: Path
) -> None:
    from sinkscope.attention_extractor import compare
    from sinkscope.config import ModelSettings
    from sinkscope.models.loading import load_model

    handle = load_model(ModelSettings(str(tiny_folder)))
    inputs = handle.prepare([photo], "What is it?")
    if field == "tau":  # its slider ends at the model's own maximum
        end = min(end, math.isqrt(handle.info.hidden_size))
    var = VARSettings(**{"dims": (3,), "tau": 0.1, field: end})  # type: ignore[arg-type]
    pair = compare(handle, inputs, GenerationSettings(max_new_tokens=2), var)
    assert pair.var.var is not None and pair.var.var["settings"][field] == end
