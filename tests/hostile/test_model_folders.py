"""Files of a model's folder come from outside: whoever shares a checkpoint chooses them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from sinkscope.config import ModelSettings
from sinkscope.models.loading import read_configuration
from sinkscope.models.source import ModelError
from sinkscope.models.weights import weight_files
from tests.hostile.corpus import json_bombs
from tests.hostile.limits import bounded_memory, refused_or_read


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "place" / "model"))


@pytest.mark.tiny
def test_a_config_that_is_damaged(folder: Path) -> None:
    file = folder / "config.json"
    settings = ModelSettings("model")
    for text in json_bombs().values():
        file.write_bytes(text)
        with bounded_memory():
            said = refused_or_read(lambda: read_configuration(settings, folder), folder.parent)
        assert said.startswith("The config.json of model cannot be used: "), said


@pytest.mark.tiny
def test_a_pipe_among_the_weights_is_refused_at_once(folder: Path) -> None:
    (file,) = folder.glob("*.safetensors")
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ModelError) as caught:
        weight_files("model", folder)
    assert str(folder.parent) not in str(caught.value)


@pytest.mark.tiny
def test_weights_whose_header_is_larger_than_the_file(folder: Path) -> None:
    (file,) = folder.glob("*.safetensors")
    for length in (2**63, 10**12, 5, 0):
        file.write_bytes(length.to_bytes(8, "little") + b"{}")
        with bounded_memory():
            assert refused_or_read(lambda: weight_files("model", folder), folder.parent)
