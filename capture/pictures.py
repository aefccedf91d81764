"""The images of a trace in its file: lossless PNG, so that the model gets the same pixels.

Before format 6 they were raw pixels, (height, width, 3).
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from sinkscope.config import ImageLimits
from sinkscope.models.images import open_image

FAST = 1  # zlib's level: a tenth of the time of its best level, for a tenth more bytes
# A file may hold any image that was opened once, under whatever limits; at most this is decoded.
_LIMITS = ImageLimits(max_megapixels=100.0, kept_megapixels=100.0, max_bytes=400_000_000)


def packed(image: Image.Image) -> np.ndarray:
    """An image as uint8 (bytes,)."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "PNG", compress_level=FAST)
    return np.frombuffer(file.getvalue(), np.uint8).copy()


def unpacked(name: str, values: np.ndarray) -> Image.Image:
    """The image of a file, RGB.

    Args:
        name: of the tensor.
        values: uint8, (bytes,) of a PNG; or of old files (height, width, 3).

    Raises:
        ValueError: it is not a PNG, or too large to be decoded; as the end of a sentence.
    """
    if values.ndim == 3:
        return Image.fromarray(values)
    data = values.tobytes()
    if not data.startswith(b"\x89PNG"):
        raise ValueError(f"its {name} is no PNG")
    return open_image(data, _LIMITS, name)


def is_picture(dtype: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor can be an image in a file of any version."""
    return dtype == "U8" and 0 not in shape and (len(shape) == 1 or shape[2:] == (3,))
