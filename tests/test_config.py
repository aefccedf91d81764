"""Settings refuse bad values, with the setting's name, its value and what is allowed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sinkscope.experiments.region_settings
import sinkscope.experiments.settings
import sinkscope.sinks.settings
import sinkscope.sinks.validating.settings
from sinkscope import config
from sinkscope.config import (
    AppSettings,
    GenerationSettings,
    ImageLimits,
    ModelSettings,
    Settings,
    VARSettings,
    from_mapping,
    read_settings,
)
from sinkscope.experiments.catalogue import EXPERIMENTS
from sinkscope.experiments.region_settings import RegionSettings
from sinkscope.experiments.settings import StudySettings
from sinkscope.models.profiles import SinkProfile
from sinkscope.setting import REQUIRED
from sinkscope.sinks.settings import EngineSettings, FindSettings, SampleChoice
from sinkscope.sinks.validating.settings import ValidateSettings

NAN = float("nan")


@pytest.mark.parametrize(
    ("cls", "wrong"),
    [
        (ModelSettings, {"model": ""}),
        (ModelSettings, {"model": "  "}),
        (ModelSettings, {"device": "gpu"}),
        (ModelSettings, {"device": "cuda:x"}),
        (ModelSettings, {"device": "cpu:0"}),
        (ModelSettings, {"dtype": "int8"}),
        (ModelSettings, {"min_pixels": 0}),
        (ModelSettings, {"max_pixels": True}),
        (ModelSettings, {"min_pixels": 10, "max_pixels": 9}),
        (GenerationSettings, {"max_new_tokens": 0}),
        (GenerationSettings, {"max_new_tokens": 8193}),
        (GenerationSettings, {"max_new_tokens": 1.5}),
        (GenerationSettings, {"temperature": -0.1}),
        (GenerationSettings, {"temperature": NAN}),
        (GenerationSettings, {"top_p": 0}),
        (GenerationSettings, {"top_p": 1.1}),
        (GenerationSettings, {"top_k": -1}),
        (GenerationSettings, {"repetition_penalty": 0.0}),
        (GenerationSettings, {"seed": -1}),
        (GenerationSettings, {"seed": 2**63}),
        (GenerationSettings, {"decoding": "theirs"}),
        (GenerationSettings, {"decoding": ["ours"]}),
        (GenerationSettings, {"decoding": "checkpoint", "temperature": 0.5}),
        (GenerationSettings, {"decoding": "checkpoint", "top_p": 0.5}),
        (GenerationSettings, {"decoding": "checkpoint", "top_k": 5}),
        (GenerationSettings, {"decoding": "checkpoint", "repetition_penalty": 1.05}),
        (GenerationSettings, {"layers": ()}),
        (GenerationSettings, {"layers": (1, 1)}),
        (GenerationSettings, {"heads": (-1,)}),
        (GenerationSettings, {"heads": (True,)}),
        (VARSettings, {"dims": ()}),
        (VARSettings, {"dims": (1, 1)}),
        (VARSettings, {"dims": (1,), "keep": 1.1}),
        (VARSettings, {"dims": (1,), "max_sink_share": -0.1}),
        (VARSettings, {"dims": (1,), "min_image_mass": NAN}),
        (VARSettings, {"dims": (1,), "tau": -1}),
        (VARSettings, {"dims": (1,), "dialect": "mine"}),
        (VARSettings, {"dims": (1,), "control": "all"}),
        (VARSettings, {"dims": (1,), "layers": ()}),
        (ImageLimits, {"max_megapixels": 0}),
        (ImageLimits, {"max_bytes": 0}),
        (ImageLimits, {"max_aspect": 0.5}),
        (AppSettings, {"port": 70000}),
        (AppSettings, {"port": "80"}),
        (AppSettings, {"auth": "nobody"}),
        (AppSettings, {"auth": ":secret"}),
        (AppSettings, {"auth": "user:"}),
        (AppSettings, {"queue_size": 0}),
        (AppSettings, {"job_minutes": -1}),
    ],
)
def test_out_of_range_names_setting_and_value(cls: type, wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError) as caught:
        cls(**wrong)
    said = str(caught.value)
    assert said.endswith(".") and "\n" not in said
    assert any(name in said for name in wrong)
    assert "allowed" in said


@pytest.mark.parametrize(
    ("cls", "right"),
    [
        (ModelSettings, {"device": "cuda:12", "min_pixels": 9, "max_pixels": 9}),
        (GenerationSettings, {"max_new_tokens": 1, "layers": (0, 5), "heads": (0,)}),
        (GenerationSettings, {"top_p": 1, "temperature": 10, "seed": 2**63 - 1}),
        (GenerationSettings, {"decoding": "checkpoint", "seed": 3, "top_p": 1}),
        (VARSettings, {"dims": (0,), "keep": 0, "max_sink_share": 1, "tau": 0}),
        (AppSettings, {"host": "0.0.0.0", "auth": "me:se:cret", "port": 0}),
        (AppSettings, {"host": "::1"}),
    ],
)
def test_the_edges_are_allowed(cls: type, right: dict[str, object]) -> None:
    made = cls(**right)
    assert all(getattr(made, name) == value for name, value in right.items())


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        GenerationSettings().seed = 1  # type: ignore[misc]


def test_var_settings_take_lists() -> None:
    assert VARSettings(dims=[3, 1], layers=[2]) == VARSettings(dims=(3, 1), layers=(2,))  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.2", "example.com", "::"])
def test_an_address_that_others_reach_demands_auth(host: str) -> None:
    with pytest.raises(ValueError, match="needs auth"):
        AppSettings(host=host)


# --- the settings file ----------------------------------------------------------------------------


def test_a_file_sets_what_it_names_and_leaves_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(
        '[model]\nmodel = "some/model"\n[generation]\nlayers = [1, 2]\nmax_new_tokens = 9\n'
        "[app]\nport = 8000\n[images]\nmax_megapixels = 2.5\n"
    )
    read = read_settings(path)
    assert read.model == ModelSettings(model="some/model")
    assert read.generation == GenerationSettings(layers=(1, 2), max_new_tokens=9)
    assert read.app.port == 8000 and read.images.max_megapixels == 2.5


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("")
    assert read_settings(path) == Settings()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[modell]\n", r"a table \[modell\]; allowed: model, generation, images, app"),
        ("[model]\nname = 1\n", r"\[model\] has 'name'; allowed: model, revision"),
        ("[app]\nport = 'x'\n", r"\[app\]: port is 'x'"),
        ("model = 'demo'\n", r"\[model\] is 'demo'"),
        ("[model\n", "not valid TOML"),
        ("port = 1\n", r"a table \[port\]"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=says):
        read_settings(path)


def test_a_file_that_is_missing_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing\.toml cannot be read"):
        read_settings(tmp_path / "missing.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not valid TOML"):
        read_settings(tmp_path / "binary.toml")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ValueError, match=r"\[var\].*dims"):
        from_mapping(VARSettings, {}, "[var]")


def test_samples_and_engines_refuse_what_they_cannot_take() -> None:
    for cls, wrong in (
        (SampleChoice, {"data": "photos", "samples": 0}),
        (SampleChoice, {"data": " "}),
        (SampleChoice, {"data": "photos", "prompt": ""}),
        (EngineSettings, {"engine": "spark"}),
        (EngineSettings, {"workers": 0}),
    ):
        name = list(wrong)[-1]
        with pytest.raises(ValueError, match=f"{name} is .*; allowed: "):
            cls(**wrong)  # type: ignore[arg-type]


CHECKED = (
    ModelSettings, GenerationSettings, VARSettings, ImageLimits, AppSettings, FindSettings,
    SampleChoice, EngineSettings, ValidateSettings, RegionSettings, StudySettings,
    *(one.settings for one in EXPERIMENTS),
)  # fmt: skip
FIELDS = [
    (cls, one.name, str(one.type))
    for cls in CHECKED
    for one in dataclasses.fields(cls)
    if {"int", "float", "bool"} & set(str(one.type).split(" | "))
]


def instance(cls: type[Any], **values: Any) -> Any:
    needed: dict[type[Any], Any] = {VARSettings: {"dims": (1,)}, SampleChoice: {"data": "photos"}}
    required: dict[str, Any] = needed.get(cls, {})
    if any(one.name == "layer" and one.default is REQUIRED for one in dataclasses.fields(cls)):
        required = {"layer": 1}
    return cls(**{**required, **values})


def test_every_settings_class_is_in_the_list() -> None:
    there = {
        thing
        for module in (
            config,
            sinkscope.sinks.settings,
            sinkscope.sinks.validating.settings,
            sinkscope.experiments.settings,
            sinkscope.experiments.region_settings,
        )
        for thing in vars(module).values()
        if dataclasses.is_dataclass(thing) and isinstance(thing, type)
    }
    there -= {Settings, SinkProfile, sinkscope.experiments.settings._Shared}
    assert there == set(CHECKED)
    assert len(FIELDS) > 50


@pytest.mark.parametrize(("cls", "name", "kind"), FIELDS)
def test_numbers_become_those_that_the_field_says(cls: type[Any], name: str, kind: str) -> None:
    """Integers instead of floats, scalars of NumPy and torch, a float of a subclass."""
    wanted = {"float": float, "int": int, "bool": bool}[kind.split(" | ")[0]]
    usual = getattr(instance(cls), name)
    if usual is None:
        large = 100_000 if fits(cls, name, 100_000) else 10
        usual = {float: 1.0, int: large, bool: True}[wanted]
    given: list[Any] = [usual, np.asarray(usual)[()], np.asarray(usual), torch.tensor(usual)]
    if wanted is float:
        given += [np.float32(usual), np.float16(usual)]
        whole = [n for n in (0, 1, 2, 3, 10, 100) if fits(cls, name, n)]
        assert whole or name == "confidence"  # none lies in its range
        given += [one for n in whole for one in (n, np.int64(n), torch.tensor(n))]
    for value in given:
        settings = instance(cls, **{name: value})
        assert type(getattr(settings, name)) is wanted
        assert getattr(settings, name) == pytest.approx(float(value), rel=1e-3)
        json.dumps(dataclasses.asdict(settings), allow_nan=False)


def fits(cls: type[Any], name: str, value: int) -> bool:
    try:
        instance(cls, **{name: value})
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(("cls", "name", "kind"), FIELDS)
def test_what_is_no_number_is_refused_in_words(cls: type[Any], name: str, kind: str) -> None:
    wrong: list[Any] = ["1", b"1", [1.0], np.array([1.0]), object()]
    if not kind.startswith("bool"):
        wrong += [True, np.True_, -(10**400), NAN, np.float32("inf"), 1 + 0j]
    if kind.startswith("float"):
        wrong += [10**400]
    for value in wrong:
        with pytest.raises(ValueError, match=name):
            instance(cls, **{name: value})
