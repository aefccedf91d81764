"""Every reader of files from outside, with every kind of damage: a value, or one sentence."""

from __future__ import annotations

import errno
import json
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sinkscope.untrusted import open_regular
from tests.hostile.corpus import (
    TRILLION,
    changed,
    garbled,
    json_bombs,
    toml_bombs,
)
from tests.hostile.limits import Touched, bounded_memory, refused_or_read, share
from tests.hostile.readers import READERS, Reader, joined, split, trace_bytes

EACH = share(0.5 / len(READERS), 12)  # of the long form half are files
BOMBS = {"json": json_bombs, "lines": json_bombs, "toml": toml_bombs}
# There may be many rows, read one by one: memory stays constant, time grows with the rows.
ROW_BY_ROW = ("JSON lines", "JSON list", "held list", "COCO")
# Names given by a user of the command line are returned as they were written.
OWN_PATH = ("targets", "COCO", "image")
TRACES = tuple(reader for reader in READERS if reader.kind == "trace")


def attack(reader: Reader, folder: Path, inputs: Callable[[bytes, random.Random], bytes]) -> None:
    """Read this many inputs, after the valid file, which must open."""
    path, sound = folder / reader.file, reader.sound()
    path.write_bytes(sound)
    reader.read(path)
    rng = random.Random(reader.name)
    with Touched(folder) as touched, bounded_memory():
        for _ in range(EACH):
            path.write_bytes(inputs(sound, rng))
            refused_or_read(lambda: reader.read(path), folder)
    assert touched.written == []


@pytest.mark.parametrize("reader", READERS, ids=lambda one: one.name)
def test_bytes_that_are_damaged(reader: Reader, tmp_path: Path) -> None:
    attack(reader, tmp_path, garbled)


def other_values(sound: bytes, rng: random.Random) -> bytes:
    """Valid JSON with other values in it; in a file of lines, in one of the lines."""
    *before, line = sound.strip().split(b"\n") if b"\n{" in sound else [sound]
    return b"\n".join([*before, json.dumps(changed(json.loads(line), rng)).encode()]) + b"\n"


def other_header(sound: bytes, rng: random.Random) -> bytes:
    """A trace with other values in its JSON part or its table, with correct checksums."""
    header, tensors = split(sound)
    about = json.loads(header["__metadata__"]["sinkscope-trace"])
    if rng.random() < 0.8:
        about = changed(about, rng)
    else:
        table = changed({k: v for k, v in header.items() if k != "__metadata__"}, rng)
        header = {"__metadata__": header["__metadata__"], **table}
        if not all(isinstance(v, dict) and {"dtype", "shape"} <= set(v) for v in table.values()):
            return json.dumps(header).encode()
        if not all(isinstance(v["shape"], list) for v in table.values()):
            return json.dumps(header).encode()
    return joined(header, about, tensors)


@pytest.mark.parametrize(
    "reader", [r for r in READERS if r.kind in ("json", "lines", "trace")], ids=lambda one: one.name
)
def test_other_values_in_their_place(reader: Reader, tmp_path: Path) -> None:
    attack(reader, tmp_path, other_header if reader.kind == "trace" else other_values)


@pytest.mark.parametrize(
    "reader", [r for r in READERS if r.kind in BOMBS], ids=lambda one: one.name
)
def test_texts_that_cost_more_than_they_say(reader: Reader, tmp_path: Path) -> None:
    path = tmp_path / reader.file
    reads = []
    with bounded_memory():
        for name, text in BOMBS[reader.kind]().items():
            if name == "many lists" and reader.name in ROW_BY_ROW:
                continue
            path.write_bytes(text)
            if not refused_or_read(lambda: reader.read(path), tmp_path):
                reads.append(name)
    allowed = {"not a number", "infinity", "beyond floats", "half a character", "empty", "null"}
    allowed |= {"large", "a number"} if reader.kind != "toml" else set()
    assert set(reads) <= allowed | {"many lists", "a key twice"}, reads
    deep = ("lists in lists", "closed lists in lists", "a little too deep", "a key of many parts")
    assert not set(reads) & {*deep, "tables in tables", "closed arrays"}


def no_file(kind: str, path: Path) -> None:
    """Put something at the path that is not a regular file."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "missing":
        return
    else:
        path.symlink_to(kind)


@pytest.mark.parametrize(
    "kind", ["pipe", "folder", "/dev/zero", "/dev/tty", "/proc/kmsg", "missing"]
)
@pytest.mark.parametrize("reader", READERS, ids=lambda one: one.name)
def test_what_is_no_file_is_refused_at_once(reader: Reader, kind: str, tmp_path: Path) -> None:
    path = tmp_path / reader.file
    if reader.name == "record":
        pytest.skip("takes a line, not a file")
    no_file(kind, path)
    hidden = () if reader.name in OWN_PATH else (tmp_path,)
    said: list[str] = []
    worker = threading.Thread(
        target=lambda: said.append(refused_or_read(lambda: reader.read(path), *hidden)), daemon=True
    )
    worker.start()
    worker.join(20)
    assert not worker.is_alive(), "it waits"
    if kind == "/proc/kmsg" and reader.kind in ("json", "lines", "table", "toml", "text"):
        return  # an empty file: some of them may be empty
    assert said and said[0]


@pytest.mark.parametrize("reader", TRACES, ids=lambda one: one.name)
@pytest.mark.parametrize("key", ["length", "stop", "start", "rows", "columns", "positions", "t"])
def test_a_trace_of_a_trillion(reader: Reader, key: str, tmp_path: Path) -> None:
    """`stop = 10^12` once used 17.5 GB."""
    header, tensors = split(reader.sound())
    text = header["__metadata__"]["sinkscope-trace"]
    path = tmp_path / reader.file
    with bounded_memory():
        for about in trillions(json.loads(text), key):
            path.write_bytes(joined(header, about, tensors))
            assert refused_or_read(lambda: reader.read(path), tmp_path)


def trillions(about: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The same with a trillion for each thing of this name in its layout."""
    made = []
    for index in range(_count(about["layout"], key)):
        one = json.loads(json.dumps(about))
        _set(one["layout"], key, index)
        made.append(one)
    return made


