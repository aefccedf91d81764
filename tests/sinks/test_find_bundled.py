"""The bundled model: the sink dimensions of its card are found again from 30 samples."""

from __future__ import annotations

import pytest
from PIL import Image

from sinkscope.demo.scenes import scene
from sinkscope.models.loading import load_model
from sinkscope.sinks.finding.find import find
from sinkscope.sinks.samples import Sample

SIZES = ((196, 196), (224, 168), (168, 196))


@pytest.mark.slow
def test_the_cards_dims_are_found_again() -> None:
    handle = load_model("demo", device="cpu")
    samples = [
        Sample(f"{i:02}", (Image.fromarray(scene((5, i), *SIZES[i % 3]).image),)) for i in range(30)
    ]
    found = find(handle, samples)
    assert handle.profile is not None
    assert found.dims == tuple(sorted(handle.profile.dims)) == (17, 101), found.sentence()
    assert found.confidence in ("high", "medium")
    assert found.from_vision_tower is not None and found.from_vision_tower < 0.1
    # Between the scores of ordinary tokens and of sinks, like the card's tau.
    assert found.tau is not None and 3.0 < found.tau < 8.0
