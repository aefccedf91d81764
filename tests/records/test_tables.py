"""CSV, VLMEvalKit's TSV and Parquet, written by the usual libraries."""

from __future__ import annotations

import base64
import importlib.util
import io
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sinkscope.records.pictures import FolderPictures, picture
from sinkscope.records.sampling import RecordSample
from sinkscope.records.sources import file_source
from sinkscope.records.tables import csv_rows, parquet_rows
from sinkscope.records.text import Damaged


def encoded(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (56, 56), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write(folder: Path, text: str, name: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


def drawn(path: Path) -> list[Any]:
    return sorted(
        RecordSample(file_source(path, FolderPictures(path.parent)), 20), key=lambda r: r.number
    )


@pytest.mark.parametrize(
    ("sign", "name"), [(",", "a.csv"), (";", "a.csv"), ("\t", "a.csv"), ("\t", "a.tsv")]
)
def test_tables_with_any_separator(sign: str, name: str, tmp_path: Path) -> None:
    lines = [
        ["image", "question", "answer"],
        ["a.png", '"What, or; who\n""else""?"', "x"],
        ["b.png", "Q?", ""],
    ]
    text = "\ufeff" + "\r\n".join(sign.join(cells) for cells in lines) + "\r\n\r\n"
    first, second = drawn(write(tmp_path, text, name))
    assert (first.question, first.answer) == ('What, or; who\n"else"?', "x")
    assert (second.question, second.answer) == ("Q?", None)
    assert second.where == f"row 2 of {name}"


def test_vlmevalkits_tables(tmp_path: Path) -> None:
    """Images in base64; a short cell is the index of the row that has the image."""
    pandas = pytest.importorskip("pandas")
    images = [base64.b64encode(encoded(i)).decode() for i in range(2)]
    frame = pandas.DataFrame(
        {
            "index": [0, 1, 1000000, 1000001],
            "image": [*images, "0", "1"],
            "question": ["Which?", "Where?", "Which?", "Where?"],
            "hint": ["Look.", None, "Look.", None],
            "A": ["dog", "left", "cat", "right"],
            "B": ["cat", "right", "dog", "left"],
            "C": [None, "up", None, "up"],
            "answer": ["A", "B", "B", "A"],
            "category": ["x"] * 4,
            "split": ["dev"] * 4,
        }
    )
    path = tmp_path / "MMBench_DEV_EN.tsv"
    frame.to_csv(path, sep="\t", index=False)
    records = drawn(path)
    assert [r.prompt() for r in records[:2]] == [
        "Look.\nWhich?\nA. dog\nB. cat",
        "Where?\nA. left\nB. right\nC. up",
    ]
    assert [r.answer for r in records] == ["A", "B", "B", "A"]
    assert [r.id for r in records] == ["0", "1", "1000000", "1000001"]
    pixels = [picture(r.images[0], FolderPictures(tmp_path), 10**6) for r in records]
    assert pixels == [encoded(0), encoded(1), encoded(0), encoded(1)]


def test_several_images_and_lists_in_cells(tmp_path: Path) -> None:
    text = 'image\tquestion\tanswers\n[\'a.png\', \'b.png\']\tBoth?\t"[""no"", ""yes"", ""yes""]"\n'
    (record,) = drawn(write(tmp_path, text, "a.tsv"))
    assert [i.value for i in record.images] == ["a.png", "b.png"] and record.answer == "yes"
    deep = "image\tquestion\n" + "[" * 5000 + "]" * 5000 + "\tWhat?\n"
    (record,) = drawn(write(tmp_path, deep, "deep.tsv"))
    assert record.images[0].encoding == "file"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,question\na.png,x,y\n", "Row 1 of a.csv has 3 cells, but its first line names 2"),
        ('image,question\na.png,x\na.png,"x\n', "Row 2 of a.csv is not a row of a table"),
        ('image,question\na.png,"x" y\n', "Row 1 of a.csv is not a row of a table"),
    ],
)
def test_broken_tables_are_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        list(csv_rows(write(tmp_path, text, "a.csv"), "a.csv"))


