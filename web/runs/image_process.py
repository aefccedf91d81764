"""Uploaded images are decoded in a separate process, one at a time.

Hostile files attack the decoder: they may use up memory or time, or crash the process. The separate
process has a memory limit and a time limit, and Stop ends it; the next image starts another. The
result is plain RGB, scaled to the size that is used.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from sinkscope.config import ImageLimits
from sinkscope.jobs.helper import Helper, HelperFailedError, HelperLostError
from sinkscope.jobs.job import Stopped
from sinkscope.models.image_worker import ENVIRONMENT, MEMORY, MODULE
from sinkscope.models.images import ImageError, named_image
from sinkscope.models.loading import ModelHandle
from sinkscope.web.server.temporary import scratch
from sinkscope.web.server.uploads import UploadError, existing_upload

log = logging.getLogger(__name__)

SHOWN_SIDE = 1600  # pixels of the longer side of the image that is sent to the page
SHOWN_MEGAPIXELS = SHOWN_SIDE * SHOWN_SIDE / 1e6
WHAT = "images"  # the unit of steps in messages about Stop
LOST = (
    "{} cannot be decoded: the decoding process ended, as it does if a file is damaged or needs "
    "more than {} MB. Save it again, as PNG or JPEG."
)
LATE = "{} takes longer to decode than the allowed {:g} seconds; save it again, as PNG."


def limits_for(limits: ImageLimits, handle: ModelHandle | None) -> ImageLimits:
    """The limits of a start, with images scaled to the size that a model can use, or to the shown
    size if that is larger."""
    most = None if handle is None else handle.most_pixels
    if most is None:
        return limits
    used = max(most / 1e6, SHOWN_MEGAPIXELS)
    return dataclasses.replace(limits, kept_megapixels=min(limits.kept_megapixels, used))


class ImageProcess:
    """Opens uploads like `models.images.open_image`, in another process; one object per app.

    Args:
        limits: of this start; they limit the process.
    """

    def __init__(self, limits: ImageLimits) -> None:
        self._limits = limits
        environment = {**ENVIRONMENT, MEMORY: str(limits.decode_megabytes)}
        self.helper = Helper(MODULE, "decodes images", environment)
        self._turn = threading.Lock()

    def close(self) -> None:
        """End the process, also if it is decoding."""
        self.helper.close()

    def open_upload(
        self,
        given: object,
        limits: ImageLimits,
        name: str | None = None,
        stop: threading.Event | None = None,
    ) -> Image.Image:
        """Open an uploaded image; waiting for another image does not count towards the time limit.

        Args:
            given: the path that was sent, unchecked.
            limits: of images.
            name: its name in errors, such as the original file name.
            stop: once set, decoding ends within about a second.

        Raises:
            UploadError: it is not an upload, or no longer exists.
            ImageError: it is not a usable image; the text gives the reason.
            Stopped: `stop` was set.
        """
        return self._opened(existing_upload(given), limits, name, stop)

    def open_bytes(
        self,
        data: bytes,
        limits: ImageLimits,
        name: str | None = None,
        stop: threading.Event | None = None,
    ) -> Image.Image:
        """The same for an image from inside another file.

        Raises:
            ImageError, Stopped: as `open_upload`.
        """
        with scratch() as folder:
            path = Path(folder) / "image"
            path.write_bytes(data)
            return self._opened(path, limits, name, stop)

    def _opened(
        self, path: Path, limits: ImageLimits, name: str | None, stop: threading.Event | None
    ) -> Image.Image:
        words = named_image(name)
        with self._my_turn(stop), scratch() as folder:
            ends = _StopOrDeadline(stop, limits.decode_seconds)
            to = Path(folder) / "pixels"
            task = {
                "path": str(path),
                "to": str(to),
                "name": name,
                "limits": dataclasses.asdict(limits),
            }
            try:
                width, height = self.helper.do(task, None, ends, WHAT)
                return Image.frombytes("RGB", (width, height), to.read_bytes())
            except Stopped:
                if stop is not None and stop.is_set():
                    raise
                raise ImageError(LATE.format(words, limits.decode_seconds)) from None
            except (HelperLostError, HelperFailedError) as error:
                log.warning("%s", error)
                raise ImageError(LOST.format(words, self._limits.decode_megabytes)) from error
            except ValueError as error:
                raise ImageError(str(error)) from error
            except OSError as error:  # removed in the meantime, or no room for the pixels
                if not path.is_file():
                    raise UploadError from error
                why = error.strerror or "a file cannot be written"
                raise ImageError(f"{words} cannot be decoded: {why}.") from error

    @contextmanager
    def _my_turn(self, stop: threading.Event | None) -> Iterator[None]:
        while not self._turn.acquire(timeout=0.1):
            if stop is not None and stop.is_set():
                raise Stopped(0, 1, WHAT)
        try:
            yield
        finally:
            self._turn.release()


class KeptImages:
    """Uploads as our own lossless PNG files, each decoded once in the other process; this process
    may open the PNG as often as needed.

    Args:
        process: decodes.
        folder: for the files; removed by its creator.
        limits: of images.
        stop: once set, decoding ends within about a second.
    """

    def __init__(
        self,
        process: ImageProcess,
        folder: Path,
        limits: ImageLimits,
        stop: threading.Event | None = None,
    ) -> None:
        self._process, self._folder = process, folder
        self._limits, self._stop = limits, stop
        self._made = 0

    def __call__(
        self, given: Path | bytes | str, name: str | None = None
    ) -> tuple[Path, Image.Image]:
        """Our file, and the image.

        Raises:
            UploadError, ImageError, Stopped: as `ImageProcess.open_upload`.
        """
        if isinstance(given, bytes):
            image = self._process.open_bytes(given, self._limits, name, self._stop)
        else:
            image = self._process.open_upload(str(given), self._limits, name, self._stop)
        self._made += 1
        path = self._folder / f"{self._made:05}.png"
        write_image(image, path)
        return path, image


def write_image(image: Image.Image, path: Path) -> None:
    """Write an image as PNG, quickly.

    Raises:
        ImageError: the disk cannot be written.
    """
    try:
        image.save(path, format="PNG", compress_level=1)
    except OSError as error:
        why = error.strerror or "a file cannot be written"
        raise ImageError(f"The image cannot be kept: {why}.") from error


class _StopOrDeadline(threading.Event):
    """Counts as set if another event is set or a time is over; it is queried, not waited for."""

    def __init__(self, other: threading.Event | None, seconds: float) -> None:
        super().__init__()
        self._other, self._until = other, time.monotonic() + seconds

    def is_set(self) -> bool:
        asked = self._other is not None and self._other.is_set()
        return asked or time.monotonic() > self._until
