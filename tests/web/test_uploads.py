"""A file from outside is an upload, or is refused always with the same text."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from sinkscope.config import ImageLimits
from sinkscope.models.images import ImageError
from sinkscope.web.server.uploads import (
    NO_UPLOAD,
    UploadedFiles,
    UploadedImage,
    UploadError,
    check_upload,
    upload_path,
)
from tests.web.image_openers import open_upload


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of uploads, with one picture in it; beside it a private one."""
    made = tmp_path / "uploads"
    (made / "0a").mkdir(parents=True)
    Image.new("RGB", (60, 40), "teal").save(made / "0a" / "photo.png")
    (tmp_path / "private").mkdir()
    Image.new("RGB", (60, 40), "red").save(tmp_path / "private" / "photo.png")
    (made / "out.png").symlink_to(tmp_path / "private" / "photo.png")
    (made / "outdoors").symlink_to(tmp_path / "private", target_is_directory=True)
    (made / "in.png").symlink_to(made / "0a" / "photo.png")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(made))
    monkeypatch.chdir(tmp_path)
    return made


def test_an_upload_is_opened(folder: Path) -> None:
    photo = folder / "0a" / "photo.png"
    assert upload_path(str(photo)) == photo.resolve()
    assert upload_path(str(folder / "in.png")) == photo.resolve()
    assert open_upload(str(photo), ImageLimits()).size == (60, 40)


@pytest.mark.parametrize(
    "given",
    [
        "{0}/private/photo.png",
        "{0}/private/missing.png",
        "{0}/uploads/../private/photo.png",
        "{0}/uploads/0a/../0a/photo.png",  # inside, but it would reveal links on the way
        "{0}/private/../uploads/0a/photo.png",
        "{0}/uploads/out.png",
        "{0}/uploads/outdoors/photo.png",
        "{0}/uploads/outdoors/missing.png",
        "{0}/uploads",
        "{0}/uploads/",
        "{0}/uploads2/photo.png",
        "file://{0}/uploads/0a/photo.png",
        "http://127.0.0.1/photo.png",
        "private/photo.png",
        "uploads/0a/photo.png",
        "~/photo.png",
        "/etc/passwd",
        "/proc/self/environ",
        "",
        ".",
        "{0}/uploads/0a/photo.png\0.png",
        "{0}/uploads/" + "a/" * 3000,
        ["{0}/uploads/0a/photo.png"],
        {"path": "x"},
        b"x",
        None,
        7,
    ],
)
def test_any_other_path_is_refused_with_one_text(folder: Path, given: Any) -> None:
    path = given.replace("{0}", str(folder.parent)) if isinstance(given, str) else given
    for use in (upload_path, lambda path: open_upload(path, ImageLimits())):
        with pytest.raises(UploadError) as refused:
            use(path)
        assert str(refused.value) == NO_UPLOAD


def test_what_is_gone_or_no_file_is_refused_with_the_same_text(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    for name in ("gone.png", "0a", "pipe", "0a/photo.png/x", "n" * 300):
        with pytest.raises(UploadError) as refused:
            open_upload(str(folder / name), ImageLimits())
        assert str(refused.value) == NO_UPLOAD


def test_an_upload_that_is_no_image_says_why_without_its_path(folder: Path) -> None:
    (folder / "0a" / "note.png").write_bytes(b"a text")
    with pytest.raises(ImageError, match="not an image") as refused:
        open_upload(str(folder / "0a" / "note.png"), ImageLimits())
    assert str(folder) not in str(refused.value)


@pytest.mark.parametrize("way", ["link", "relative"])
def test_the_folder_of_uploads_may_be_given_in_any_way(
    folder: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = folder.parent / "link"
    other.symlink_to(folder, target_is_directory=True)
    root = str(other) if way == "link" else "uploads"
    monkeypatch.setenv("GRADIO_TEMP_DIR", root)
    for path in (f"{root}/0a/photo.png", str(folder / "0a" / "photo.png")):
        assert upload_path(path) == (folder / "0a" / "photo.png").resolve()
    with pytest.raises(UploadError):
        upload_path(f"{root}/out.png")


@pytest.mark.parametrize(
    "meta",
    [
        None,
        {},
        {"_type": "gradio.filedata"},
        {"_type": "gradio.FileData", "more": 1},
        ["gradio.FileData"],
        "gradio.FileData",
    ],
)
def test_a_file_without_the_right_mark_is_refused(folder: Path, meta: Any) -> None:
    path = str(folder / "0a" / "photo.png")
    check_upload({"path": path, "meta": {"_type": "gradio.FileData"}})
    for item in ({"path": path}, {"path": path, "meta": meta}):
        with pytest.raises(UploadError):
            check_upload(item)


def test_the_components_demand_it_too(folder: Path) -> None:
    """Also components that Gradio recreates for a session, from the arguments of the first one."""
    with gr.Blocks():
        image = UploadedImage(type="filepath", label="image")
        files = UploadedFiles(file_count="multiple", type="filepath", label="files")
    path = str(folder / "0a" / "photo.png")
    good = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "mine.png"}
    private = str(folder.parent / "private" / "photo.png")
    for first in (image, files):
        for component in (first, type(first)(**{**first.constructor_args, "render": False})):
            assert component.get_block_name() in ("image", "file")
            many = isinstance(component, UploadedFiles)

            def read(value: Any, component: Any = component, many: bool = many) -> Any:
                given = [value] if many else value
                context = {"validate_meta": True}
                model = component.data_model.model_validate(given, context=context)
                return component.preprocess(model)

            made = read(good)
            assert (made[0].path, made[0].orig_name) == (path, "mine.png") if many else made == path
            for bad in ({"path": path}, {**good, "path": private}, path, private, 7, [good], {}):
                with pytest.raises(gr.Error) as refused:
                    read(bad)
                assert refused.value.message == NO_UPLOAD
            assert component.preprocess(None) == ([] if many else None)