def test_a_table_without_rows_or_with_bad_text(tmp_path: Path) -> None:
    assert list(csv_rows(write(tmp_path, "", "a.csv"), "a.csv")) == []
    assert list(csv_rows(write(tmp_path, "image,question\n", "a.csv"), "a.csv")) == []
    (tmp_path / "bad.csv").write_bytes(b"image,question\na.png,\xff\n")
    with pytest.raises(ValueError, match=r"Line 2 of bad\.csv is not UTF-8 text"):
        list(csv_rows(tmp_path / "bad.csv", "bad.csv"))


def test_parquet_as_hub_datasets_are_stored(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "question": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "answers": datasets.List(datasets.Value("string")),
        }
    )
    made = {
        "image": [{"bytes": encoded(i), "path": None} for i in range(40)],
        "question": [f"Is it {i}?" for i in range(40)],
        "label": [i % 2 for i in range(40)],
        "answers": [[] for _ in range(40)],
    }
    path = tmp_path / "test-00000-of-00001.parquet"
    datasets.Dataset.from_dict(made, features=features).to_parquet(path)
    records = drawn(path)
    assert {r.answer for r in records} == {"no", "yes"}
    for record in records:
        shade = record.number - 1
        assert record.question == f"Is it {shade}?" and record.answer == ["no", "yes"][shade % 2]
        assert picture(record.images[0], FolderPictures(tmp_path), 10**6) == encoded(shade)


def test_parquet_without_its_library_and_what_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1")
    if importlib.util.find_spec("pyarrow") is not None:
        with pytest.raises(ValueError, match=r"a\.parquet cannot be read as Parquet"):
            list(parquet_rows(path, "a.parquet"))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match="install the library pyarrow to read it"):
        list(parquet_rows(path, "a.parquet"))


def test_rows_behind_a_damaged_one_are_read(tmp_path: Path) -> None:
    """Too many cells, a quote in the middle of a cell's end, a byte that is not text."""
    lines = [b"image,question", b"a.png,A?", b"b.png,B?,more", b'c.png,"C?"x', b"d.png,\xff"]
    path = tmp_path / "a.csv"
    path.write_bytes(b"\n".join([*lines, b"e.png,E?"]) + b"\n")
    found = list(csv_rows(path, path.name, damaged=True))
    assert [number for number, _ in found] == [1, 2, 3, 4, 5]
    assert [row["image"] for _, row in found if isinstance(row, dict)] == ["a.png", "e.png"]
    said = [row.reason for _, row in found if isinstance(row, Damaged)]
    assert said[0] == "Row 2 of a.csv has 3 cells, but its first line names 2 columns."
    assert said[1].startswith("Row 3 of a.csv is not a row of a table: ")
    assert said[2].startswith("Line 5 of a.csv is not UTF-8 text")
    for one in ("Row 2 of a.csv has 3 cells",):
        with pytest.raises(ValueError, match=one):
            list(csv_rows(path, path.name))


def test_a_quote_that_is_never_closed_ends_the_table_once(tmp_path: Path) -> None:
    path = write(tmp_path, 'image,question\na.png,A?\nb.png,"B?\n', "a.csv")
    found = list(csv_rows(path, path.name, damaged=True))
    assert [isinstance(row, Damaged) for _, row in found] == [False, True]


def test_a_parquet_file_that_is_damaged_in_the_middle(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    table = arrow.table({"question": [f"Is it {n}? {n * 7919}" for n in range(64)]})
    parquet.write_table(table, path, row_group_size=16, compression="zstd", use_dictionary=False)
    group = parquet.ParquetFile(path).metadata.row_group(2).column(0)
    data = bytearray(path.read_bytes())
    start = group.data_page_offset
    data[start : start + group.total_compressed_size] = b"\0" * group.total_compressed_size
    path.write_bytes(bytes(data))
    found = list(parquet_rows(path, path.name, damaged=True))
    assert [row["question"] for _, row in found[:-1]] == table["question"].to_pylist()[:32]
    number, last = found[-1]
    assert number == 33
    assert last.reason.startswith("Row 33 of a.parquet and all after it cannot be read: ")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        list(parquet_rows(path, path.name))
    path.write_bytes(b"PAR1 this is none")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        list(parquet_rows(path, path.name, damaged=True))
