"""How a row names its images, and which files may be opened for it.

A name is resolved only by the `Pictures` of the row's source: a user's own file may name
any file that the user can read, an image folder's metadata those below itself, an upload only files
that were uploaded with it. URLs are never fetched. Image limits apply to all kinds, because
`models.images.open_image` opens the result.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from sinkscope.models.images import ImageError
from sinkscope.records.record import RecordError, Reference
from sinkscope.records.values import listed, shown

IMAGE_KEYS = (
    "image",
    "images",
    "img",
    "image_path",
    "img_path",
    "image_file",
    "file_name",
    "image_file_name",
    "file_names",
    "image_file_names",
    "imgname",
    "image_bytes",
    "image_base64",
    "image_base64_str",
    "base64",
    "path",
)
MOST_IMAGES = 100  # of one row
ALLOWED = (
    "a path, base64 or data: URI text, {bytes, path}, or a list of these, under image, images, "
    "img, image_path, img_path, path, file_name, image_1 and so on, image_bytes or image_base64"
)
_ALWAYS_BASE64 = ("image_bytes", "image_base64", "image_base64_str", "base64")
_NUMBERED = re.compile(r"image_?(\d{1,3})")
_NAMED = re.compile(r"\w+_file_names?")  # columns of an image folder's metadata
# The base64 prefixes of the formats that open_image reads.
_BASE64 = re.compile(r"(?:/9j/|iVBORw0KGg|R0lGOD|UklGR|Qk[0-3]|SUkqA|TU0AK)[A-Za-z0-9+/\s]{40,}")
_NEVER_BASE64 = 64  # characters; VLMEvalKit's own limit between an image and the index of one
_ADDRESS = re.compile(r"(?!file:|data:)([a-z][a-z0-9+.-]{1,12})://", re.I)


class Pictures(Protocol):
    """Resolves a source's image names."""

    def find(self, name: str, most_bytes: int) -> Path | bytes:
        """The file of a name, or its bytes (at most one more than allowed).

        Raises:
            ImageError: the name does not lead to a file that may be opened.
        """
        ...


@dataclass(frozen=True)
class FolderPictures:
    """Files of this machine.

    Attributes:
        folder: relative names start here.
        inside: refuse names that lead out of the folder. A link inside it may lead anywhere: hub
            downloads consist of links, and the folder's owner could read the files anyway.
    """

    folder: Path
    inside: bool = False

    def find(self, name: str, most_bytes: int) -> Path:
        if self.inside and posixpath.normpath(name.replace("\\", "/")).startswith(("/", "..")):
            raise ImageError(f"The image {shown(name)} is named by a path that leaves its folder.")
        return self.folder / name


@dataclass(frozen=True)
class UploadedPictures:
    """Files that came with the upload, by the last part of their name; no path is ever followed."""

    files: Mapping[str, Path | None]

    def find(self, name: str, most_bytes: int) -> Path:
        last = name.replace("\\", "/").rsplit("/", 1)[-1]
        if last not in self.files:
            raise ImageError(f"The image {shown(last)} is not among the uploaded files.")
        path = self.files[last]
        if path is None:
            raise ImageError(f"Two of the uploaded files are called {shown(last)}.")
        return path


@dataclass(frozen=True)
class HubPictures:
    """Files of a hub dataset: its library names them by `hf://` addresses, or in its own cache.
    The dataset's author chose the names, so nothing else is opened.

    Attributes:
        cache: the library's folder for downloads.
    """

    cache: Path | None = None

    def find(self, name: str, most_bytes: int) -> bytes | Path:
        if name.rsplit("::", 1)[-1].startswith("hf://"):
            try:
                with importlib.import_module("fsspec").open(name, "rb") as file:
                    return bytes(file.read(most_bytes + 1))
            except OSError as error:
                raise ImageError(f"The image {shown(name)} cannot be read: {error}.") from error
        cache = None if self.cache is None or "\0" in name else self.cache.resolve()
        if cache is not None and Path(name).resolve().is_relative_to(cache):
            return Path(name)
        raise ImageError(
            f"The image {shown(name)} is a name and no picture; the dataset has to hold its "
            "images. Download it and give its file, with the images next to it."
        )


