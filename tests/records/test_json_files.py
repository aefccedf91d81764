"""JSON files as they are shared, and badly written ones."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

import sinkscope.records.json_files
import sinkscope.records.text
from sinkscope.records.json_files import json_rows
from sinkscope.records.text import Damaged

ROWS = [
    {"image": f"{i}.png", "text": f"Is it {i}? \u00e9\u4e2d\U0001f600", "n": i} for i in range(9)
]


def write(folder: Path, text: str | bytes, name: str = "data.json") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(path: Path) -> list[tuple[int, Any]]:
    return list(json_rows(path, path.name))


LAYOUTS = {
    "lines": "\n".join(map(json.dumps, ROWS)),
    "lines with blank ones and CRLF": "\r\n\r\n".join(map(json.dumps, ROWS)) + "\r\n",
    "array": json.dumps(ROWS),
    "array, indented": json.dumps(ROWS, indent=4, ensure_ascii=False),
    "array, one a line": "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
    "held": json.dumps({"dataset_name": "docvqa", "info": {"a": [1]}, "data": ROWS, "more": [2]}),
    "held, indented": json.dumps({"data": ROWS}, indent=2),
    "held under annotations": json.dumps({"annotations": ROWS}),
    "objects one behind the other": "\n".join(json.dumps(row, indent=1) for row in ROWS),
    "a mark of the encoding": "\ufeff" + json.dumps(ROWS, ensure_ascii=False),
    "a mark and lines": "\ufeff" + "\n".join(map(json.dumps, ROWS)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("chunk", [1 << 20, 64, 7, 1])
def test_layouts(layout: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinkscope.records.json_files, "_CHUNK", chunk)
    path = write(tmp_path, LAYOUTS[layout])
    assert [row for _, row in read(path)] == ROWS


@pytest.mark.parametrize("name", ["coco_pope_random.json", "pope.jsonl", "pope.ndjson"])
def test_lines_whatever_the_file_is_called(name: str, tmp_path: Path) -> None:
    """POPE's files are JSON lines and are called .json."""
    numbered = read(write(tmp_path, "\n".join(map(json.dumps, ROWS)), name))
    assert numbered == list(enumerate(ROWS, 1))
    assert read(write(tmp_path, json.dumps(ROWS), name)) == list(enumerate(ROWS, 1))


def test_one_record_alone_and_none(tmp_path: Path) -> None:
    for name in ("data.json", "data.jsonl"):
        assert read(write(tmp_path, json.dumps(ROWS[0]), name)) == [(1, ROWS[0])]
        assert read(write(tmp_path, json.dumps(ROWS[0]) + "\n", name)) == [(1, ROWS[0])]
        assert read(write(tmp_path, "", name)) == [] == read(write(tmp_path, " \n\n", name))
    assert read(write(tmp_path, "[]")) == []
    one = {"image": "a.png", "messages": [{"role": "user", "content": "x"}]}
    assert read(write(tmp_path, json.dumps(one, indent=2))) == [(1, one)]


