"""Images in a trace's file: PNG, bit for bit the model's input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from sinkscope.capture.arrays import open_arrays
from sinkscope.capture.pictures import is_picture, packed, unpacked
from sinkscope.capture.storage import TraceReader
from sinkscope.capture.trace import GenerationTrace
from tests.web.synthetic import make_trace, scene


def test_every_way_of_reading_gives_the_same_pixels(tmp_path: Path) -> None:
    picture = scene(501, 333)
    path = tmp_path / "run.safetensors"
    make_trace(image=picture).save(path)
    stored = load_file(path)["image_0"]
    assert stored.ndim == 1 and len(stored) < 0.8 * 501 * 333 * 3
    with TraceReader(path) as reader:
        one = reader.image(0)
    for image in (one, GenerationTrace.open(path).images[0], open_arrays(path).images[0]):
        assert (image.mode, image.size) == ("RGB", (501, 333))
        assert image.tobytes() == picture.tobytes()


def test_pixels_of_old_files() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 7, 3), np.uint8)
    assert np.array_equal(np.asarray(unpacked("image_0", pixels)), pixels)


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"GIF89a", "no PNG"), (b"\x89PNG\r\n\x1a\n", "damaged"), (b"\x89PNG" + b"x" * 99, "damaged")],
)
def test_what_is_no_png_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        unpacked("image_0", np.frombuffer(data, np.uint8))


def test_a_png_that_claims_to_be_vast_is_not_decoded() -> None:
    from tests.test_images import png_header_only

    with pytest.raises(ValueError, match="at most 100"):
        unpacked("image_0", np.frombuffer(png_header_only(12_000, 9_000), np.uint8))


@pytest.mark.parametrize(
    ("shape", "good"),
    [((9,), True), ((4, 5, 3), True), ((0,), False), ((4, 5), False), ((4, 5, 4), False)],
)
def test_shapes(shape: tuple[int, ...], good: bool) -> None:
    assert is_picture("U8", shape) is good
    assert not is_picture("F32", shape)


def test_packed_is_png_of_rgb() -> None:
    grey = Image.new("L", (5, 4), 7)
    again = unpacked("image_0", packed(grey))
    assert again.getpixel((2, 2)) == (7, 7, 7)
