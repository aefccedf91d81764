"""Properties that every parser keeps for all inputs, searched by hypothesis."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sinkscope.config import (
    AppSettings,
    GenerationSettings,
    ImageLimits,
    ModelSettings,
    Settings,
    VARSettings,
    from_mapping,
)
from sinkscope.evaluation.settings import RunSettings
from sinkscope.experiments.settings import ScanSettings, StudySettings
from sinkscope.records.formats import record_of
from sinkscope.records.record import RecordError
from sinkscope.records.values import listed
from sinkscope.setting import index_list, read_all, user_settings
from sinkscope.setting.reading import HIGHEST_INDEX
from sinkscope.sinks.settings import FindSettings
from sinkscope.untrusted import (
    DEEPEST,
    Bounds,
    UntrustedFileError,
    check_json,
    parse_json,
    parse_toml,
    walk,
)
from sinkscope.web.api.selection import ExportChoice, Selection
from sinkscope.web.evaluate.request import EvaluateRequest
from sinkscope.web.experiments.request import ExperimentRequest
from sinkscope.web.explore.model_events import model_wanted
from sinkscope.web.runs.form_values import control_values
from sinkscope.web.runs.request import Request, parse_indices
from sinkscope.web.server.bodies import Refused, parse
from sinkscope.web.sinks.request import SinksRequest
from tests.hostile.corpus import LISTS, SCALARS
from tests.hostile.limits import share

EACH = share(0.01, 30)
many = settings(
    max_examples=EACH,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
texts = st.text(max_size=40) | st.sampled_from([one for one in SCALARS if isinstance(one, str)])
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | texts
    | st.sampled_from(SCALARS) | st.sampled_from(LISTS)
)  # fmt: skip
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4)
)
WORDS = (
    "image", "images", "question", "answer", "answers", "conversations", "messages", "from",
    "value", "role", "content", "text", "type", "choices", "options", "label", "A", "B", "id",
    "history", "instruction", "input", "output", "caption", "bbox", "system", "image_url",
    "file_name",
)  # fmt: skip
rows = st.dictionaries(st.sampled_from(WORDS), values, max_size=6)
same = pytest.mark.parametrize


def finite(value: Any) -> bool:
    return all(not isinstance(one, float) or math.isfinite(one) for one, _ in walk(value))


@many
@given(values)
def test_what_is_sound_json_is_read_as_it_is(value: Any) -> None:
    text = json.dumps(value)
    try:
        made = parse_json(text)
    except UntrustedFileError:
        assert not finite(value) or "e+" in text or "E" in text or len(text) > 4000
    else:
        assert finite(value) and json.dumps(made) == text
    assert json.dumps(parse_json(text, Bounds(infinite=True))) == text


@many
@given(st.text(alphabet='[]{}",:\\ 1enulaNI.-', max_size=60) | texts)
def test_any_text_is_json_or_refused(text: str) -> None:
    try:
        made = parse_json(text)
    except UntrustedFileError:
        return
    assert made == json.loads(text)


@many
@given(st.integers(1, 9), st.integers(1, 9), st.text(alphabet='[{"\\', max_size=8))
def test_levels_are_counted_and_texts_are_not(deep: int, allowed: int, text: str) -> None:
    value: Any = text
    for number in range(deep):
        value = [value] if number % 2 else {text: value}
    bounds = Bounds(levels=allowed)
    if deep <= allowed:
        check_json(json.dumps(value), bounds)
    else:
        with pytest.raises(UntrustedFileError, match="nested too deeply"):
            check_json(json.dumps(value), bounds)


@many
@given(st.binary(max_size=60) | st.text(alphabet='a=.[]{}"\n, 1#', max_size=60).map(str.encode))
def test_any_bytes_are_toml_or_refused(data: bytes) -> None:
    try:
        made = parse_toml(data)
    except UntrustedFileError:
        return
    assert isinstance(made, dict) and finite(made)


def test_levels_of_toml_are_bounded() -> None:
    for level in (DEEPEST - 1, DEEPEST + 1):
        text = b"a = " + b"[" * level + b"]" * level
        if level < DEEPEST:
            assert list(parse_toml(text)) == ["a"]
        else:
            with pytest.raises(UntrustedFileError, match="nested too deeply"):
                parse_toml(text)


@many
@given(st.binary(max_size=80) | values.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_json_or_refused(body: bytes) -> None:
    try:
        made = parse(body)
    except Refused as refusal:
        assert 400 <= refusal.status < 500 and refusal.words
        return
    assert json.dumps(made) and finite(made)


@many
@given(st.text(alphabet="0123456789-–, ٣²", max_size=20) | texts)
def test_any_text_is_a_list_of_indices_or_refused(text: str) -> None:
    try:
        made = index_list("layers", text)
    except ValueError as error:
        assert "layers" in str(error)
        return
    assert list(made) == sorted(set(made)) and 0 <= made[0] <= made[-1] <= HIGHEST_INDEX


@many
@given(values)
def test_indices_of_another_type_are_refused(value: Any) -> None:
    try:
        parse_indices("dims", value)
    except ValueError as error:
        assert "dims" in str(error)


@same(
    "cls", [GenerationSettings, VARSettings, ModelSettings, ImageLimits, AppSettings, FindSettings]
)
@many
@given(st.data())
def test_settings_of_any_type_are_made_or_refused(cls: type[Any], data: Any) -> None:
    names = [one.field for one in user_settings(cls)]
    said = data.draw(st.dictionaries(st.sampled_from(names), values, max_size=3))
    try:
        from_mapping(cls, said, "[x]")
    except ValueError as error:
        assert str(error)


@same("cls", [GenerationSettings, VARSettings, Selection, ExportChoice, RunSettings])
@many
@given(st.data())
def test_controls_of_any_type_are_read_or_refused(cls: type[Any], data: Any) -> None:
    names = [one.name for one in user_settings(cls)]
    said = data.draw(st.dictionaries(st.sampled_from(names), values, max_size=3))
    try:
        cls(**read_all(cls, said))
    except ValueError:
        return
    except TypeError as error:  # an argument that has no default
        assert "missing" in str(error)


def check_values(said: dict[str, Any]) -> None:
    Request(None, "", True, values=said).settings(Settings())


REQUESTS: dict[str, Callable[..., Any]] = {
    "sinks": lambda **said: SinksRequest(**said).check(),
    "evaluate": lambda **said: EvaluateRequest(**said).check(),
    "experiments": lambda **said: ExperimentRequest(**{"name": "scan", **said}).check(),
    "experiment": lambda **said: ExperimentRequest(
        "scan", experiment_settings=said, study=said
    ).check(),
    "generate": lambda **said: check_values(said),
    "load": lambda **said: model_wanted(Settings(), ["demo"], {"model": "demo", **said}),
    "form": lambda **said: control_values(said, None),
}
FIELDS = {
    "sinks": ("source", "prompt", "samples", "held_out", "top_percent", "seed"),
    "evaluate": (
        *("methods", "types", "source", "dims", "dims_of", "dims_tau", "questions", "keep", "tau"),
        "seed",
    ),
    "experiments": ("name", "source", "prompt", "samples"),
    "experiment": tuple(
        one.name for one in (*user_settings(ScanSettings), *user_settings(StudySettings))
    ),
    "generate": ("max_new_tokens", "temperature", "seed", "decoding", "top_k", "unknown"),
    "load": ("model", "revision", "device", "dtype", "min_pixels", "max_pixels"),
    "form": ("prompt", "compare", "same_text", "tau", "dims", "keep", "seed", "decoding"),
}


@same("name", list(REQUESTS))
@many
@given(st.data())
def test_forms_of_any_type_are_taken_or_refused(name: str, data: Any) -> None:
    said = data.draw(st.dictionaries(st.sampled_from(FIELDS[name]), values, max_size=3))
    try:
        REQUESTS[name](**said)
    except ValueError as error:
        assert str(error)


@many
@given(rows)
def test_any_row_asks_something_or_is_refused(row: dict[str, Any]) -> None:
    try:
        record_of(row, 1, "line 1")
    except RecordError as error:
        assert str(error)


@many
@given(st.text(alphabet="[]()'\"-+,1a{}: ", max_size=60).map(lambda text: f"[{text}]"))
def test_a_list_written_as_text_is_a_list_or_the_text(text: str) -> None:
    made = listed(text)
    assert made == text or isinstance(made, list)


@pytest.mark.parametrize("name", ["dims", "dims_of", "methods"])
def test_a_form_of_evaluate_names_what_is_no_text(name: str) -> None:
    for value in (None, 5, {"a": 1}):
        with pytest.raises(ValueError, match=rf"^{name} (is|has) "):
            EvaluateRequest(**{name: value}).check()  # type: ignore[arg-type]
