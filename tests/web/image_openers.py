"""What opens uploads in tests that have no process for it (`web.runs.image_process.KeptImages`)."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from sinkscope.config import ImageLimits
from sinkscope.models.images import open_image
from sinkscope.web.server.uploads import UploadError, existing_upload
from sinkscope.web.sinks.request import Opener


def opener(limits: ImageLimits | None = None) -> Opener:
    """Opens here, and leaves the upload in its place."""

    def opened(given: Path | bytes | str, name: str | None = None) -> tuple[Path, Image.Image]:
        if isinstance(given, bytes):
            image = open_image(given, limits or ImageLimits(), name)
            return image, image  # type: ignore[return-value]
        path = existing_upload(str(given))
        return path, open_image(path, limits or ImageLimits(), name)

    return opened


def open_upload(given: object, limits: ImageLimits, name: str | None = None) -> Image.Image:
    """Open an uploaded image here; the app does it in a process of its own.

    Args:
        given: what was sent as its path: anything.
        limits: of images.
        name: what errors call it, such as its name at home.

    Raises:
        UploadError: it is no upload, or is gone.
        ImageError: it is no image that can be used; the text says why.
    """
    path = existing_upload(given)
    try:
        with path.open("rb") as file:
            return open_image(file, limits, name)
    except OSError as error:
        raise UploadError from error