def test_a_long_line_that_is_called_json(tmp_path: Path) -> None:
    """Longer than the part that is examined to tell lines from one object."""
    rows = [{"image": "A" * 200_000, "text": str(i)} for i in range(3)]
    assert [r for _, r in read(write(tmp_path, "\n".join(map(json.dumps, rows))))] == rows


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("{", "a.jsonl", "Line 1 of a.jsonl is not JSON"),
        ('{"a": 1}\n{"a": 1,}\n', "a.jsonl", "Line 2 of a.jsonl is not JSON"),
        ('{"a": 1}\n{"a": 1, "a": 2}\n', "a.jsonl", "Line 2 of a.jsonl .* the key 'a' twice"),
        ('{"a": 1} {"a": 1}\n', "a.jsonl", "Line 1 of a.jsonl is not JSON: Extra data"),
        ('{"a": "b\0c"}\n', "a.jsonl", "Line 1 of a.jsonl is not JSON: Invalid control character"),
        (b'{"a": 1}\n{"a": "\xff"}', "a.jsonl", "Line 2 of a.jsonl is not UTF-8 text .*as UTF-8"),
        ("\ufeff{}".encode("utf-16"), "a.jsonl", "a.jsonl is UTF-16; save the file as UTF-8"),
        ('{"a": ' * 100_000, "a.jsonl", "Line 1 of a.jsonl .*it is nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "a.jsonl", "Line 1 of a.jsonl is not JSON: Exceeds"),
        ('[{"a": 1}, {"a": }]', "a.json", "Entry 2 of a.json is not JSON: Expecting value"),
        ('[{"a": 1}, {"a": 1', "a.json", "Entry 2 of a.json is not JSON"),
        ('[{"a": 1}', "a.json", "after entry 1, of a.json is not JSON: the file ends where"),
        ('[{"a": 1} {"a": 2}]', "a.json", "after entry 1, of a.json is not JSON: '{' stands where"),
        ('[{"a": 1},]', "a.json", "Entry 2 of a.json is not JSON"),
        ('[{"a": 1}] x', "a.json", "continues with 'x' after its end"),
        ('[{"a": 1, "a": 2}]', "a.json", "Entry 1 of a.json is not JSON: .* the key 'a' twice"),
        ("[" * 100_000, "a.json", "Entry 1 of a.json is not JSON: it is nested too deeply"),
        (b'[{"a": "\xff"}]', "a.json", "a.json is not UTF-8 text"),
        ("\ufeff[]".encode("utf-16"), "a.json", "a.json is UTF-16"),
        ("image,question\n", "a.json", "a.json is not JSON: it begins with b'image"),
        ('{"data": [{"a": 1}], "x": }', "a.json", "under 'x' of a.json is not JSON"),
    ],
)
def test_what_is_wrong_is_named(text: str | bytes, name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read(write(tmp_path, text, name))
    assert len(str(error.value)) < 300 and str(tmp_path) not in str(error.value)


def test_lines_and_values_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinkscope.records.text.LONGEST", 1000)
    monkeypatch.setattr("sinkscope.records.json_files.LONGEST", 1000)
    monkeypatch.setattr("sinkscope.records.json_files._CHUNK", 100)
    long = '{"a": "' + "x" * 5000 + '"}'
    with pytest.raises(ValueError, match=r"Line 2 of a\.jsonl is longer than"):
        read(write(tmp_path, f'{{"a": 1}}\n{long}', "a.jsonl"))
    with pytest.raises(ValueError, match=r"Entry 2 of a\.json is longer than"):
        read(write(tmp_path, f'[{{"a": 1}}, {long}]', "a.json"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_values_have_a_limit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed, brackets use twenty times the memory of their text."""
    monkeypatch.setattr("sinkscope.records.text.MOST_VALUES", 1000)
    monkeypatch.setattr("sinkscope.records.json_files._CHUNK", 500)
    long = '{"a": [' + ",".join(["[]"] * 2000) + "]}"
    whole = long if name == "a.jsonl" else f"[{long}]"
    with pytest.raises(ValueError, match=r"1 of a\.json.* has more than 1000 values, the most"):
        read(write(tmp_path, whole, name))


def test_nan_is_read_and_left_to_the_format(tmp_path: Path) -> None:
    ((_, row),) = read(write(tmp_path, '{"a": NaN, "b": Infinity}', "a.jsonl"))
    assert row["a"] != row["a"] and row["b"] == float("inf")


@pytest.mark.parametrize("name", ["big.jsonl", "big.json"])
def test_memory_does_not_grow_with_the_file(name: str, tmp_path: Path) -> None:
    row = {"image": "x.jpg", "text": "y" * 2000}

    def peak(rows: int) -> int:
        text = json.dumps(row)
        whole = "\n".join([text] * rows) if name == "big.jsonl" else f"[{','.join([text] * rows)}]"
        path = write(tmp_path, whole, name)
        del whole
        tracemalloc.start()
        assert sum(1 for _ in json_rows(path, name)) == rows
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(10)
    assert peak(8000) < peak(2000) + 200_000 < 20_000_000


def damage(path: Path) -> list[tuple[int, Any]]:
    """Rows, with the reason instead of those that cannot be read."""
    return [
        (number, row.reason if isinstance(row, Damaged) else row)
        for number, row in json_rows(path, path.name, damaged=True)
    ]


def test_lines_behind_a_damaged_one_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinkscope.records.text, "LONGEST", 40)
    lines = [b'{"a": 1}', b'{"a": 1,', b"", b'{"a": "\xff"}', b'{"a": "%s"}' % (b"x" * 200)]
    path = write(tmp_path, b"\n".join([*lines, b'{"a": 2}', b"{"]), "a.jsonl")
    found = damage(path)
    assert [number for number, _ in found] == [1, 2, 4, 5, 6, 7]
    assert [row for _, row in found if isinstance(row, dict)] == [{"a": 1}, {"a": 2}]
    said = [row for _, row in found if isinstance(row, str)]
    assert said[0].startswith("Line 2 of a.jsonl is not JSON: ")
    assert said[1].startswith("Line 4 of a.jsonl is not UTF-8 text (its byte 7)")
    assert said[2].startswith("Line 5 of a.jsonl is longer than ")
    assert said[3].startswith("Line 7 of a.jsonl is not JSON: ")
    with pytest.raises(ValueError, match=r"Line 2 of a\.jsonl is not JSON"):
        read(path)


def test_a_list_that_breaks_off_says_where(tmp_path: Path) -> None:
    path = write(tmp_path, '[{"a": 1}, {"a": 2}, {"a": }, {"a": 4}]')
    found = damage(path)
    assert found[:2] == [(1, {"a": 1}), (2, {"a": 2})]
    number, said = found[2]
    assert (len(found), number) == (3, 3)
    assert said.startswith("Entry 3 of data.json is not JSON: ")
    assert said.endswith("What follows it cannot be read.")
