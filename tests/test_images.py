"""Every kind of image from users: good ones become plain RGB, bad ones give one sentence."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sinkscope.config import ImageLimits
from sinkscope.models.images import ImageError, open_image


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()


def png_header_only(width: int, height: int) -> bytes:
    """A valid 1-bit PNG of black pixels, tiny however large its declared (and unpacked) size is."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * (((width + 7) // 8 + 1) * height), 9)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def is_one_sentence(error: ImageError) -> bool:
    text = str(error)
    return text.startswith("The image") and text.endswith(".") and "\n" not in text


# --- what must work -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_format_from_every_kind_of_source(kind: str, tmp_path: Path) -> None:
    data = encode(Image.new("RGB", (6, 4), (200, 30, 30)), kind)
    path = tmp_path / f"image.{kind.lower()}"
    path.write_bytes(data)
    for source in (data, path, str(path), io.BytesIO(data)):
        image = open_image(source)
        assert image.mode == "RGB" and image.size == (6, 4)
        assert (
            np.abs(np.asarray(image).astype(int) - [200, 30, 30]).max() <= 6
        )  # JPEG and WebP are lossy


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_rotation_is_applied_once(kind: str, orientation: int) -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20, :30] = (255, 0, 0)  # a red quarter at the top left, as stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    image = open_image(encode(Image.fromarray(pixels), kind, exif=exif, **options))

    turned = orientation >= 5
    assert image.size == ((40, 60) if turned else (60, 40))
    # Where EXIF says that the stored top left corner is shown.
    right = orientation in (2, 3, 6, 7)
    bottom = orientation in (3, 4, 7, 8)
    width, height = image.size
    at = (width * 3 // 4 if right else width // 4, height * 3 // 4 if bottom else height // 4)
    red = np.asarray(image)[at[1], at[0]].astype(int)
    assert red[0] > 240 and red[1] < 20
    assert image.getexif().get(0x0112) is None  # whoever transposes again turns nothing
    assert not image.info


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
        red, green, blue = np.asarray(open_image(data)).astype(int)[2, 2]
        assert red > 245 and green < 10 and blue < 10, kind


def test_cmyk() -> None:
    image = open_image(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    red, green, blue = np.asarray(image).astype(int)[4, 4]
    assert red > 200 and green < 60 and blue < 60


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_greyscale_is_scaled_not_clipped(kind: str) -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)
    image = open_image(encode(Image.fromarray(np.tile(ramp, (4, 1))), kind))
    row = np.asarray(image)[0].astype(int)
    assert (row[:, 0] == np.arange(256)).all() and (row[:, 1:] == row[:, :1]).all()


def test_transparency_is_laid_on_white() -> None:
    rgba = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    rgba.putpixel((1, 1), (255, 0, 0, 255))
    rgba.putpixel((2, 2), (255, 0, 0, 128))
    images = {"RGBA": open_image(encode(rgba))}

    palette = rgba.convert("P")
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putdata([0] * 16)
    palette.putpixel((1, 1), 1)
    images["P"] = open_image(encode(palette, transparency=bytes([0, 255])))
    assert images["P"].getpixel((0, 0)) == (255, 255, 255)
    assert images["P"].getpixel((1, 1)) == (0, 0, 255)

    assert images["RGBA"].getpixel((0, 0)) == (255, 255, 255)
    assert images["RGBA"].getpixel((1, 1)) == (255, 0, 0)
    red, green, blue = images["RGBA"].getpixel((2, 2))  # type: ignore[misc]
    assert red == 255 and 125 <= green == blue <= 129

    grey = open_image(encode(Image.new("LA", (2, 2), (0, 0))))
    assert grey.getpixel((0, 0)) == (255, 255, 255)
    keyed = open_image(encode(Image.new("RGB", (2, 2), (1, 2, 3)), transparency=(1, 2, 3)))
    assert keyed.getpixel((0, 0)) == (255, 255, 255)


def test_one_bit_and_grey() -> None:
    assert open_image(encode(Image.new("1", (3, 3), 1))).getpixel((1, 1)) == (255, 255, 255)
    assert open_image(encode(Image.new("L", (3, 3), 77))).getpixel((1, 1)) == (77, 77, 77)


def test_one_pixel() -> None:
    assert open_image(encode(Image.new("RGB", (1, 1), "red"))).size == (1, 1)


def test_an_open_file_is_read_from_where_it_stands_and_left_open(tmp_path: Path) -> None:
    file = io.BytesIO(b"header" + encode(Image.new("RGB", (2, 2))))
    file.seek(6)
    assert open_image(file).size == (2, 2)
    assert not file.closed


def test_bmp_that_claims_negative_height() -> None:
    data = bytearray(encode(Image.new("RGB", (3, 2), "red"), "BMP"))
    data[22:26] = struct.pack("<i", -2)  # stored top to bottom, which is allowed
    assert open_image(bytes(data)).size == (3, 2)


# --- what must be refused -------------------------------------------------------------------------


def folder(path: Path) -> Path:
    return path


def pipe(path: Path) -> Path:
    os.mkfifo(path / "pipe.png")
    return path / "pipe.png"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: p / "missing.png", "missing.png does not exist"),
        (folder, "is not a file"),
        (pipe, "is not a file"),
        (lambda p: "a\0b.png", "is not the path of a file"),
        (lambda p: "http://example.com/cat.png", "does not exist"),
        (lambda p: p / ("x" * 400 + ".png"), "cannot be read"),
    ],
)
def test_paths_that_are_no_file(make: Callable[[Path], object], says: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        open_image(make(tmp_path))  # type: ignore[arg-type]
    assert says in str(caught.value) and is_one_sentence(caught.value)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"just some text, named .jpg", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\xef\xbb\xbf \n<svg width='4'></svg>", "SVG"),
        (b"<!DOCTYPE html><html><script>alert(1)</script></html>", "web page"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
        (b"P6 1 1 255 abc", "not an image"),
    ],
)
def test_what_is_no_image(data: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "holiday.jpg"
    path.write_bytes(data)
    for source in (path, data):
        with pytest.raises(ImageError) as caught:
            open_image(source)
        assert says in str(caught.value) and is_one_sentence(caught.value)
    with pytest.raises(ImageError, match=r"holiday\.jpg"):
        open_image(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_anywhere(kind: str, photo: Image.Image) -> None:
    data = encode(photo.resize((64, 48)), kind)
    for kept in (1, 4, 12, 30, len(data) // 4, len(data) // 2, len(data) * 9 // 10):
        with pytest.raises(ImageError) as caught:
            open_image(data[:kept])
        assert is_one_sentence(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_damaged_bytes_give_pixels_or_a_sentence_but_no_other_error(
    kind: str, photo: Image.Image
) -> None:
    data = encode(photo.resize((32, 24)), kind)
    random = np.random.default_rng(1)
    limits = ImageLimits(max_megapixels=1)
    for _ in range(60):
        broken = bytearray(data)
        for at in random.integers(0, len(data), 4):
            broken[at] = random.integers(0, 256)
        try:
            assert open_image(bytes(broken), limits).mode == "RGB"
        except ImageError as error:
            assert is_one_sentence(error)


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = png_header_only(9000, 9000)
    assert len(bomb) < 11_000

    def decoded(*args: object, **kwargs: object) -> None:
        raise AssertionError("the bomb was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    with pytest.raises(ImageError, match=r"9000 x 9000, 81.0 megapixels; at most 50 are allowed"):
        open_image(bomb)


def test_a_bomb_beyond_pillows_own_limit() -> None:
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match="too many pixels"):
        open_image(png_header_only(30000, 30000))
    assert before == Image.MAX_IMAGE_PIXELS  # other users of Pillow keep their guard


def test_too_many_bytes_are_not_read() -> None:
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size: int = -1) -> bytes:
            assert size >= 0, "everything was asked for"
            self.given += size
            return b"x" * size

    endless = Endless()
    with pytest.raises(ImageError, match=r"larger than 0\.001 MB"):
        open_image(endless, ImageLimits(max_bytes=1000))  # type: ignore[arg-type]
    assert endless.given <= 1001


@pytest.mark.parametrize("size", [(20000, 3), (3, 20000), (200, 1)])
def test_extreme_aspect(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="times the shorter; at most 199 times is allowed"):
        open_image(encode(Image.new("L", size)))


def test_just_allowed_aspect() -> None:
    assert open_image(encode(Image.new("L", (199, 1)))).size == (199, 1)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_thirty_two_bit_greyscale_has_no_white(mode: str) -> None:
    with pytest.raises(ImageError, match="32-bit"):
        open_image(encode(Image.new(mode, (4, 4)), "TIFF"))


def test_lab() -> None:
    with pytest.raises(ImageError, match="LAB"):
        open_image(encode(Image.new("LAB", (4, 4)), "TIFF"))


def test_control_characters_of_a_name_do_not_reach_the_sentence(tmp_path: Path) -> None:
    path = tmp_path / "evil\n\x1b[31m.png"
    path.write_bytes(b"no image")
    with pytest.raises(ImageError) as caught:
        open_image(path)
    assert is_one_sentence(caught.value) and "\x1b" not in str(caught.value)
