"""A GPU's measurements of a whole batch equal a CPU's, sample by sample; and their cost in
operations."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import sinkscope.sinks.finding.batch
from sinkscope.models import kernels
from sinkscope.models.loading import ModelHandle
from sinkscope.sinks.finding import measure as measuring
from sinkscope.sinks.finding.find import find
from sinkscope.sinks.finding.measure import measure, samples_at_once
from sinkscope.sinks.finding.stats import SampleStats
from sinkscope.sinks.samples import Sample
from sinkscope.sinks.settings import AUTO_SAMPLES, FindSettings, TokensBy
from tests.operations import Operations
from tests.sinks.planted import Plant, painted_samples, planted

pytestmark = pytest.mark.tiny
PLANT = Plant((7, 30), seed=2, decoys=(40, 41), first=(20,), layers=5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return planted(tmp_path_factory.mktemp("planted"), PLANT)


@pytest.fixture(scope="module")
def samples(photo: Image.Image) -> list[Sample]:
    """Of different lengths, one with two images of different sizes, one photo without a sink."""
    two = tuple(sample.images[0] for sample in painted_samples(2, seed=9))
    return [
        *painted_samples(2),
        Sample("two", (two[0], photo.resize((84, 112))), "What is here?"),
        Sample("photo", (photo,), "Is there anything in this picture that you do not know?"),
        *painted_samples(3, seed=5)[2:],
    ]


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "is_on_host", lambda device: False)


def close(ours: SampleStats, plain: SampleStats) -> None:
    assert (ours.id, ours.layers, ours.grids) == (plain.id, plain.layers, plain.grids)
    for name in (field.name for field in dataclasses.fields(plain) if field.type == "Tensor"):
        mine, own = getattr(ours, name), getattr(plain, name)
        assert (mine.dtype, mine.shape) == (own.dtype, own.shape), name
        if mine.is_floating_point():
            largest = float(own.abs().max())
            torch.testing.assert_close(
                mine, own, rtol=1e-6, atol=1e-6 * max(1.0, largest), msg=name
            )
        elif name != "top_dims":  # equal values may come in either order
            assert torch.equal(mine, own), name


@pytest.mark.parametrize("tokens_by", ["received", "after_image", "last_row", "norm"])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_the_same_figures(
    model: ModelHandle,
    samples: list[Sample],
    tokens_by: TokensBy,
    size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = FindSettings(tokens_by=tokens_by, top_percent=4.0)
    plain = [measure(model, [sample], settings)[0] for sample in samples]
    as_on_a_gpu(monkeypatch)
    for low in range(0, len(samples), size):
        found = measure(model, samples[low : low + size], settings)
        for ours, own in zip(found, plain[low : low + size], strict=True):
            assert isinstance(ours, SampleStats) and isinstance(own, SampleStats)
            close(ours, own)
    assert any((own.group == 2).any() for own in plain if isinstance(own, SampleStats))


@pytest.mark.parametrize("room", [1 << 12, 1 << 16, 1 << 26])
def test_blocks_do_not_matter(
    model: ModelHandle, samples: list[Sample], room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = [measure(model, [sample], FindSettings())[0] for sample in samples]
    as_on_a_gpu(monkeypatch)
    monkeypatch.setattr(sinkscope.sinks.finding.batch, "block_bytes", lambda device: room)
    for ours, own in zip(measure(model, samples, FindSettings()), plain, strict=True):
        assert isinstance(ours, SampleStats) and isinstance(own, SampleStats)
        close(ours, own)


def test_a_batch_takes_hardly_more_operations_than_a_sample(
    model: ModelHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In addition to a plain pass; one read at the end, whatever the number of layers."""
    as_on_a_gpu(monkeypatch)
    monkeypatch.setattr(sinkscope.sinks.finding.batch, "block_bytes", lambda device: 1 << 26)
    images = painted_samples(4)

    def counted(count: int, layers: tuple[int, ...]) -> Operations:
        settings = FindSettings(layers=layers)
        measure(model, images[:count], settings)
        with Operations() as operations:
            measure(model, images[:count], settings)
        return operations

    def a_layer(count: int) -> float:
        two, four = counted(count, (0, 1)), counted(count, (0, 1, 2, 3))
        assert four.reads == two.reads  # none a layer
        return (four.count - two.count) / 2

    assert a_layer(4) <= 118
    assert a_layer(4) - a_layer(1) <= 8


def test_where_no_batch_size_is_given(
    model: ModelHandle, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passes of some thousand tokens; samples that do not fit together are measured one by one."""
    real, passes = measuring._forward, []
    sizes: list[int] = []

    def forward(handle: Any, usable: Any, settings: FindSettings) -> Any:
        passes.append(len(usable))
        sizes.append(len(usable) * max(prompt.layout.length for _, prompt in usable))
        if len(usable) == len(samples):
            raise torch.OutOfMemoryError("made up")
        return real(handle, usable, settings)

    assert samples_at_once(FindSettings(), torch.device("cpu")) == 1
    assert samples_at_once(FindSettings(), torch.device("cuda")) == AUTO_SAMPLES
    assert samples_at_once(FindSettings(batch_size=3), torch.device("cuda")) == 3
    as_on_a_gpu(monkeypatch)
    plain = measure(model, samples, FindSettings(batch_size=8))
    monkeypatch.setattr(measuring, "_forward", forward)
    monkeypatch.setattr(measuring, "AUTO_TOKENS", 250)
    assert [one.id for one in measure(model, samples, FindSettings())] == [o.id for o in plain]
    assert sum(passes) == len(samples) > len(passes) > 1
    assert all(size <= 250 for count, size in zip(passes, sizes, strict=True) if count > 1)
    passes.clear()
    monkeypatch.setattr(measuring, "AUTO_TOKENS", 1 << 20)
    for ours, own in zip(measure(model, samples, FindSettings()), plain, strict=True):
        assert isinstance(ours, SampleStats) and isinstance(own, SampleStats)
        close(ours, own)
    assert passes == [len(samples), *[1] * len(samples)]
    with pytest.raises(torch.OutOfMemoryError):
        measure(model, samples, FindSettings(batch_size=8))


def test_finding_comes_to_the_same_on_both(
    model: ModelHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = FindSettings(bootstrap=200, halves=20)
    plain = find(model, painted_samples(5), settings)
    as_on_a_gpu(monkeypatch)
    ours = find(model, painted_samples(5), settings)
    assert ours.dims == plain.dims == (7, 30) and ours.tau == plain.tau
    assert ours.sink_layers == plain.sink_layers


def test_activations_that_overflow_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_a_gpu(monkeypatch)
    handle = planted(tmp_path, PLANT)
    handle.model.model.language_model.layers[1].mlp.down_proj.weight.data[[7, 30], 0] *= 3000
    handle.model.to(torch.float16)
    with pytest.raises(ValueError, match=r"In layer 2 of 000 .* not finite"):
        measure(handle, painted_samples(2), FindSettings())
