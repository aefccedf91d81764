"""The file of one sample's statistics: its description of the sample is checked like its
numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load, save

from sinkscope.sinks.finding.find import find
from sinkscope.sinks.finding.stats import DamagedStatsError, SampleStats
from sinkscope.sinks.settings import FindSettings
from tests.sinks.planted import Plant, painted_samples, planted

pytestmark = pytest.mark.tiny


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("stats")
    handle = planted(folder / "model", Plant((7, 30), seed=2, layers=4))
    settings = FindSettings(bootstrap=200, halves=20)
    find(handle, painted_samples(1), settings, work=folder / "work")
    (path,) = (folder / "work").rglob("*.st")
    return path.read_bytes()


def described(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def rewrite(path: Path, measured: bytes, about: dict[str, str]) -> str:
    path.write_bytes(save(load(measured), about))
    return about["key"]


def test_a_changed_description_is_found(tmp_path: Path, measured: bytes) -> None:
    path = tmp_path / "a.st"
    path.write_bytes(measured)
    about = described(path)
    name, fingerprint, images, layers, grids = json.loads(about["sample"])
    SampleStats.open(path, about["key"])
    for sample in (
        ["other", fingerprint, images, layers, grids],
        [name, fingerprint, images, layers[::-1], grids],
        [name, fingerprint, images, layers, [[c, r] for r, c in grids]],
        [],
    ):
        key = rewrite(path, measured, {**about, "sample": json.dumps(sample)})
        with pytest.raises(DamagedStatsError, match="checksum does not fit"):
            SampleStats.open(path, key)


def test_a_file_from_before_the_description_had_a_checksum_opens(
    tmp_path: Path, measured: bytes
) -> None:
    path = tmp_path / "a.st"
    path.write_bytes(measured)
    about = described(path)
    right = SampleStats.open(path, about["key"])
    del about["sample_checksum"]
    again = SampleStats.open(path, rewrite(path, measured, about))
    assert (again.id, again.layers, again.grids) == (right.id, right.layers, right.grids)
    for text in ("", "{", "[1]", "7"):
        key = rewrite(path, measured, {**about, "sample": text})
        with pytest.raises(DamagedStatsError):
            SampleStats.open(path, key)
