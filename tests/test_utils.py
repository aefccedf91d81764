"""The small helpers: a file is old or new and never half written; plain values are JSON's."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from sinkscope.utils import plain_values, sha256, write_atomically


def test_writes_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_failed_write_leaves_the_old_file_and_no_debris(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def half(file: BinaryIO) -> None:
        file.write(b"half of the")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, half)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def look(file: BinaryIO) -> None:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"

    write_atomically(path, look)
    assert path.read_bytes() == b"new"


def test_the_file_gets_the_mode_that_any_new_file_gets(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    written = tmp_path / "written"
    before = os.umask(0o027)
    try:
        (tmp_path / "plain").unlink()
        plain.write_bytes(b"")
        write_atomically(written, lambda file: None)
    finally:
        os.umask(before)
    assert stat.S_IMODE(written.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode) == 0o640


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        write_atomically(tmp_path / "missing" / "a", lambda file: None)


def test_sha256() -> None:
    # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(b"abc") == expected


def test_plain_values_are_what_json_gives_back() -> None:
    value = {"a": (1, 2.5, None, True, "x"), 3: {"b": ((), np.float64(0.5), np.int32(7))}}
    made = plain_values(value)
    assert (
        made
        == json.loads(json.dumps(made))
        == {
            "a": [1, 2.5, None, True, "x"],
            "3": {"b": [[], 0.5, 7]},
        }
    )
    assert [type(one) for one in made["3"]["b"][1:]] == [float, int]


@pytest.mark.parametrize("value", [float("inf"), b"x", object(), {1}, np.zeros(2), {"a": [{2}]}])
def test_other_values_are_refused_with_their_place(value: object) -> None:
    with pytest.raises(ValueError, match=r"^settings\.deep.* is .*; allowed: "):
        plain_values({"deep": value}, "settings")
