"""Files from users: only files uploaded to this app, no other file of the machine.

Gradio accepts a path wherever a component takes a file. It compares such paths with its upload
folder only if the request marks the file as Gradio's own kind, and `gr.Image` does not require that
mark. So the components here that take a file require it, `web.server.bodies` checks every file that
a request names, and a path is checked again where it is opened.
"""

from __future__ import annotations

import os
from abc import ABCMeta
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.component_meta import ComponentMeta
from gradio.data_classes import FileData, ImageData, ListFiles
from gradio.utils import get_upload_folder
from pydantic import BaseModel, ValidationError

from sinkscope.config import ImageLimits
from sinkscope.models.images import ImageError, image_size

# The same text for every file that is not an upload: it must not reveal whether the file exists.
NO_UPLOAD = (
    "This file was not uploaded here, or no longer exists: uploads are kept for a day. Upload it "
    "again (with gradio_client: handle_file)."
)
MARK = {"_type": "gradio.FileData"}
LONGEST_PATH = 4096
MOST_FILES = 300  # pictures that one run may have


class UploadError(ImageError):
    """A file that is not an upload. The text is always `NO_UPLOAD`."""

    def __init__(self) -> None:
        super().__init__(NO_UPLOAD)


def upload_path(given: object) -> Path:
    """The path of an upload, resolved. Does not check whether the file exists.

    Args:
        given: what was sent as the path of a file; may be anything.

    Raises:
        UploadError: it is not in the folder of uploads.
    """
    folder = get_upload_folder()
    if not isinstance(given, str) or len(given) > LONGEST_PATH or "\0" in given:
        raise UploadError
    path, real = Path(given), os.path.realpath(folder)
    # Checked before links are followed: `/some/name/../..` would reveal whether the name is a link.
    roots = folder, os.path.abspath(folder), real  # noqa: PTH100 - resolve() follows links
    if ".." in path.parts or not any(path.is_relative_to(root) for root in roots):
        raise UploadError
    resolved = Path(os.path.realpath(path))
    if not resolved.is_relative_to(real) or resolved == Path(real):
        raise UploadError
    return resolved


def check_upload(item: object) -> None:
    """Check a file as requests describe one: `{"path": ..., "meta": {"_type": "gradio.FileData"}}`.

    Raises:
        UploadError: it is described otherwise, or is not an upload.
    """
    if not isinstance(item, Mapping) or item.get("meta") != MARK:
        raise UploadError
    upload_path(item.get("path"))


def existing_upload(given: object) -> Path:
    """The file of an upload; its content is not read.

    Raises:
        UploadError: it is not an upload, or no longer exists.
    """
    path = upload_path(given)
    try:
        regular = path.is_file()  # because opening a pipe would block for ever
    except OSError as error:
        raise UploadError from error
    if not regular:
        raise UploadError
    return path


def upload_size(given: object, limits: ImageLimits) -> tuple[int, int]:
    """Width and height that an uploaded image would have when opened; the pixels are not decoded.

    Raises:
        UploadError: it is not an upload, or no longer exists.
        ImageError: its header describes an image that cannot be used; the text says why.
    """
    path = existing_upload(given)
    try:
        with path.open("rb") as file:
            return image_size(file, limits)
    except OSError as error:
        raise UploadError from error


class Plain(ComponentMeta):
    """Makes a component's class without the stub file that Gradio writes beside its source."""

    def __new__(cls, name: str, bases: tuple[type, ...], attrs: dict[str, Any]) -> Any:
        return ABCMeta.__new__(cls, name, bases, attrs)


class _OfRequest(BaseModel):
    """Gradio's class for a file in a request. Requires the mark, with an error that callers see."""

    @classmethod
    def model_validate(cls, obj: Any, *, context: Any = None, **options: Any) -> Any:
        if context is None or not context.get("validate_meta"):  # our own value
            return super().model_validate(obj, context=context, **options)
        try:
            for item in obj if isinstance(obj, list) else [obj]:
                check_upload(item)
            return super().model_validate(obj, context=context, **options)
        except (UploadError, ValidationError) as error:
            # Gradio passes only this type of error on to the caller with its text.
            raise gr.Error(NO_UPLOAD, title="Not possible", print_exception=False) from error


class _Image(_OfRequest, ImageData):
    pass


class _Files(_OfRequest, ListFiles):
    pass


# These are classes, because Gradio recreates a component for a session in which an event has
# changed it, and attributes set on the component would be lost.


class UploadedImage(gr.Image, metaclass=Plain):
    """`gr.Image` that passes on the path of an upload.

    Gradio would decode the file, with its own messages and without our limits.
    """

    is_template = True
    data_model = _Image

    def preprocess(self, payload: ImageData | None) -> str | None:
        return None if payload is None else payload.path


class UploadedFiles(gr.File, metaclass=Plain):
    """`gr.File` for several files that passes on name and path of each, as Gradio describes them.

    Gradio would drop the names. Use it with `file_count="multiple"`.
    """

    is_template = True
    # The base class sets its own value on each object.
    data_model = property(lambda self: _Files, lambda self, value: None)

    def preprocess(  # type: ignore[override]  # what the events are given
        self, payload: ListFiles | None
    ) -> list[FileData]:
        return [] if payload is None else payload.root


class _File(_OfRequest, FileData):
    pass


class UploadedFile(gr.UploadButton, metaclass=Plain):
    """`gr.UploadButton` for one file that passes on its name and path, as Gradio describes it."""

    is_template = True
    data_model = property(lambda self: _File, lambda self, value: None)

    def preprocess(  # type: ignore[override]  # what the events are given
        self, payload: FileData | None
    ) -> FileData | None:
        return payload
