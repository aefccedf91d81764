"""A mechanism planted in text models of each family, with and without a gate, is found there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sinkscope.experiments.result import Findings
from sinkscope.experiments.run import run_experiment
from sinkscope.experiments.settings import (
    AblateMLPSettings,
    DecomposeMLPInSettings,
    MLPSubspaceSettings,
    ScanSettings,
    StudySettings,
)
from sinkscope.models.loading import ModelHandle
from tests.experiments.planted_families import Mechanism, plant, samples

pytestmark = pytest.mark.tiny
PLANTED = (
    Mechanism("llama", 3, 48, 48, 4, 1, 1, (31, 5), 20, -60.0),  # two neurons of few
    Mechanism("mistral", 4, layers=5, layer=2, neurons=(101,), up=-1.0, value=200.0),
    Mechanism("qwen3", 5, kv_heads=4, layer=0, dim=40, strength=6.0),
    Mechanism("gpt2", 6, inner=100, neurons=(63, 9), value=-40.0, strength=3.0),
    Mechanism("gpt_neox", 7, 96, 160, layer=2, neurons=(150,), dim=3, strength=2.0),
)


def found(handle: ModelHandle, family: str, name: str, settings: Any) -> Findings:
    asked = StudySettings(controls=2, bootstrap=200)
    return run_experiment(handle, name, samples(family), settings, asked).findings


@pytest.mark.parametrize("asked", PLANTED, ids=lambda asked: asked.family)
def test_a_planted_mechanism_is_found_and_is_the_cause(tmp_path: Path, asked: Mechanism) -> None:
    handle, direction = plant(tmp_path, asked)
    layer = asked.layer or 0
    scan = found(handle, asked.family, "scan", ScanSettings(print=("attn",)))
    assert scan.values == {"part": "mlp", "layer": layer}, scan.summary
    subspace = found(handle, asked.family, "mlp-subspace", MLPSubspaceSettings(layer=layer))
    assert set(subspace.values["top"]) == set(asked.neurons), subspace.summary
    for name, settings in (
        ("ablate-mlp", AblateMLPSettings(layer=layer)),
        ("decompose-mlp-in", DecomposeMLPInSettings(layer=layer)),
    ):
        causal = found(handle, asked.family, name, settings)
        assert causal.verdict is not None and causal.verdict.word == "positive", causal.verdict
        assert all(abs(control) <= 0.1 for control in causal.values["controls"].values())
        if name == "ablate-mlp":  # the massive value is still in the stream one layer later
            table = next(t for t in causal.tables if t.name == "one_layer_at_a_time")
            first = dict(zip(table.columns, table.rows[0], strict=True))
            assert first["layer"] == layer + 1
            assert first["removed"] >= 0.8 and abs(first["random"]) <= 0.2, first
    cosine = sum(a * b for a, b in zip(causal.values["direction"], direction.tolist(), strict=True))
    assert cosine >= 0.99


@pytest.mark.parametrize(
    ("family", "seed", "noise"), [("qwen2", 977, 0.02), ("llama", 1, 0.05), ("gpt2", 2, 0.05)]
)
def test_without_a_sink_no_part_makes_one(
    tmp_path: Path, family: str, seed: int, noise: float
) -> None:
    """The first token attends only to itself: its attention output is longer than the averages of
    others, but nothing attends to it."""
    asked = Mechanism(family, seed, 32, 64, 4, 1, layer=None, noise=noise)
    handle, _ = plant(tmp_path, asked)
    scan = found(handle, family, "scan", ScanSettings(print=("hidden",)))
    assert scan.values == {"part": None, "layer": None}, scan.summary
