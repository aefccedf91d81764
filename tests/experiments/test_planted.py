"""A mechanism written into a model is found and named as the cause; without one, none is found.

`tests.sinks.planted` writes it: one neuron of an MLP, whose gate and up rows both equal a direction
that painted cells have, writes massive values, and the keys of later layers use them to attract
attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from sinkscope.experiments.neurons import NoNeuronsError
from sinkscope.experiments.result import Result
from sinkscope.experiments.run import run_experiment
from sinkscope.experiments.settings import (
    AblateMLPSettings,
    DecomposeMLPInSettings,
    MLPSubspaceSettings,
    ScanSettings,
    SinkTokensSettings,
    StudySettings,
    VisionOrTextSettings,
)
from sinkscope.models.loading import ModelHandle
from tests.experiments.planted_text import planted_text, prompts
from tests.sinks.planted import Plant, painted_samples, planted

pytestmark = pytest.mark.tiny
PLANTS = (
    Plant((5, 33), seed=0, layer=1),
    Plant((12,), seed=1, layer=2, decoys=(20,)),
    Plant((7, 50, 61), seed=2, layer=0, hidden=96, first=(3,)),
)
NOTHING = Plant((), seed=4)
SAMPLES = painted_samples(8, seed=5)


@dataclass(frozen=True)
class Made:
    handle: ModelHandle
    plant: Plant

    def run(self, name: str, settings: Any, **more: Any) -> Result:
        # Sinks are detected by the attention they receive; the experiment has to find their cause.
        asked = {"sinks_by": "attention", "controls": 2, **more}
        return run_experiment(self.handle, name, SAMPLES, settings, StudySettings(**asked))


@pytest.fixture(scope="module", params=PLANTS, ids=lambda plant: f"seed{plant.seed}")
def planted_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    plant: Plant = request.param
    return Made(planted(tmp_path_factory.mktemp("planted"), plant), plant)


@pytest.fixture(scope="module")
def nothing(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Later layers look at the painted cells, but no MLP makes them."""
    return Made(planted(tmp_path_factory.mktemp("nothing"), NOTHING), NOTHING)


def test_the_scan_names_the_layer(planted_model: Made) -> None:
    values = planted_model.run("scan", ScanSettings()).findings.values
    assert (values["part"], values["layer"]) == ("mlp", planted_model.plant.layer)


def test_the_subspace_is_the_neuron(planted_model: Made) -> None:
    result = planted_model.run(
        "mlp-subspace", MLPSubspaceSettings(layer=planted_model.plant.layer or 0)
    )
    assert result.findings.values["top"] == [0]
    assert result.findings.verdict is not None and result.findings.verdict.specific


def test_the_residual_stream_gets_the_dimensions_from_that_mlp(planted_model: Made) -> None:
    asked = MLPSubspaceSettings(layer=planted_model.plant.layer or 0, mlp="residual")
    result = planted_model.run("mlp-subspace", asked)
    assert set(result.findings.values["dims"]) & set(planted_model.plant.dims)
    assert f"made by the MLP of layer {planted_model.plant.layer}" in result.findings.summary[0]


@pytest.mark.parametrize("what", ["direction", "magnitude"])
def test_ablation_is_causal_and_controls_are_not(planted_model: Made, what: str) -> None:
    result = planted_model.run(
        "ablate-mlp", AblateMLPSettings(layer=planted_model.plant.layer or 0, what=what)
    )
    found, verdict = result.findings.values, result.findings.verdict
    assert verdict is not None and verdict.word == "positive", verdict
    assert found["removed"] >= 0.8
    assert all(abs(control) <= 0.1 for control in found["controls"].values())
    assert len(found["controls"]) == (2 if what == "direction" else 1)


def test_the_input_direction_is_found_and_causal(planted_model: Made) -> None:
    result = planted_model.run(
        "decompose-mlp-in", DecomposeMLPInSettings(layer=planted_model.plant.layer or 0)
    )
    found, verdict = result.findings.values, result.findings.verdict
    layer = planted_model.handle.model.model.language_model.layers[planted_model.plant.layer or 0]
    row = layer.mlp.gate_proj.weight[0].double()
    direction = torch.tensor(found["direction"], dtype=torch.float64)
    assert float(direction @ (row / row.norm())) >= 0.99
    assert verdict is not None and verdict.word == "positive", verdict
    assert found["effective_rank"] == pytest.approx([1, 1])


def test_they_do_not_come_from_the_vision_tower(planted_model: Made) -> None:
    result = planted_model.run(
        "vision-or-text", VisionOrTextSettings(), dims=planted_model.plant.dims
    )
    assert "language model" in result.findings.values["origin"]


