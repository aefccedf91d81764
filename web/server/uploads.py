"""Files from outside: what was uploaded to this app, and no other file of the machine.

Gradio takes a path for a file wherever a component takes one. It compares such paths with its
upload folder only where the request marks the file as its own kind, and `gr.Image` does not demand
that mark. So the components that take a file demand it here, `web.server.bodies` looks at every
file that a request names, and a path is compared once more where it is opened.
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

# One text for every file that is no upload: it must not say whether there is such a file.
NO_UPLOAD = (
    "This file was not uploaded here, or no longer exists: uploads are kept for a day. Upload it "
    "again (with gradio_client: handle_file)."
)
MARK = {"_type": "gradio.FileData"}
LONGEST_PATH = 4096
MOST_FILES = 300  # pictures that one press of Run may name


class UploadError(ImageError):
    """A file that is no upload. The text is always `NO_UPLOAD`."""

    def __init__(self) -> None:
        super().__init__(NO_UPLOAD)


def upload_path(given: object) -> Path:
    """The path of an upload, resolved. Whether there is such a file is not looked at.

    Args:
        given: what was sent as the path of a file: anything.

    Raises:
        UploadError: it does not lie in the folder of uploads.
    """
    folder = get_upload_folder()
    if not isinstance(given, str) or len(given) > LONGEST_PATH or "\0" in given:
        raise UploadError
    path, real = Path(given), os.path.realpath(folder)
    # Asked before links are followed: `/some/name/../..` would tell whether the name is a link.
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
        UploadError: it is described otherwise, or is no upload.
    """
    if not isinstance(item, Mapping) or item.get("meta") != MARK:
        raise UploadError
    upload_path(item.get("path"))


def existing_upload(given: object) -> Path:
    """The file of an upload, of which nothing is read.

    Raises:
        UploadError: it is no upload, or is gone.
    """
    path = upload_path(given)
    try:
        regular = path.is_file()  # opening a pipe would wait for ever
    except OSError as error:
        raise UploadError from error
    if not regular:
        raise UploadError
    return path


def upload_size(given: object, limits: ImageLimits) -> tuple[int, int]:
    """Width and height that an uploaded image would be opened with; nothing is decoded.

    Raises:
        UploadError: it is no upload, or is gone.
        ImageError: its header tells of no image that can be used; the text says why.
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
    """What Gradio reads a request's file with; demands the mark, in words that reach the caller."""

    @classmethod
    def model_validate(cls, obj: Any, *, context: Any = None, **options: Any) -> Any:
        if context is None or not context.get("validate_meta"):  # our own value
            return super().model_validate(obj, context=context, **options)
        try:
            for item in obj if isinstance(obj, list) else [obj]:
                check_upload(item)
            return super().model_validate(obj, context=context, **options)
        except (UploadError, ValidationError) as error:
            # Any other error than this one reaches the caller without its text.
            raise gr.Error(NO_UPLOAD, title="Not possible", print_exception=False) from error


class _Image(_OfRequest, ImageData):
    pass


class _Files(_OfRequest, ListFiles):
    pass


# Classes, not attributes put onto a component: Gradio makes a component anew for a session that an
# event has changed it for, and such attributes would be lost.


class UploadedImage(gr.Image, metaclass=Plain):
    """`gr.Image` that hands on the path of an upload.

    Gradio would decode the file, with its own messages and none of our limits.
    """

    is_template = True
    data_model = _Image

    def preprocess(self, payload: ImageData | None) -> str | None:
        return None if payload is None else payload.path


class UploadedFiles(gr.File, metaclass=Plain):
    """`gr.File` of several files that hands on name and path of each, as Gradio describes them.

    Gradio would forget the names. Make it with `file_count="multiple"`.
    """

    is_template = True
    # The base class sets one of its own for each object.
    data_model = property(lambda self: _Files, lambda self, value: None)

    def preprocess(  # type: ignore[override]  # what the events are given
        self, payload: ListFiles | None
    ) -> list[FileData]:
        return [] if payload is None else payload.root


class _File(_OfRequest, FileData):
    pass


class UploadedFile(gr.UploadButton, metaclass=Plain):
    """`gr.UploadButton` of one file that hands on its name and path, as Gradio describes it."""

    is_template = True
    data_model = property(lambda self: _File, lambda self, value: None)

    def preprocess(  # type: ignore[override]  # what the events are given
        self, payload: FileData | None
    ) -> FileData | None:
        return payload
