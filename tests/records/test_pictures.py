"""How rows name pictures, and that no name leads to a forbidden file."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from sinkscope.config import ImageLimits
from sinkscope.models.images import ImageError, open_image
from sinkscope.records.pictures import (
    FolderPictures,
    HubPictures,
    Pictures,
    UploadedPictures,
    picture,
    references,
)
from sinkscope.records.record import Reference

MOST = ImageLimits().max_bytes


def encoded(kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (60, 56), (200, 10, 10)).save(file, kind)
    return file.getvalue()


def opened(value: object, pictures: Pictures | None = None, key: str = "image") -> Image.Image:
    (reference,) = references({key: value})
    return open_image(picture(reference, pictures or UploadedPictures({}), MOST))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_images_inside_a_row(kind: str) -> None:
    data = encoded(kind)
    text = base64.b64encode(data).decode()
    uri = f"data:image/{kind.lower()};base64,{text}"
    wrapped = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    urlsafe = base64.urlsafe_b64encode(data).decode().rstrip("=")
    for value in (
        text,
        uri,
        wrapped,
        data,
        {"bytes": data, "path": "a.png"},
        {"bytes": text},
        {"url": uri},
        {"source": {"type": "base64", "media_type": "image/png", "data": text}},
    ):
        assert opened(value).size == (60, 56)
    assert opened(urlsafe, key="image_base64").size == (60, 56)
    assert opened([text], key="image_base64").size == (60, 56)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("data:image/png,%89PNG", "that is not base64; allowed: ;base64"),
        ("data:text/html;base64,PGI+", "a data: URI of 'text/html'; allowed: image/"),
        ("data:image/png;base64,!!!!", "base64 text that is damaged"),
        ("data:image/png;base64", "not base64"),
        ("data:image/png;base64,", "is empty"),
        ("data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode(), "an SVG drawing"),
        ("data:image/png;base64," + "A" * 80_000_000, "larger than 50 MB, the most allowed"),
        (base64.b64encode(encoded()).decode()[:90], "damaged or cut off"),
        ({"bytes": b""}, "is empty"),
        ({"row": "5"}, "that of the row '5', which has none"),
    ],
)
def test_images_that_are_none(value: object, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        opened(value)


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    """A header of 100,000 x 100,000 pixels in a few bytes of base64."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9999))
    )
    with pytest.raises(ImageError, match="megapixels"):
        opened(f"data:image/png;base64,{base64.b64encode(bomb).decode()}")


def test_a_users_own_file_may_name_any_file(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "a b.png").write_bytes(encoded())
    beside = FolderPictures(tmp_path / "annotations")
    for name in ("../a b.png", str(tmp_path / "a b.png"), f"file://{tmp_path}/a%20b.png"):
        assert opened(name, beside).size == (60, 56)
    for name in ("/etc/passwd", "../../../../etc/passwd", "/dev/zero", "x\0.png", "x" * 5000, "."):
        with pytest.raises(ImageError):
            opened(name, beside)


def test_metadata_of_a_folder_stays_inside(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(encoded())
    (folder / "a.png").write_bytes(encoded())
    (folder / "link.png").symlink_to(tmp_path / "secret.png")  # as in a download of a hub
    inside = FolderPictures(folder, inside=True)
    for name in ("a.png", "sub/../a.png", "./a.png", "link.png"):
        assert opened(name, inside).size == (60, 56)
    for name in (
        "../secret.png",
        "sub/../../secret.png",
        "..\\secret.png",
        str(tmp_path / "secret.png"),
        f"file://{tmp_path}/secret.png",
    ):
        with pytest.raises(ImageError, match="leaves its folder"):
            opened(name, inside)


def test_an_upload_sees_uploaded_files_alone(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded())
    (tmp_path / "secret.png").write_bytes(encoded())
    upload = UploadedPictures({"a.png": tmp_path / "a.png", "twice.png": None})
    for name in ("a.png", "coco/train2017/a.png", "..\\a.png", "/etc/a.png", "file:///x/a.png"):
        assert opened(name, upload).size == (60, 56)
    for name in ("../secret.png", str(tmp_path / "secret.png"), "/etc/passwd", "", ".."):
        with pytest.raises((ImageError, ValueError)) as error:
            opened(name, upload)
        assert str(tmp_path) not in str(error.value) and "exist" not in str(error.value)
    with pytest.raises(ImageError, match=r"Two of the uploaded files are called 'twice\.png'"):
        opened("twice.png", upload)


def test_a_hub_dataset_opens_its_own_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, outside = tmp_path / "cache", tmp_path / "outside.png"
    cache.mkdir()
    outside.write_bytes(encoded())
    (cache / "a.png").write_bytes(encoded())
    (cache / "link.png").symlink_to(outside)
    hub = HubPictures(cache)
    assert opened({"bytes": None, "path": str(cache / "a.png")}, hub).size == (60, 56)
    for name in (outside, cache / ".." / "outside.png", cache / "link.png", "coco/a.jpg", "x\0y"):
        with pytest.raises(ImageError, match="is a name and no picture"):
            opened({"bytes": None, "path": str(name)}, hub)

    import fsspec

    memory = fsspec.filesystem("memory")
    with memory.open("/a.png", "wb") as file:
        file.write(encoded())
    asked: list[str] = []
    plain = fsspec.open

    def fake(name: str, mode: str) -> object:
        asked.append(name)
        return plain(name.replace("hf://datasets/owner/name", "memory:/"), mode)

    monkeypatch.setattr(fsspec, "open", fake)
    assert opened({"path": "hf://datasets/owner/name/a.png"}, hub).size == (60, 56)
    with pytest.raises(ImageError, match="cannot be read"):
        opened({"path": "hf://datasets/owner/name/none.png"}, hub)
    assert len(asked) == 2


def test_a_name_is_no_base64_and_base64_no_name() -> None:
    """Recognised by its beginning and its length."""
    for name in ("iVBORw0KGg.png", "R0lGOD/a.gif", "a" * 200 + ".png", "Qk0/x.png"):
        assert references({"image": name}) == (Reference("file", name),)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP"):
        text = base64.b64encode(encoded(kind)).decode()
        assert references({"image": text})[0].encoding == "base64"
