"""The memory of an experiment does not grow with its samples: it keeps no vector of the model's
width for each sample."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from sinkscope.experiments import streaming
from sinkscope.experiments.run import run_experiment
from sinkscope.experiments.settings import (
    AblateMLPSettings,
    CutEdgesSettings,
    DecomposeMLPInSettings,
    DecomposeOutputSettings,
    LowerAttentionSettings,
    MLPSubspaceSettings,
    ScanSettings,
    SinkTokensSettings,
    StudySettings,
)
from sinkscope.models.loading import ModelHandle
from tests.experiments.planted_text import planted_text, prompts

pytestmark = pytest.mark.tiny
WIDTHS = (64, 128)  # of the model below: hidden, and of its MLP
SAMPLES = 24


@pytest.fixture(scope="module")
def handle(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return planted_text(tmp_path_factory.mktemp("text"), "qwen2", 0, 1)


def held(known: set[int]) -> int:
    """Numbers in tensors that have an axis of the model's widths, without those `known`."""
    gc.collect()
    seen: dict[int, int] = {}
    for thing in gc.get_objects():
        if type(thing) is torch.Tensor and set(thing.shape) & set(WIDTHS):
            storage = thing.untyped_storage()
            if storage.data_ptr() not in known:
                seen[storage.data_ptr()] = storage.nbytes() // 8
    return sum(seen.values())


RUNS = (
    ("scan", ScanSettings()),
    ("decompose-output", DecomposeOutputSettings(1)),
    ("mlp-subspace", MLPSubspaceSettings(1)),
    ("mlp-subspace", MLPSubspaceSettings(1, "residual")),
    ("ablate-mlp", AblateMLPSettings(1, each_layer=False)),
    ("decompose-mlp-in", DecomposeMLPInSettings(1)),
    ("lower-attention", LowerAttentionSettings()),
    ("cut-edges", CutEdgesSettings()),
    ("sink-tokens", SinkTokensSettings()),
)


@pytest.mark.parametrize(("name", "settings"), RUNS, ids=lambda v: v if isinstance(v, str) else "")
def test_what_is_kept_does_not_grow_with_the_samples(
    handle: ModelHandle, monkeypatch: pytest.MonkeyPatch, name: str, settings: Any
) -> None:
    monkeypatch.setattr(streaming, "BLOCKS", 4)
    monkeypatch.setattr(streaming.Rows, "BLOCK", 4)
    gc.collect()
    known = {
        thing.untyped_storage().data_ptr()
        for thing in gc.get_objects()
        if type(thing) in (torch.Tensor, torch.nn.Parameter)  # others, of a compiler, have no data
    }
    kept: dict[str, dict[int, int]] = {}

    def tell(done: int, total: int, text: str) -> None:
        stage, _, sample = text.partition(": ")
        if sample in ("7", str(SAMPLES - 1)):
            kept.setdefault(stage, {})[int(sample)] = held(known)

    samples = prompts(SAMPLES, seed=3)
    asked = StudySettings(bootstrap=100, controls=1, answer_tokens=2)
    run_experiment(handle, name, samples, settings, asked, on_progress=tell)
    assert len(kept) > 1 or name in ("scan",), kept
    for stage, by_sample in kept.items():
        early, late = by_sample[7], by_sample[SAMPLES - 1]
        # One vector per sample would be 16 times 64 more numbers.
        assert late - early < 4 * max(WIDTHS), (stage, early, late)


def test_the_measure_sees_what_a_vector_a_sample_takes() -> None:
    before = held(set())
    rows = [torch.zeros(64) for _ in range(32)]
    assert held(set()) - before >= 32 * 64 // 2
    del rows
