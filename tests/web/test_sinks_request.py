"""The samples that a press of Run selects, without a model."""

from __future__ import annotations

import pytest
from PIL import Image

from sinkscope.cli.sinks_data import read_data
from sinkscope.config import ImageLimits
from sinkscope.demo.check import CheckSettings
from sinkscope.demo.measure import FIRST_SINK_SCENE, SINK_SCENES, held_out_scenes, sink_scenes
from sinkscope.models.profiles import DEMO
from sinkscope.sinks.samples import image_digest
from sinkscope.sinks.settings import SampleChoice
from sinkscope.web.sinks.request import EXAMPLES, SinksRequest, draw_samples
from tests.web.image_openers import opener


def digests(seed: int) -> dict[str, tuple[str, ...]]:
    """By their names, the scenes that a seed draws: four to find on, three to validate on."""
    request = SinksRequest(EXAMPLES, samples=4, held_out=3, seed=seed)
    drawn = draw_samples(request, opener(), ImageLimits())
    assert [len(drawn.find.samples), len(drawn.validate.samples)] == [4, 3]
    return {s.id: s.digests for part in (drawn.find, drawn.validate) for s in part.samples}


def test_example_scenes_differ_by_seed() -> None:
    first = set(digests(0).values())
    assert len(first) == 7 and digests(0) == digests(0)
    assert first.isdisjoint(digests(1).values())


@pytest.mark.parametrize("seed", [0, 10, 2**31 - 1])
def test_example_scenes_are_those_of_the_command_line(seed: int) -> None:
    line = {s.id: s.digests for s in read_data(SampleChoice("demo", 7), seed).samples}
    assert digests(seed) == line


@pytest.mark.parametrize("block", [0, 10_000_000, 20_000_000, 30_000_000])
def test_example_scenes_are_none_that_the_model_card_is_measured_on(block: int) -> None:
    of_card = {(image_digest(Image.fromarray(s.image)),) for s in held_out_scenes(block, 20)}
    for seed in (0, 10, 20, 30):
        assert of_card.isdisjoint(digests(seed).values())


def test_the_card_is_measured_before_the_first_scene_for_sinks() -> None:
    settings = CheckSettings(DEMO)
    last = settings.first_seed + 30_000_000 + 5 * settings.scenes  # what guessing would reach
    assert last < FIRST_SINK_SCENE == sink_scenes(0, 1)[0][0]
    assert sink_scenes(1, 1)[0][0] == FIRST_SINK_SCENE + SINK_SCENES
    for count in (0, SINK_SCENES + 1):
        with pytest.raises(ValueError, match=f"count is {count}; allowed: 1 to {SINK_SCENES}"):
            sink_scenes(0, count)
