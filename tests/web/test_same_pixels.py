"""A run that is read again gives the model the same pixels, also for a photo that was scaled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sinkscope.attention_extractor import generate
from sinkscope.capture.saved_prompt import prepare_saved_prompt
from sinkscope.config import GenerationSettings, ImageLimits
from sinkscope.models.images import open_image
from sinkscope.models.loading import load_model
from sinkscope.web.runs.image_process import limits_for
from sinkscope.web.runs.store import Run, open_run, save_run
from tests.pictures import encode, photo


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_stored_run_is_prepared_with_the_same_pixels(
    tiny_folder: Path, tmp_path: Path, kind: str
) -> None:
    handle = load_model(str(tiny_folder))
    assert handle.most_pixels == handle.processor.image_processor.size["longest_edge"]  # type: ignore[union-attr]
    limits = limits_for(ImageLimits(kept_megapixels=0.03), handle)
    image = open_image(encode(photo(640, 480), kind), limits)
    assert image.size == (200, 150)
    inputs = handle.prepare([image], "Where is it?")
    trace = generate(handle, inputs, GenerationSettings(max_new_tokens=2))
    assert trace.layout.grids[0].original == (150, 200)
    save_run(Run({"baseline": trace}), tmp_path / "run")
    stored = open_run(tmp_path / "run").first
    again = prepare_saved_prompt(handle, stored)
    assert torch.equal(again.tensors["pixel_values"], inputs.tensors["pixel_values"])
    assert again.layout == inputs.layout


def test_an_ordinary_photo_reaches_the_model_unscaled(tiny_folder: Path) -> None:
    """Up to the shown size, whatever size the model can use."""
    handle = load_model(str(tiny_folder))
    data = encode(photo(1600, 1200), "JPEG")
    kept = open_image(data, limits_for(ImageLimits(), handle))
    whole = open_image(data, ImageLimits(kept_megapixels=100))
    one, other = (handle.prepare([image], "x").tensors["pixel_values"] for image in (kept, whole))
    assert torch.equal(one, other)
