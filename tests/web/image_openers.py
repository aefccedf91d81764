"""Opens uploads in tests that have no separate process (`web.runs.image_process.KeptImages`)."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from sinkscope.config import ImageLimits
from sinkscope.models.images import open_image
from sinkscope.web.server.uploads import UploadError, existing_upload
from sinkscope.web.sinks.request import Opener


def opener(limits: ImageLimits | None = None) -> Opener:
    """Opens images in this process, and leaves the upload in its place."""

    def opened(given: Path | bytes | str, name: str | None = None) -> tuple[Path, Image.Image]:
        if isinstance(given, bytes):
            image = open_image(given, limits or ImageLimits(), name)
            return image, image  # type: ignore[return-value]
        path = existing_upload(str(given))
        return path, open_image(path, limits or ImageLimits(), name)

    return opened


def open_upload(given: object, limits: ImageLimits, name: str | None = None) -> Image.Image:
    """Open an uploaded image in this process; the app uses a separate one.

    Args:
        given: the path as it was sent; may be anything.
        limits: limits of images.
        name: its name in errors, such as the original file name.

    Raises:
        UploadError: it is not an upload, or no longer exists.
        ImageError: it is not a usable image; the text says why.
    """
    path = existing_upload(given)
    try:
        with path.open("rb") as file:
            return open_image(file, limits, name)
    except OSError as error:
        raise UploadError from error
