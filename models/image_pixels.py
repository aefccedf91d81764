"""From a decoded image to the RGB of model and page: size, transparency, bit depth."""

from __future__ import annotations

import math

import numpy as np
from PIL import ExifTags, Image

PLAIN = ("1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV")
WITH_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_BAND = 256  # rows of 16-bit pixels that are scaled at once
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ON_ITS_SIDE = (5, 6, 7, 8)


def kept_size(size: tuple[int, int], megapixels: float) -> tuple[int, int]:
    """The size that an image is scaled down to: its own where it has no more than these pixels.

    The area is at most `megapixels`, and the aspect is kept, except for rounding to whole pixels.
    """
    width, height = size
    if width * height <= megapixels * 1e6:
        return size
    scale = math.sqrt(megapixels * 1e6 / (width * height))
    return max(1, int(width * scale)), max(1, int(height * scale))


def orientation_of(image: Image.Image) -> int:
    """The EXIF (or XMP) orientation of an image: 1 to 8."""
    value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return value if value in _TURNS else 1


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """The image upright."""
    return image if orientation not in _TURNS else image.transpose(_TURNS[orientation])


def mode_problem(image: Image.Image) -> str | None:
    """Why an image has no colours that can be shown, as the rest of a sentence; None if it has."""
    if image.mode in ("I", "F"):
        return (
            "has 32-bit greyscale pixels, whose white is undefined; "
            "save it with 8 or 16 bit a channel"
        )
    if image.mode not in (*PLAIN, *WITH_ALPHA, *SIXTEEN_BIT):
        return f"has colours of the kind {image.mode}; save it as RGB"
    return None


def scaled(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image in another size, before transparency is composited on white, which needs a copy.

    Blocks of pixels are averaged first, down to twice the size; the rest is bicubic. Pixels are
    weighted by their opacity, so that invisible colours do not appear.
    """
    if image.size == size:
        return image
    if image.mode in SIXTEEN_BIT:
        image = eight_bit(image)
    if "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode in ("1", "P", "PA"):
        image = image.convert({"1": "L", "P": "RGB", "PA": "RGBA"}[image.mode])
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey."""
    # convert() has clipped at 255 in some versions of Pillow, which turns the image white.
    pixels = np.empty((image.height, image.width), np.uint8)
    for top in range(0, image.height, _BAND):
        box = (0, top, image.width, min(top + _BAND, image.height))
        wide = np.asarray(image.crop(box)).astype(np.uint32)
        pixels[top : box[3]] = (wide + 128) // 257
    return Image.fromarray(pixels)


def to_rgb(image: Image.Image) -> Image.Image:
    """A new RGB image with the pixels of `image` (`mode_problem` is None) and nothing else of it;
    transparency is composited on white."""
    if image.mode in SIXTEEN_BIT:
        image = eight_bit(image)
    if image.mode in WITH_ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
        below = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(below, image)
    clean = Image.new("RGB", image.size)
    clean.paste(image if image.mode == "RGB" else image.convert("RGB"))
    return clean
