"""Models with sinks written into their weights: for each cell it is known whether it is flagged."""

from __future__ import annotations

import dataclasses

import pytest

from sinkscope.models.loading import ModelHandle
from sinkscope.models.profiles import SinkProfile
from sinkscope.sinks.validating.settings import ValidateSettings
from sinkscope.sinks.validating.validate import validate
from tests.sinks.planted import Plant, painted_cells, painted_samples, planted

pytestmark = pytest.mark.tiny
DIMS, DECOYS = (5, 40), (11,)
SETTINGS = ValidateSettings(
    answer_tokens=3,
    random_draws=2,
    dims_draws=2,
    bootstrap=200,
    sweep_samples=1,
    top_percent=10.0,
    max_flagged=0.3,
)


@pytest.fixture(scope="module")
def handle(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return planted(tmp_path_factory.mktemp("planted"), Plant(DIMS, decoys=DECOYS, layer=1))


@pytest.fixture(scope="module")
def profile(handle: ModelHandle) -> SinkProfile:
    info = handle.info
    return SinkProfile(
        info.id, info.family, info.hidden_size, info.layers, DIMS, 5.0, "planted", "high"
    )


def test_planted_sinks_are_flagged_and_collect_attention(
    handle: ModelHandle, profile: SinkProfile
) -> None:
    samples = painted_samples(12, seed=7)
    made = validate(handle, profile, samples, SETTINGS, found_on=())
    painted = [len(painted_cells(one.open_images()[0])) for one in samples]
    assert [one.hidden for one in made.samples] == painted
    for layer in made.layers:
        if layer.layer <= 1:  # the MLP of layer 1 makes them
            assert layer.flagged == 0 and layer.attention == 0.0
        else:
            assert layer.flagged == sum(painted), layer
            assert layer.precision == 1.0, layer
            assert layer.flagged_top == layer.flagged, "each is among the most attended"
    lift, random_lift = made.agreement.lift, made.agreement.random_lift
    assert lift is not None and random_lift is not None
    assert lift.low > 4 and random_lift.high < lift.low
    by = {one.name: one for one in made.hidden}
    assert by["sinks"].attention > 0.8 and by["random"].attention < 0.05
    # Their values are random and most attention is on them, so the outputs depend on them: judged
    # only by attention, this profile would look perfect.
    assert made.verdict.word == "contradicted", made.verdict.text


def test_always_on_dimensions_flag_everything(handle: ModelHandle, profile: SinkProfile) -> None:
    decoy = dataclasses.replace(profile, dims=DECOYS, tau=1.5)
    made = validate(handle, decoy, painted_samples(10, seed=7), SETTINGS, found_on=())
    assert made.verdict.word == "flags too much", made.verdict.text
    assert "random" not in made.samples[0].changes


def test_ordinary_dimensions_are_no_sinks(handle: ModelHandle, profile: SinkProfile) -> None:
    ordinary = dataclasses.replace(profile, dims=(20, 21), tau=1.5)
    made = validate(handle, ordinary, painted_samples(12, seed=7), SETTINGS, found_on=())
    assert made.verdict.word in ("not sinks", "flags nothing"), made.verdict.text
