"""The settings of Load, and the ranges of the page's controls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from sinkscope.config import AppSettings, GenerationSettings, ImageLimits, ModelSettings, Settings
from sinkscope.models.profiles import SinkProfile
from sinkscope.web.explore.model_events import following, loading, model_wanted
from sinkscope.web.page import build_app
from sinkscope.web.runs.loaded_model import LoadedModel
from sinkscope.web.runs.store import Run
from tests.web.scripted import ScriptedEngine, fake_handle
from tests.web.synthetic import make_pair

ROOT = Path(__file__).resolve().parents[2]
START = ModelSettings(
    "owner/name", "abc", device="cpu", dtype="float32", local_files_only=True, profile="p.toml"
)
OFFERED = ["demo", "other/name"]


def wanted(model: str | None, start: Settings | None = None, **given: Any) -> ModelSettings:
    return model_wanted(start or Settings(model=START), OFFERED, {"model": model, **given})


def test_the_starts_settings_stay() -> None:
    assert wanted("owner/name") == START
    another = wanted("third/name", device="auto", max_pixels=1000.0)
    assert another == ModelSettings(
        "third/name", device="auto", dtype="float32", max_pixels=1000, local_files_only=True
    )


@pytest.mark.parametrize(
    ("model", "given", "words"),
    [
        (
            "demo",
            {"max_pixels": 10**30},
            "max_pixels is 10+; allowed: a whole number up to 2000000",
        ),
        ("demo", {"min_pixels": 2_000_001}, "min_pixels is 2000001"),
        ("demo", {"min_pixels": float("inf")}, "min_pixels is inf"),
        ("demo", {"max_pixels": -1}, "max_pixels is -1"),
        ("demo", {"device": "tpu"}, "device is 'tpu'"),
        (None, {}, "model is ''"),
    ],
)
def test_mistakes_are_named(model: str | None, given: dict[str, Any], words: str) -> None:
    start = Settings(model=START, images=ImageLimits(max_megapixels=2.0))
    with pytest.raises(ValueError, match=words):
        wanted(model, start, **given)


def test_the_starts_own_pixels_are_allowed() -> None:
    start = Settings(
        model=ModelSettings(max_pixels=5_000_000), images=ImageLimits(max_megapixels=2.0)
    )
    assert wanted("demo", start, max_pixels=5_000_000).max_pixels == 5_000_000


def test_other_machines_may_choose_only_what_is_offered() -> None:
    start = Settings(model=START, app=AppSettings(host="0.0.0.0", auth="me:secret"))
    assert wanted("demo", start).model == "demo"
    assert wanted("owner/name", start) == START
    seen: list[ModelSettings] = []
    loaded = LoadedModel(lambda settings, on_progress: seen.append(settings) or fake_handle())
    load = loading(loaded, start, OFFERED)
    for model in ("/etc", "third/name", "../demo"):
        with pytest.raises(gr.Error, match="allowed: demo, other/name, owner/name"):
            list(load(model=model))
    assert seen == []
    list(load(model="demo"))
    assert [settings.model for settings in seen] == ["demo"]


def test_other_machines_do_not_learn_which_folders_exist(tmp_path: Path) -> None:
    start = Settings(model=START, app=AppSettings(host="0.0.0.0", auth="me:secret"))
    said = set()
    for model in (tmp_path, tmp_path / "missing", ROOT / "demo" / "model"):
        with pytest.raises(ValueError) as refused:
            wanted(str(model), start)
        said.add(str(refused.value).replace(repr(str(model)), "…"))
    assert len(said) == 1


@pytest.mark.parametrize(
    "generation",
    [
        GenerationSettings(),
        GenerationSettings(
            max_new_tokens=8192, temperature=10.0, top_p=0.001, repetition_penalty=10.0
        ),
        GenerationSettings(max_new_tokens=1, repetition_penalty=0.1, top_k=10**6, seed=10**12),
    ],
)
def test_every_valid_setting_is_in_its_controls_range(
    tmp_path: Path, generation: GenerationSettings
) -> None:
    settings = Settings(generation=generation, app=AppSettings(cache_dir=str(tmp_path)))
    example = Run(make_pair(), kind="example")
    app = build_app(settings, engine=ScriptedEngine().engine(), example=example, examples=[])
    controls = {
        block.label: block
        # The form is made first; the API's arguments and the other tab have such names too.
        for block in reversed(list(app.blocks.blocks.values()))
        if isinstance(block, gr.Slider | gr.Number)
    }
    for label, setting in (
        ("max new tokens", "max_new_tokens"),
        ("temperature", "temperature"),
        ("top p", "top_p"),
        ("top k", "top_k"),
        ("repetition penalty", "repetition_penalty"),
        ("seed", "seed"),
    ):
        control, value = controls[label], getattr(generation, setting)
        assert control.value == value
        assert control.preprocess(value) == value


def test_a_models_high_tau_widens_the_slider() -> None:
    handle = fake_handle()
    handle.profile = SinkProfile("fake", "none", 16384, 6, (3, 5), 88.5, "made up", "low")
    loaded = LoadedModel()
    loaded.use(handle)
    tau = list(following(loaded)())[-1][3]
    assert (tau["value"], tau["maximum"]) == (88.5, 89)