def test_those_of_the_vision_tower_do(tmp_path: Path) -> None:
    plant = Plant((9, 40), seed=3, layer=None)
    planted_model = Made(planted(tmp_path, plant), plant)
    result = planted_model.run("vision-or-text", VisionOrTextSettings())
    assert result.findings.values["origin"] == "vision tower"
    assert set(plant.dims) <= set(result.findings.values["dims"])
    scan = planted_model.run("scan", ScanSettings()).findings.values
    assert (scan["part"], scan["layer"]) == ("input", 0)


def test_their_words_give_them_away(planted_model: Made) -> None:
    result = planted_model.run("sink-tokens", SinkTokensSettings())
    assert result.findings.verdict is not None and result.findings.verdict.specific


def test_where_nothing_is_planted_nothing_is_found(nothing: Made) -> None:
    values = nothing.run("scan", ScanSettings()).findings.values
    assert values["part"] is None
    for layer in range(NOTHING.layers - 1):
        subspace = nothing.run("mlp-subspace", MLPSubspaceSettings(layer=layer))
        verdict = subspace.findings.verdict
        assert verdict is not None and verdict.word in ("negative", "open")
        if not subspace.findings.values["top"]:
            with pytest.raises(NoNeuronsError, match=r"top neurons are none.*verdict negative"):
                nothing.run("ablate-mlp", AblateMLPSettings(layer=layer))
            continue
        # A few neurons react to the painted pattern, but they do not cause the sinks.
        ablated = nothing.run("ablate-mlp", AblateMLPSettings(layer=layer)).findings.verdict
        assert ablated is not None and ablated.word == "negative"


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_where_nothing_is_planted_the_verdict_is_negative(nothing: Made, layer: int) -> None:
    """Also if the user insists on a few neurons that hold little of the energy."""
    for name, settings in (
        ("ablate-mlp", AblateMLPSettings(layer=layer, top=2, min_share=0.0)),
        ("ablate-mlp", AblateMLPSettings(layer=layer, what="magnitude")),
        ("decompose-mlp-in", DecomposeMLPInSettings(layer=layer, top=2, min_share=0.0)),
    ):
        verdict = nothing.run(name, settings).findings.verdict
        assert verdict is not None and verdict.causal is False
        assert verdict.word == "negative", (name, verdict)


# --- text models: the first token is the sink -----------------------------------------------------


def run_text(handle: ModelHandle, name: str, settings: Any) -> Result:
    asked = StudySettings(controls=2, bootstrap=200)
    return run_experiment(handle, name, prompts(8, seed=3), settings, asked)


@pytest.mark.parametrize(("seed", "layer"), [(0, 1), (1, 2)])
def test_a_text_models_first_token(tmp_path: Path, seed: int, layer: int) -> None:
    handle = planted_text(tmp_path, "qwen2", seed, layer)
    values = run_text(handle, "scan", ScanSettings()).findings.values
    assert (values["part"], values["layer"]) == ("mlp", layer)
    subspace = run_text(handle, "mlp-subspace", MLPSubspaceSettings(layer=layer)).findings
    assert subspace.values["top"] == [0]
    for name, settings in (
        ("ablate-mlp", AblateMLPSettings(layer=layer)),
        ("decompose-mlp-in", DecomposeMLPInSettings(layer=layer)),
    ):
        found = run_text(handle, name, settings).findings
        assert found.verdict is not None and found.verdict.word == "positive", found.verdict
    row = handle.stack.mlp(layer).gate.weight[0].double()
    direction = torch.tensor(found.values["direction"], dtype=torch.float64)
    assert float(direction @ (row / row.norm())) >= 0.99


def test_a_neuron_without_a_gate(tmp_path: Path) -> None:
    handle = planted_text(tmp_path, "gpt2", 2, 1)
    values = run_text(handle, "scan", ScanSettings()).findings.values
    assert (values["part"], values["layer"]) == ("mlp", 1)
    subspace = run_text(handle, "mlp-subspace", MLPSubspaceSettings(layer=1)).findings
    assert subspace.values["top"] == [0] and subspace.verdict is not None
    found = run_text(handle, "decompose-mlp-in", DecomposeMLPInSettings(layer=1)).findings
    row = handle.stack.mlp(1).fc.weight[0].double()
    direction = torch.tensor(found.values["direction"], dtype=torch.float64)
    assert float(direction @ (row / row.norm())) >= 0.99
    assert found.verdict is not None and found.verdict.specific


def test_a_text_model_with_nothing_planted(tmp_path: Path) -> None:
    handle = planted_text(tmp_path, "qwen2", 3, None)
    assert run_text(handle, "scan", ScanSettings()).findings.values["part"] is None
    for layer in range(4):
        settings = AblateMLPSettings(layer=layer, top=2, min_share=0.0)
        verdict = run_text(handle, "ablate-mlp", settings).findings.verdict
        assert verdict is not None and verdict.word == "negative", verdict