def _count(plain: Any, key: str) -> int:
    return sum(1 for _ in _holders(plain, key))


def _holders(plain: Any, key: str) -> Any:
    if isinstance(plain, dict):
        if key in plain:
            yield plain
        for inner in plain.values():
            yield from _holders(inner, key)
    elif isinstance(plain, list):
        for inner in plain:
            yield from _holders(inner, key)


def _set(plain: Any, key: str, index: int) -> None:
    holder = list(_holders(plain, key))[index]
    holder[key] = [[0, TRILLION]] if key == "positions" else TRILLION


def test_a_trillion_tokens_that_take_no_bytes(tmp_path: Path) -> None:
    """No token was kept, so no tensor has any bytes, and everything fits except the prompt."""
    header, _ = split(trace_bytes())
    about = json.loads(header["__metadata__"]["sinkscope-trace"])
    image = header["image_0"]
    about |= {"tokens": [], "prompt_rows": None, "reference": None, "sinks": [], "var": None}
    about["layout"] = {
        "length": TRILLION,
        "segments": [{"kind": "image", "start": 0, "stop": TRILLION, "image": 0}],
        "grids": [
            {
                **about["layout"]["grids"][0],
                "views": [
                    {
                        **about["layout"]["grids"][0]["views"][0],
                        "positions": [[0, TRILLION]],
                        "rows": 10**6,
                        "columns": 10**6,
                        "frames": 1,
                    }
                ],
            }
        ],
    }
    size = [0, len(about["layers"]), len(about["heads"])]
    shapes = {
        "attention": ("F16", [*size, TRILLION]),
        "shares": ("F32", [*size, 2]),
        "entropy": ("F32", size),
        "head_mean": ("F32", [*size[:2], TRILLION]),
    }
    table: dict[str, Any] = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}
        for name, (dtype, shape) in shapes.items()
    }
    begin, end = image["data_offsets"]
    table["image_0"] = {**image, "data_offsets": [0, end - begin]}
    data = joined({"__metadata__": header["__metadata__"], **table}, about, bytes(end - begin))
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    for reader in TRACES[:3]:
        with bounded_memory():
            said = refused_or_read(lambda: reader.read(path), tmp_path)  # noqa: B023
        assert "tokens; allowed" in said


def damaged_trace(tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> str:
    """The error for a trace that was changed and signed again."""
    header, tensors = split(trace_bytes())
    about = json.loads(header["__metadata__"]["sinkscope-trace"])
    change(about)
    path = tmp_path / "a.safetensors"
    path.write_bytes(joined(header, about, tensors))
    with bounded_memory():
        return refused_or_read(lambda: TRACES[0].read(path), tmp_path)


def test_a_map_of_more_cells_than_an_image_has(tmp_path: Path) -> None:
    """A view over a millionth of an image makes a map with a million times its cells."""

    def change(about: dict[str, Any]) -> None:
        grid = about["layout"]["grids"][0]
        grid["original"] = [10**9, 10**9]

    assert "map of an image" in damaged_trace(tmp_path, change)


@pytest.mark.parametrize(
    ("report", "words"),
    [
        ({"settings": [1]}, "var.settings"),
        ({"settings": {}, "layers": {"a": 1}}, "var.layers"),
        ({"settings": {}, "layers": [None]}, "var.layers"),
        ({"settings": {}, "layers": [{"positions": [1]}]}, "layer"),
        ({"settings": {}, "layers": [{"layer": 0, "positions": [TRILLION]}]}, "var.layers"),
        ([1], "var is"),
    ],
)
def test_a_report_of_var_is_one(report: Any, words: str, tmp_path: Path) -> None:
    assert words in damaged_trace(tmp_path, lambda about: about.update(var=report))


def test_a_row_of_commas_is_no_row(tmp_path: Path) -> None:
    """Empty cells use memory too."""
    path = tmp_path / "a.csv"
    path.write_bytes(b"a" + b"," * 20_000_000)
    reader = next(one for one in READERS if one.name == "CSV")
    with bounded_memory():
        assert "cells, the most" in refused_or_read(lambda: reader.read(path), tmp_path)


def test_what_is_no_file_is_not_even_opened(tmp_path: Path, monkeypatch: Any) -> None:
    """Opening already changes some devices."""
    os.mkfifo(tmp_path / "pipe")
    opened: list[object] = []
    monkeypatch.setattr("sinkscope.untrusted.os.open", lambda *path: opened.append(path))
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(OSError) as caught:
            open_regular(path)
        assert caught.value.errno == errno.EINVAL
    assert opened == []


def test_what_becomes_a_pipe_behind_the_look_is_not_waited_for(
    tmp_path: Path, monkeypatch: Any
) -> None:
    path = tmp_path / "file"
    os.mkfifo(path)
    looks: list[os.stat_result] = []

    def look(about: os.stat_result) -> None:
        looks.append(about)
        if len(looks) > 1:  # the first look saw a file, which was then replaced
            raise OSError(errno.EINVAL, "it is not a regular file")

    monkeypatch.setattr("sinkscope.untrusted._check_regular", look)
    said: list[object] = []

    def act() -> None:
        with pytest.raises(OSError):
            open_regular(path)
        said.append("refused")

    worker = threading.Thread(target=act, daemon=True)
    worker.start()
    worker.join(20)
    assert said == ["refused"] and len(looks) == 2
