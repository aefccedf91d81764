"""Large images are scaled while they are decoded, small ones keep each pixel; scans are counted."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from sinkscope.config import ImageLimits
from sinkscope.models.image_pixels import kept_size
from sinkscope.models.images import ImageError, as_rgb, image_size, open_image
from sinkscope.models.jpeg_scans import scan_count
from tests.pictures import encode, many_scans, photo

SMALL = ImageLimits(kept_megapixels=0.02)
KINDS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 92},
    "WEBP": {"lossless": True},
    "BMP": {},
    "TIFF": {},
    "GIF": {},
}


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limits", [ImageLimits(), ImageLimits(kept_megapixels=0.06)])
def test_below_the_limit_every_pixel_is_the_files(kind: str, limits: ImageLimits) -> None:
    """Bit for bit what Pillow decodes, up to the limit itself (300 x 200 is 0.06 megapixels)."""
    data = encode(photo(300, 200), kind, **KINDS[kind])
    with Image.open(io.BytesIO(data)) as plain:
        expected = plain.convert("RGB")
    assert open_image(data, limits).tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_above_the_limit_it_is_the_same_picture_with_fewer_pixels(kind: str) -> None:
    picture = photo(900, 600)
    data = encode(picture, kind, **KINDS[kind])
    image = open_image(data, SMALL)
    assert image.size == (173, 115) == image_size(data, SMALL)
    expected = picture.resize(image.size, Image.Resampling.LANCZOS)
    error = np.abs(pixels(image) - pixels(expected))
    assert error.mean() < (12 if kind == "GIF" else 3)  # a GIF has 256 colours


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_scaled_image_is_upright(kind: str, orientation: int) -> None:
    picture = np.zeros((400, 600, 3), np.uint8)
    picture[:200, :300] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(picture), kind, exif=exif)
    limits = ImageLimits(kept_megapixels=0.015)
    scaled, whole = open_image(data, limits), open_image(data)
    assert scaled.size == image_size(data, limits)
    assert scaled.size == ((100, 150) if orientation >= 5 else (150, 100))
    fit = whole.resize(scaled.size, Image.Resampling.BOX)
    assert np.abs(pixels(scaled) - pixels(fit)).mean() < 8
    assert image_size(data) == whole.size


def test_a_jpeg_is_decoded_at_the_size_that_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    drafts: list[tuple[int, int]] = []
    own = JpegImagePlugin.JpegImageFile.load

    def load(self: Any) -> Any:
        drafts.append(self.size)
        return own(self)

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", load)
    data = encode(photo(1200, 800), "JPEG")
    open_image(data, SMALL)
    assert drafts[0] == (300, 200)  # a quarter a side, and 173 x 115 of it
    drafts.clear()
    open_image(data)
    assert drafts[0] == (1200, 800)


def test_transparency_is_scaled_before_it_is_laid_on_white(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    composed: list[tuple[int, int]] = []
    own = Image.alpha_composite

    def composite(below: Image.Image, image: Image.Image) -> Image.Image:
        composed.append(image.size)
        return own(below, image)

    monkeypatch.setattr(Image, "alpha_composite", composite)
    picture = Image.new("RGBA", (600, 600), (0, 0, 255, 0))  # a fully transparent blue
    picture.paste((255, 0, 0, 255), (0, 0, 301, 600))
    image = open_image(encode(picture), SMALL)
    assert composed == [image.size] == [(141, 141)]
    assert image.getpixel((30, 70)) == (255, 0, 0)
    assert image.getpixel((110, 70)) == (255, 255, 255)
    assert (pixels(image)[..., 2] <= pixels(image)[..., 0]).all()  # no blue at the edge


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "CMYK", "I;16"])
def test_every_mode_is_scaled(mode: str) -> None:
    white = {"1": 1, "L": 255, "P": 0, "LA": (255, 255), "CMYK": 0, "I;16": 65535}[mode]
    picture = Image.new(mode, (500, 300), white)  # type: ignore[arg-type]
    if mode == "P":
        picture.putpalette([255, 255, 255, 0, 0, 0])
    image = open_image(encode(picture, "TIFF" if mode == "CMYK" else "PNG"), SMALL)
    assert (image.mode, image.size) == ("RGB", (182, 109))
    assert np.abs(pixels(image) - 255).max() <= 1


def test_sixteen_bit_grey_is_the_same_in_bands() -> None:
    """More rows than are scaled at once."""
    ramp = np.linspace(0, 65535, 700).round().astype(np.uint16)
    image = as_rgb(Image.fromarray(np.repeat(ramp[:, None], 9, 1)))
    expected = ((ramp.astype(np.uint32) + 128) // 257).astype(int)
    assert (pixels(image)[:, 1, 0] == expected).all()


@pytest.mark.parametrize(
    ("size", "most", "kept"),
    [
        ((4000, 3000), 12.0, (4000, 3000)),
        ((7000, 7000), 12.845056, (3584, 3584)),
        ((19900, 100), 0.5, (9974, 50)),
        ((199, 1), 0.001, (199, 1)),
    ],
)
def test_kept_sizes(size: tuple[int, int], most: float, kept: tuple[int, int]) -> None:
    assert kept_size(size, most) == kept
    assert kept[0] * kept[1] <= most * 1e6


def test_an_image_size_decodes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(*_: Any, **__: Any) -> None:
        raise AssertionError("decoded")

    files = [encode(photo(90, 60), kind) for kind in KINDS]
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    for data in files:
        assert image_size(data) == (90, 60)


# --- scans ----------------------------------------------------------------------------------------


def test_scans_are_counted() -> None:
    thumbnail = encode(photo(16, 16), "JPEG", progressive=True)
    exif = b"Exif\0\0" + thumbnail  # scans inside a segment do not belong to the picture
    assert scan_count(encode(photo(64, 48), "JPEG", exif=exif), 99) == 1
    assert scan_count(encode(photo(64, 48), "JPEG", progressive=True), 99) == 10
    assert scan_count(encode(photo(64, 48), "JPEG", restart_marker_rows=1), 99) == 1
    assert scan_count(many_scans(400, (64, 48)), 999) == 400
    assert scan_count(many_scans(400, (64, 48)), 32) == 33
    assert scan_count(encode(photo(64, 48), "JPEG") + thumbnail, 99) == 1  # after its end
    assert scan_count(b"\xff\xd8\xff", 9) == scan_count(b"", 9) == 0


def test_a_jpeg_of_too_many_scans_is_refused_and_not_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    allowed, too_many = many_scans(32, (64, 48)), many_scans(33, (64, 48))
    assert open_image(allowed).size == (64, 48)

    def decoded(*_: Any, **__: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    with pytest.raises(ImageError, match=r"^The image is a JPEG of more than 32 scans, the most"):
        open_image(too_many)
    with pytest.raises(ImageError, match="more than 10 scans"):
        open_image(allowed, ImageLimits(max_scans=10))


@pytest.mark.parametrize("kind", ["PPM", "PCX", "ICO", "SGI", "TGA", "DDS", "JPEG2000"])
def test_formats_that_are_not_listed_are_refused_though_pillow_reads_them(kind: str) -> None:
    with pytest.raises(ImageError, match=r"; allowed are PNG, JPEG, WebP, GIF, BMP and TIFF\.$"):
        open_image(encode(photo(32, 32), kind))