def references(row: Mapping[str, Any]) -> tuple[Reference, ...]:
    """All images that a row names, in order; may be empty.

    Args:
        row: with plain keys (`records.values.plain`).

    Raises:
        RecordError: an image key holds something else, a URL, or too many.
    """
    for key in IMAGE_KEYS:
        if key in row and (images := references_in(row[key], key)):
            return images
    numbered = {int(match[1]): key for key in row if (match := _NUMBERED.fullmatch(key))}
    keys = [key for _, key in sorted(numbered.items())] or [k for k in row if _NAMED.fullmatch(k)]
    images = tuple(image for key in keys for image in references_in(row[key], key))
    _check_count(len(images))
    return images


def references_in(value: Any, key: str) -> tuple[Reference, ...]:
    """The pictures of one value.

    Raises:
        RecordError: as `references`.
    """
    if isinstance(value, str) and value.startswith("["):
        value = listed(value)
    if not isinstance(value, list | tuple):
        return () if value is None else (_reference(value, key),)
    _check_count(len(value))
    return tuple(_reference(one, key) for one in value if one is not None)


def picture(reference: Reference, pictures: Pictures, most_bytes: int) -> Path | bytes:
    """The source of a reference, for `models.images.open_image`.

    Raises:
        ImageError: it may not be opened, is damaged, or is too large.
        OSError: a hub cannot be reached.
    """
    value = reference.value
    if reference.encoding == "bytes":
        assert isinstance(value, bytes)
        return value
    assert isinstance(value, str)
    if reference.encoding == "base64":
        return _decoded(value, most_bytes)
    if reference.encoding == "row":
        raise ImageError(f"The image is that of the row {shown(value)}, which has none.")
    if value.startswith("file://"):
        value = unquote(urlsplit(value).path)
    return pictures.find(value, most_bytes)


def _reference(value: Any, key: str) -> Reference:
    if isinstance(value, bytes | bytearray):
        return Reference("bytes", bytes(value))
    if isinstance(value, dict):
        return _of_mapping(value, key)
    if not isinstance(value, str) or not value.strip():
        raise RecordError(
            f"has no image that can be read: {key} is {shown(value)}; allowed: {ALLOWED}"
        )
    if len(value) <= _NEVER_BASE64 and ":" not in value and key not in _ALWAYS_BASE64:
        return Reference("file", value)
    if _ADDRESS.match(value) and not value.rsplit("::", 1)[-1].startswith("hf://"):
        raise RecordError(
            f"names its image by an address ({shown(value)}), and nothing is fetched; allowed: a "
            "path, or the image itself in base64"
        )
    if key in _ALWAYS_BASE64 or value.startswith("data:"):
        return Reference("base64", value)
    if len(value) > _NEVER_BASE64 and _BASE64.match(value):
        return Reference("base64", value)
    return Reference("file", value)


def _of_mapping(value: dict[str, Any], key: str) -> Reference:
    """{bytes, path} as hub datasets store it, {url} and {source: {data}} as messages do."""
    if isinstance(row := value.get("row"), str):  # the image of another row
        return Reference("row", row)
    source = value.get("source")
    if isinstance(source, dict):  # {"type": "base64", "media_type": ..., "data": ...}
        value = source
    for name in ("bytes", "data"):
        if (inner := value.get(name)) is not None:
            as_key = "base64" if isinstance(inner, str) else key
            return _reference(inner, as_key)
    for name in ("path", "url", "image", "image_url"):
        if isinstance(inner := value.get(name), str):
            return _reference(inner, key)
    raise RecordError(f"has no image that can be read: {key} is {shown(value)}; allowed: {ALLOWED}")


def _decoded(text: str, most_bytes: int) -> bytes:
    """The bytes of base64 text or of a data URI, refused by its length before it is decoded."""
    if text.startswith("data:"):
        head, comma, text = text[5:].partition(",")
        kind, *options = head.lower().split(";")
        if not comma or "base64" not in (option.strip() for option in options):
            raise ImageError("The image is a data: URI that is not base64; allowed: ;base64,.")
        if kind and not kind.startswith("image/"):
            raise ImageError(f"The image is a data: URI of {shown(kind)}; allowed: image/...")
    if len(text) * 3 // 4 > most_bytes * 1.1:  # part of it may be line breaks
        raise ImageError(f"The image is larger than {most_bytes / 1e6:g} MB, the most allowed.")
    compact = "".join(text.split()).translate({ord("-"): "+", ord("_"): "/"})
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError("The image is base64 text that is damaged or cut off.") from error


def _check_count(count: int) -> None:
    if count > MOST_IMAGES:
        raise RecordError(f"has {count} images; allowed: at most {MOST_IMAGES}")
