"""Folders of images, and image folders with metadata as the library datasets defines them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from sinkscope.records.pictures import FolderPictures, picture
from sinkscope.records.record import Record
from sinkscope.records.sampling import RecordSample
from sinkscope.records.sources import file_source, folder_source


def picture_file(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (56, 56), (shade, 0, 0)).save(path)


def read(folder: Path, images: Path | None = None) -> tuple[list[Record], tuple[str, ...]]:
    source = folder_source(folder, images)
    draw = RecordSample(source, 50)
    records = sorted(draw, key=lambda record: record.number)
    for record in records:
        assert isinstance(picture(record.images[0], source.pictures, 10**6), Path)
    return records, draw.survey.notes(source, "Describe the image.")


def test_metadata_asks_about_the_images_beside_it(tmp_path: Path) -> None:
    """One file per split, with names relative to it."""
    for split in ("train", "test"):
        for i in range(2):
            picture_file(tmp_path / split / f"{i}.png", i)
    (tmp_path / "train" / "metadata.jsonl").write_text(
        '{"file_name": "0.png", "question": "Which?", "answer": "a"}\n'
        '{"file_name": "1.png", "question": "Where?", "answer": "b"}\n'
    )
    (tmp_path / "test" / "metadata.csv").write_text("file_name,text\n0.png,A cat.\n1.png,A dog.\n")
    records, notes = read(tmp_path)
    assert [r.images[0].value for r in records] == [
        "test/0.png", "test/1.png", "train/0.png", "train/1.png",
    ]  # fmt: skip
    assert [(r.question, r.answer) for r in records] == [
        (None, "A cat."), (None, "A dog."), ("Which?", "a"), ("Where?", "b"),
    ]  # fmt: skip
    assert records[0].caption and records[3].where == "row 4 of the 2 metadata files"
    assert notes == (
        "2 of 4 rows have no question of their own and are asked 'Describe the image.' "
        "(rows 1, 2).",
    )
    (only, *_), _ = read(tmp_path / "train")
    assert only.where == "row 1 of metadata.jsonl"


def test_several_images_of_a_row_and_images_elsewhere(tmp_path: Path) -> None:
    for name in ("a/0.png", "a/1.png", "b/2.png"):
        picture_file(tmp_path / name, 0)
    (tmp_path / "a" / "metadata.jsonl").write_text(
        '{"file_names": ["0.png", "1.png"], "question": "Both?"}\n'
    )
    records, notes = read(tmp_path)
    assert [[i.value for i in r.images] for r in records] == [["a/0.png", "a/1.png"], ["b/2.png"]]
    assert len(notes) == 1  # b/2.png is asked the common question


def test_images_that_metadata_does_not_name_are_counted(tmp_path: Path) -> None:
    for i in range(4):
        picture_file(tmp_path / f"{i}.png", i)
    (tmp_path / "metadata.csv").write_text("file_name,question\n./0.png,Which?\nsub/../1.png,Q?\n")
    records, notes = read(tmp_path)
    assert len(records) == 2
    assert notes == ("2 images are not in the metadata of their folder and were left out.",)


def test_names_that_leave_the_folder_are_refused_unless_images_are_elsewhere(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "folder"
    picture_file(folder / "sub" / "0.png", 0)
    picture_file(tmp_path / "1.png", 1)
    (folder / "sub" / "metadata.csv").write_text("file_name,question\n../../1.png,Which?\n")
    with pytest.raises(ValueError, match="leaves its folder"):
        read(folder)
    (folder / "sub" / "metadata.csv").write_text("file_name,question\n1.png,Which?\n")
    records, _ = read(folder, tmp_path)
    assert records[0].question == "Which?"


def test_a_folder_with_tables_alone_says_so(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test-00000.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"give one of its files instead: data/test-00000\.parq"):
        folder_source(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty has no images\.$"):
        folder_source(tmp_path / "empty")


def test_other_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.xml is no \.jsonl, \.ndjson, \.json, \.csv"):
        file_source(tmp_path / "a.xml", FolderPictures(tmp_path))


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """A file name in another encoding."""
    path = Path(str(tmp_path) + "/\udcff.png")
    picture_file(tmp_path / "a.png", 1)
    try:
        (tmp_path / "a.png").rename(path)
    except OSError:
        pytest.skip("this file system has no such names")
    ((record,), _) = read(tmp_path)
    assert record.id == "\ufffd.png"
