"""Untrusted images: opened once, checked before a pixel is decoded, and returned as plain RGB.

Everything after this file sees one kind of image: 8-bit RGB, upright, without metadata. The model
and the display get the same pixels, so a heatmap is always drawn on the model's own image.
"""

from __future__ import annotations

import io
import stat
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image, UnidentifiedImageError

from sinkscope.config import ImageLimits
from sinkscope.models.image_pixels import (
    ON_ITS_SIDE,
    kept_size,
    mode_problem,
    orientation_of,
    scaled,
    to_rgb,
    turned,
)
from sinkscope.models.jpeg_scans import scan_count
from sinkscope.untrusted import open_regular

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_ALLOWED = "allowed are PNG, JPEG, WebP, GIF, BMP and TIFF"
_TOO_LARGE = "{} needs more memory to be decoded than there is; save it with fewer pixels."
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")


class ImageError(ValueError):
    """An image that cannot be used; the text is one sentence for the user."""


def open_image(
    source: Path | str | bytes | BinaryIO,
    limits: ImageLimits | None = None,
    name: str | None = None,
) -> Image.Image:
    """Open an image file as the model and the page see it.

    Of an animation it is the first frame. The EXIF rotation is applied (and gone from the result),
    transparency is composited on white, 16-bit greyscale is scaled to 8 bit. An image of more than
    `limits.kept_megapixels` is scaled down to them while it is read; of a smaller one every pixel
    is that of the file.

    Args:
        source: a path, the bytes of a file, or an open binary file (read from its current
            position).
        limits: what is allowed; by default `ImageLimits()`.
        name: what errors call the image; by default the last part of a path.

    Returns:
        A decoded RGB image that holds no file open and no metadata.

    Raises:
        ImageError: the source is missing, empty, damaged, of no allowed format, or beyond a limit.
    """
    limits = limits or ImageLimits()
    name, data = _read(source, limits, name)
    image = _opened(name, data, limits)
    with image:
        size = kept_size(image.size, limits.kept_megapixels)
        try:
            if size != image.size:
                image.draft(None, size)  # a JPEG is decoded at 1/2, 1/4 or 1/8 where that is enough
            image.load()
            orientation = orientation_of(image)
        except MemoryError as error:
            raise ImageError(_TOO_LARGE.format(name)) from error
        except Exception as error:  # as in _opened, now from the decoders
            raise ImageError(
                f"{name} is damaged or cut off: its pixels cannot be decoded."
            ) from error
        if problem := mode_problem(image):
            raise ImageError(f"{name} {problem}.")
        try:
            return to_rgb(turned(scaled(image, size), orientation))
        except MemoryError as error:
            raise ImageError(_TOO_LARGE.format(name)) from error


def image_size(
    source: Path | str | bytes | BinaryIO,
    limits: ImageLimits | None = None,
    name: str | None = None,
) -> tuple[int, int]:
    """Width and height that `open_image` would give, by the file's header: nothing is decoded.

    Raises:
        ImageError: as `open_image`, as far as the header tells.
    """
    limits = limits or ImageLimits()
    name, data = _read(source, limits, name)
    with _opened(name, data, limits) as image:
        width, height = kept_size(image.size, limits.kept_megapixels)
        if image.format == "TIFF":  # whose size Pillow gives upright
            return width, height
        try:
            # The base class's method: PNG's own decodes the image to find EXIF data after the
            # pixels.
            orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
        except Exception:  # an invalid header turns nothing
            orientation = 1
    return (height, width) if orientation in ON_ITS_SIDE else (width, height)


def _opened(name: str, data: bytes, limits: ImageLimits) -> Image.Image:
    """The image with its header read and checked, and no pixel decoded."""
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
        # Pillow's parsers raise many types on crafted headers; none of them may stop the app.
        raise ImageError(f"{name} is damaged or cut off: its header cannot be read.") from error
    try:
        _check_size(name, image.size, limits)
        if image.format in ("JPEG", "MPO"):
            scans = scan_count(data, limits.max_scans)
            if scans > limits.max_scans:
                raise ImageError(
                    f"{name} is a JPEG of more than {limits.max_scans} scans, the most allowed; "
                    "save it again, as PNG or as a JPEG that is not progressive."
                )
    except BaseException:
        image.close()
        raise
    return image


def as_rgb(image: Image.Image, limits: ImageLimits | None = None) -> Image.Image:
    """As `open_image`, for an image in memory.

    Upright RGB: the EXIF rotation is applied, transparency is composited on white, 16-bit
    grey is scaled. The image given is not changed.

    Raises:
        ImageError: as `open_image`; or it is not a Pillow image.
    """
    if not isinstance(image, Image.Image):
        raise ImageError(
            f"The image is a {type(image).__name__}; allowed: a Pillow image, such as "
            "models.images.open_image(path) gives."
        )
    _check_size("The image", image.size, limits or ImageLimits())
    image.load()
    if problem := mode_problem(image):
        raise ImageError(f"The image {problem}.")
    return to_rgb(turned(image, orientation_of(image)))


def _read(
    source: Path | str | bytes | BinaryIO, limits: ImageLimits, given: str | None
) -> tuple[str, bytes]:
    """The source's name for messages, and its bytes: never more of them than are allowed."""
    name = named_image(given)
    if isinstance(source, bytes):
        data = source
    elif isinstance(source, str | Path):
        path = Path(source)
        name = named_image(given or path.name)
        try:
            # Checked before opening: opening a pipe would wait forever.
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


def named_image(name: str | None) -> str:
    """The image's name in messages."""
    return "The image" if name is None else f"The image {_printable(name)}"


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name)


def _what_it_is(data: bytes) -> str:
    """Name the format of bytes that no allowed decoder knows, from their beginning."""
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
