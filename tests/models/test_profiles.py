"""A profile is for one model: by its sizes and by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from sinkscope.models.loading import load_model
from sinkscope.models.profiles import DEMO, SinkProfile, check_fits
from sinkscope.models.source import ModelError

PROFILE = SinkProfile("Owner/Some-Model", "fam", 64, 4, (3, 9), 5.0, "someone", "low")

FILE = """
model = "{model}"
family = "qwen2_5_vl"
hidden_size = {hidden}
layers = 4
dims = [3, 9]
tau = 5.0
source = "a test"
confidence = "low"
"""


@pytest.mark.parametrize(
    "model", ["Owner/Some-Model", "owner/some-model", "/data/models/Some-Model", "Some-Model"]
)
def test_it_fits_its_model_wherever_that_lies(model: str) -> None:
    check_fits(PROFILE, model, "fam", 64, 4)


def test_the_bundled_model_and_its_folder_are_one() -> None:
    bundled = SinkProfile("demo", "fam", 64, 4, (3, 9), 5.0, "someone", "low")
    check_fits(bundled, str(DEMO), "fam", 64, 4)


@pytest.mark.parametrize("sizes", [("other", 64, 4), ("fam", 128, 4), ("fam", 64, 5)])
def test_other_sizes_are_refused_by_name_and_size(sizes: tuple[str, int, int]) -> None:
    with pytest.raises(ValueError, match="Some-Model is for fam with hidden size 64 and 4 layers"):
        check_fits(PROFILE, "Owner/Some-Model", *sizes)


def test_another_model_of_the_same_sizes_is_refused_by_name(tmp_path: Path) -> None:
    for model in ("Owner/Tuned-Model", str(tmp_path), "demo"):
        with pytest.raises(ValueError, match="is of Owner/Some-Model, and the model is") as refused:
            check_fits(PROFILE, model, "fam", 64, 4)
        assert f'model = "{model}"' in str(refused.value)  # how to fix it


@pytest.mark.tiny
def test_a_file_takes_the_place_of_the_models_own(tiny_folder: Path, tmp_path: Path) -> None:
    from sinkscope.config import ModelSettings

    path = tmp_path / "profile.toml"
    settings = ModelSettings(str(tiny_folder), device="cpu", profile=str(path))
    path.write_text(FILE.format(model=tiny_folder.name, hidden=64))
    handle = load_model(settings)
    assert handle.profile is not None and handle.profile.dims == (3, 9)

    path.write_text(FILE.format(model=tiny_folder.name, hidden=96))
    with pytest.raises(ModelError, match=r"hidden size 96 .*with hidden size 64"):
        load_model(settings)
    path.write_text(FILE.format(model="another", hidden=64))
    with pytest.raises(ModelError, match="is of another, and the model is"):
        load_model(settings)
    path.unlink()
    with pytest.raises(ModelError, match=r"profile\.toml cannot be read"):
        load_model(settings)
