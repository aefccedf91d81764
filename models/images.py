"""Images from outside: opened once, checked before a pixel is decoded, and handed on as plain RGB.

Everything after this file sees one kind of image: 8-bit RGB, upright, without metadata. The model
and the display get the very same pixels, so a heatmap never lies on another image than the model's.
"""

from __future__ import annotations

import io
import stat
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sinkscope.config import ImageLimits
from sinkscope.outside import open_regular

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_ALLOWED = "allowed are PNG, JPEG, WebP, GIF, BMP and TIFF"
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_WITH_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


class ImageError(ValueError):
    """An image that cannot be used; the text is one sentence for the user."""


def open_image(
    source: Path | str | bytes | BinaryIO,
    limits: ImageLimits | None = None,
    name: str | None = None,
) -> Image.Image:
    """Open an image file as the model and the page see it.

    Of an animation it is the first frame. The EXIF rotation is applied (and gone from the result),
    transparency is laid on white, 16-bit greyscale is scaled to 8 bit.

    Args:
        source: a path, the bytes of a file, or an open binary file (read from where it stands).
        limits: what is allowed; by default `ImageLimits()`.
        name: what errors call the image; by default the path's last part, where there is one.

    Returns:
        A decoded RGB image that holds no file open and no metadata.

    Raises:
        ImageError: the source is missing, empty, damaged, of no allowed format, or beyond a limit.
    """
    limits = limits or ImageLimits()
    name, data = _read(source, limits, name)
    if not data:
        raise ImageError(f"{name} is empty.")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is {_what_it_is(data)}.") from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name} has too many pixels to be opened; "
            f"at most {limits.max_megapixels:g} megapixels are allowed."
        ) from error
    except Exception as error:
        # Pillow's parsers raise many types on crafted headers; none of them may end a session.
        raise ImageError(f"{name} is damaged or cut off: its header cannot be read.") from error

    with image:
        _check_size(name, image.size, limits)
        try:
            image.load()
            upright = ImageOps.exif_transpose(image)
        except Exception as error:  # as above, now from the decoders
            raise ImageError(
                f"{name} is damaged or cut off: its pixels cannot be decoded."
            ) from error
        return _to_rgb(name, upright)


def as_rgb(image: Image.Image, limits: ImageLimits | None = None) -> Image.Image:
    """What `open_image` makes of a file, made of an image in memory.

    Upright RGB: a rotation noted in its EXIF data is applied, transparency lies on white, 16-bit
    grey is scaled. The image given is not changed.

    Raises:
        ImageError: as `open_image`; or it is no Pillow image.
    """
    if not isinstance(image, Image.Image):
        raise ImageError(
            f"The image is a {type(image).__name__}; allowed: a Pillow image, such as "
            "models.images.open_image(path) gives."
        )
    _check_size("The image", image.size, limits or ImageLimits())
    return _to_rgb("The image", ImageOps.exif_transpose(image))


def _read(
    source: Path | str | bytes | BinaryIO, limits: ImageLimits, given: str | None
) -> tuple[str, bytes]:
    """What to call the source in a sentence, and its bytes: never more of them than are allowed."""
    name = "The image" if given is None else f"The image {_printable(given)}"
    if isinstance(source, bytes):
        data = source
    elif isinstance(source, str | Path):
        path = Path(source)
        name = f"The image {_printable(given or path.name)}"
        try:
            # Asked before opening: opening a pipe would wait for ever.
            regular = stat.S_ISREG(path.stat().st_mode)
            data = _first_bytes(path, limits.max_bytes + 1) if regular else b""
        except FileNotFoundError as error:
            raise ImageError(f"The image {_printable(str(path))} does not exist.") from error
        except OSError as error:
            raise ImageError(f"{name} cannot be read: {error.strerror or error}.") from error
        except ValueError as error:  # a NUL byte in the path
            raise ImageError(f"{name} is not the path of a file.") from error
        if not regular:
            raise ImageError(f"The image {_printable(str(path))} is not a file.")
    else:
        data = source.read(limits.max_bytes + 1)
    if len(data) > limits.max_bytes:
        raise ImageError(f"{name} is larger than {limits.max_bytes / 1e6:g} MB, the most allowed.")
    return name, data


def _first_bytes(path: Path, count: int) -> bytes:
    with open_regular(path) as file:
        return file.read(count)


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name)


def _what_it_is(data: bytes) -> str:
    """Say what bytes are that no allowed decoder knows, as far as their beginning tells."""
    if data.startswith(_SIGNATURES):
        return "damaged or cut off: its header cannot be read"
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in head:
        kind = "an SVG drawing"
    elif head.startswith((b"<!doctype html", b"<html")):
        kind = "a web page"
    elif data[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypavif"):
        kind = "a HEIC or AVIF image"
    else:
        kind = "not an image that can be read"
    return f"{kind}; {_ALLOWED}"


def _check_size(name: str, size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if min(width, height) < 1:
        raise ImageError(f"{name} has no pixels ({width} x {height}).")
    megapixels = width * height / 1e6
    if megapixels > limits.max_megapixels:
        raise ImageError(
            f"{name} is {width} x {height}, {megapixels:.1f} megapixels; "
            f"at most {limits.max_megapixels:g} are allowed."
        )
    aspect = max(width, height) / min(width, height)
    if aspect > limits.max_aspect:
        raise ImageError(
            f"{name} is {width} x {height}: its longer side is {aspect:.0f} times the shorter; "
            f"at most {limits.max_aspect:g} times is allowed."
        )


def _to_rgb(name: str, image: Image.Image) -> Image.Image:
    """A new RGB image with the pixels of `image` and nothing else of it."""
    if image.mode in _SIXTEEN_BIT:
        # convert() has clipped at 255 in some versions of Pillow, which turns the image white.
        wide = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ImageError(
            f"{name} has 32-bit greyscale pixels, whose white is undefined; "
            "save it with 8 or 16 bit a channel."
        )
    elif image.mode not in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", *_WITH_ALPHA):
        raise ImageError(f"{name} has colours of the kind {image.mode}; save it as RGB.")
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
        below = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(below, image)
    clean = Image.new("RGB", image.size)
    clean.paste(image.convert("RGB"))
    return clean
