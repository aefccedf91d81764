"""The bundled model: every experiment with its defaults, and known facts about its training."""

from __future__ import annotations

import fnmatch
import json
import re
from typing import Any

import pytest

from sinkscope.cli.experiment_docs import RUNS, replaced, with_layer
from sinkscope.cli.sinks_data import read_data
from sinkscope.experiments.catalogue import EXPERIMENTS, experiment_named
from sinkscope.experiments.figures import draw
from sinkscope.experiments.result import Result
from sinkscope.experiments.run import run_experiment
from sinkscope.experiments.settings import StudySettings
from sinkscope.models.loading import ModelHandle, load_model
from sinkscope.sinks.settings import SampleChoice
from sinkscope.utils import PROJECT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def handle() -> ModelHandle:
    return load_model("demo", device="cpu")


@pytest.fixture(scope="module")
def results(handle: ModelHandle) -> dict[str, Result]:
    samples = read_data(SampleChoice("demo", 5), 0).samples
    asked = StudySettings(bootstrap=100, controls=1)
    made: dict[str, Result] = {}
    for name, own, _ in RUNS:
        settings = experiment_named(name).settings(**with_layer(own, made.get("scan")))
        made[name] = run_experiment(handle, name, samples, settings, asked)
    return made


def test_every_experiment_is_shown_in_the_documents() -> None:
    assert [name for name, _, _ in RUNS] == [experiment.name for experiment in EXPERIMENTS]
    page = (PROJECT / "docs" / "experiments.md").read_text(encoding="utf-8")
    for name, _, charts in RUNS:
        new = replaced(page, name, "said\n")
        assert f"<!-- bundled: {name} -->\nsaid\n<!-- end -->" in new
        for chart in charts:
            file = f"experiment_{name}_{chart}.png".replace("-", "_")
            (shown,) = fnmatch.filter(re.findall(r"\(images/([^)]*)\)", page), file)
            assert (PROJECT / "docs" / "images" / shown).is_file()


def test_all_of_it_is_plain_and_can_be_drawn(results: dict[str, Result]) -> None:
    for result in results.values():
        plain = json.loads(json.dumps(result.as_dict(), allow_nan=False))
        assert plain["groups"] and plain["findings"]["tables"]
        assert result.findings.summary
        for chart in result.findings.charts:
            draw(chart, result.provenance())


def test_what_the_bundled_model_is_known_for(results: dict[str, Result]) -> None:
    """Its training encouraged sinks on dims 17 and 101 (demo/recipe.py)."""

    def values(name: str) -> Any:
        return results[name].findings.values

    assert (values("scan")["part"], values("scan")["layer"]) == ("mlp", 0)
    assert values("decompose-output")["dims"] == [17, 101]
    assert values("vision-or-text")["origin"] == "language model"
    assert len(values("mlp-subspace")["top"]) > 4  # many neurons make them, not one
    for name in ("ablate-mlp", "decompose-mlp-in"):
        verdict = results[name].findings.verdict
        assert verdict is not None and verdict.word == "negative"
        assert values(name)["removed"] < 0.5  # so the strongest few of them do not carry the sinks
    for way in values("lower-attention").values():
        assert abs(way["change"]) < 0.05
