"""Uploaded images are decoded in a process of their own, one at a time.

A decoder is the part that a hostile file attacks: it may take memory, time, or the process. There
it has a limit of memory, a limit of time, and an end: Stop kills it, and the next image starts
another. What comes back is plain RGB, scaled to what is used of it.
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

SHOWN_SIDE = 1600  # pixels of the longer side that the page is sent
SHOWN_MEGAPIXELS = SHOWN_SIDE * SHOWN_SIDE / 1e6
WHAT = "images"  # the steps that a stopped one counts
LOST = (
    "{} cannot be decoded: the process that decodes images has ended on it, as it does where a "
    "file is damaged or takes more than {} MB. Save it again, as PNG or JPEG."
)
LATE = "{} takes longer than {:g} seconds to be decoded, the most allowed; save it again, as PNG."


def limits_for(limits: ImageLimits, handle: ModelHandle | None) -> ImageLimits:
    """The limits of a start, with images scaled to what a model can use, or to what is shown where
    that is more."""
    most = None if handle is None else handle.most_pixels
    if most is None:
        return limits
    used = max(most / 1e6, SHOWN_MEGAPIXELS)
    return dataclasses.replace(limits, kept_megapixels=min(limits.kept_megapixels, used))


class ImageProcess:
    """Opens uploads as `models.images.open_image` does, elsewhere; one object an app.

    Args:
        limits: of this start, which say what the process may take.
    """

    def __init__(self, limits: ImageLimits) -> None:
        self._limits = limits
        environment = {**ENVIRONMENT, MEMORY: str(limits.decode_megabytes)}
        self.helper = Helper(MODULE, "decodes images", environment)
        self._turn = threading.Lock()

    def close(self) -> None:
        """End the process, and what it decodes."""
        self.helper.close()

    def open_upload(
        self,
        given: object,
        limits: ImageLimits,
        name: str | None = None,
        stop: threading.Event | None = None,
    ) -> Image.Image:
        """Open an uploaded image; what it waits for behind another one does not count as time.

        Args:
            given: what was sent as its path: anything.
            limits: of images.
            name: what errors call it, such as its name at home.
            stop: once set, decoding ends within about a second.

        Raises:
            UploadError: it is no upload, or is gone.
            ImageError: it is no image that can be used; the text says why.
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
        """The same for an image that came inside another file.

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
            except OSError as error:  # gone meanwhile, or no room for the pixels
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
    """Uploads, decoded elsewhere once each, as files of ours: PNG without loss, which this process
    may open as often as it needs them.

    Args:
        process: decodes.
        folder: for the files; whoever made it removes it.
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
        """The file of ours, and the image.

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
    """Set once another event is, or a time is over; asked, not waited for."""

    def __init__(self, other: threading.Event | None, seconds: float) -> None:
        super().__init__()
        self._other, self._until = other, time.monotonic() + seconds

    def is_set(self) -> bool:
        asked = self._other is not None and self._other.is_set()
        return asked or time.monotonic() > self._until
