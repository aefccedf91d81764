"""Damaged and manipulated trace files: one clear error for each."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sinkscope.capture import trace_file
from sinkscope.capture.storage import TraceReader
from sinkscope.capture.trace import GenerationTrace
from sinkscope.capture.trace_file import CHECKSUM, FORMAT, TraceFileError, header_checksum, table_of
from tests.capture.test_storage import prompt_trace, small_trace

About = dict[str, Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    plain = small_trace()
    rows = {"prompt_rows": prompt_trace(plain, 2), "reference": prompt_trace(plain, 1)}
    dataclasses.replace(plain, **rows).save(tmp_path / "run.safetensors")  # type: ignore[arg-type]
    return tmp_path / "run.safetensors"


def open_all(path: Path) -> None:
    """Both ways to open a file must refuse it, at the latest when everything has been read."""
    GenerationTrace.open(path)


def open_lazily(path: Path) -> None:
    with TraceReader(path) as reader:
        reader.part(range(len(reader.outline.tokens)))
        for token in range(len(reader.outline.tokens)):
            reader.head_mean(token)
        reader.image(0)


def refused(path: Path, words: str) -> None:
    before = path.read_bytes()
    for read in (open_all, open_lazily):
        with pytest.raises(ValueError, match=words) as caught:
            read(path)
        text = str(caught.value)
        assert path.name in text and "\n" not in text and len(text) < 400
        assert str(path.parent) not in text
    assert path.read_bytes() == before


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data, read without any library."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def put(path: Path, header: dict[str, Any] | bytes, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def rewrite(path: Path, change: Callable[[About], object], sign: bool) -> None:
    """Change the JSON part; with `sign`, also update the header's checksum."""
    header, data = parts(path)
    about = json.loads(header["__metadata__"][FORMAT])
    change(about)
    header["__metadata__"][FORMAT] = json.dumps(about)
    resign(header, sign)
    put(path, header, data)


def resign(header: dict[str, Any], sign: bool = True) -> None:
    table = {n: (p["dtype"], tuple(p["shape"])) for n, p in header.items() if n != "__metadata__"}
    if sign:
        header["__metadata__"][CHECKSUM] = header_checksum(header["__metadata__"], table)


@pytest.mark.parametrize("sign", [False, True])
def test_what_is_rewritten_without_a_change_opens(path: Path, sign: bool) -> None:
    rewrite(path, lambda about: None, sign)
    open_all(path)
    open_lazily(path)


def set_to(value: Any, *keys: Any) -> Callable[[About], object]:
    def change(about: About) -> None:
        part: Any = about
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = value

    return change


def swap(name: str) -> Callable[[About], object]:
    def change(about: About) -> None:
        sums = about["token_checksums"][name]
        sums[0], sums[1] = sums[1], sums[0]

    return change


CHANGES = {
    "grid": set_to(3, "layout", "grids", 0, "views", 0, "rows"),
    "grid turned": lambda about: about["layout"]["grids"][0]["views"][0].update(rows=3, columns=2),
    "grid moved": set_to([[1, 7]], "layout", "grids", 0, "views", 0, "positions"),
    "original size": set_to([80, 50], "layout", "grids", 0, "original"),
    "layers": set_to([0, 2], "layers"),
    "layers in another order": set_to([3, 0], "layers"),
    "heads": set_to([2, 1, 0], "heads"),
    "token": set_to(9, "tokens", 1, "id"),
    "text": set_to("x", "tokens", 1, "text"),
    "probability": set_to(0.25, "tokens", 1, "probability"),
    "prompt": set_to("another", "prompt"),
    "prompt token": set_to("z", "prompt_tokens", 3),
    "segment": set_to("user", "layout", "segments", 0, "kind"),
    "sink": set_to([4, 6], "sinks", 0, "positions"),
    "model": set_to("other/model", "model", "id"),
    "settings": set_to(99, "settings", "max_new_tokens"),
    "seed": set_to(6, "seed"),
    "VAR": set_to(0.75, "var", "moved"),
    "applied": set_to([], "applied"),
    "finish": set_to("stopped", "finish"),
    "reference": set_to("another", "reference", "prompt"),
    "prompt rows": set_to([7, 9], "prompt_rows", "positions"),
    "checksum": set_to("0" * 64, "checksum"),
    "swapped checksums": swap("attention"),
    "version": set_to(3, "version"),
    "more": set_to(1, "note"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_header(path: Path, what: str) -> None:
    rewrite(path, CHANGES[what], sign=False)
    refused(path, "damaged: the checksum of its header does not match")


def test_checksums_of_another_file(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    dataclasses.replace(small_trace(), seed=6).save(other)
    header, data = parts(path)
    header["__metadata__"][CHECKSUM] = parts(other)[0]["__metadata__"][CHECKSUM]
    put(path, header, data)
    refused(path, "checksum of its header")
    del header["__metadata__"][CHECKSUM]
    put(path, header, data)
    refused(path, "checksum of its header")
    header, data = parts(other)
    for name in ("checksum", "token_checksums"):  # signed again, so only the content differs
        about = json.loads(header["__metadata__"][FORMAT])
        about[name] = {
            "checksum": "0" * 64,
            "token_checksums": {k: [0] * len(v) for k, v in about["token_checksums"].items()},
        }[name]
        changed = json.loads(json.dumps(header))
        changed["__metadata__"][FORMAT] = json.dumps(about)
        resign(changed)
        put(other, changed, data)
        with pytest.raises(ValueError, match=r"is damaged: .*checksum"):
            (open_all if name == "checksum" else open_lazily)(other)


def test_two_tensors_that_change_places(path: Path) -> None:
    header, data = parts(path)
    a, b = header["prompt_rows_entropy"], header["reference_entropy"]
    assert a["shape"] != b["shape"]
    a["shape"], b["shape"] = b["shape"], a["shape"]
    a["data_offsets"], b["data_offsets"] = b["data_offsets"], a["data_offsets"]
    put(path, header, data)
    refused(path, "checksum of its header")
    header, data = parts(path)
    a["shape"], b["shape"] = b["shape"], a["shape"]
    a["data_offsets"], b["data_offsets"] = b["data_offsets"], a["data_offsets"]
    swapped = dict(zip(reversed(header), header.values(), strict=True))
    put(path, swapped, data)
    refused(path, "damaged")


def test_every_bit_of_the_header_counts(path: Path) -> None:
    """One bit of any byte: refused, or (a blank, another spelling) the same trace."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    right = GenerationTrace.open(path)
    opens = 0
    for at in range(0, 8 + length, 3):
        changed = bytearray(data)
        changed[at] ^= 1 << (at % 7)
        path.write_bytes(changed)
        try:
            with TraceReader(path) as reader:
                got = reader.outline
        except ValueError as error:
            assert path.name in str(error)
            continue
        opens += 1
        assert (got.layout, got.tokens, got.layers) == (right.layout, right.tokens, right.layers)
        assert (got.settings, got.var, got.prompt) == (right.settings, right.var, right.prompt)
    assert opens < 20


def test_every_byte_of_the_content_counts(path: Path) -> None:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    for at in range(start, len(data), 97):
        changed = bytearray(data)
        changed[at] ^= 0x10
        path.write_bytes(changed)
        refused(path, "checksum")


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 100, 0.3, 0.5, 0.9, 0.9999])
def test_a_file_that_is_cut_off(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    refused(path, "damaged or no trace: (its header should take|it is cut off)")


@pytest.mark.parametrize("more", [b"\0", b"x" * 1000])
def test_bytes_behind_the_end(path: Path, more: bytes) -> None:
    path.write_bytes(path.read_bytes() + more)
    refused(path, f"{len(more)} bytes follow its end")


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9, 0])
def test_a_header_of_another_size(path: Path, length: int) -> None:
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    refused(path, "damaged or no trace: (its header should take|Expecting value)")


HUGE = 2**62


def shaped(name: str, **values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda header: header[name].update(values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shaped("attention", shape=[HUGE, HUGE]), "takes .* bytes, which is not its size"),
        (shaped("attention", shape=[0, HUGE]), "which is not its size"),
        (shaped("attention", shape=[3, 2, 3, -6]), "not whole numbers from 0"),
        (shaped("attention", shape=[3, 2, 3, 6.0]), "not whole numbers from 0"),
        (shaped("attention", shape="3236"), "not whole numbers from 0"),
        (shaped("attention", data_offsets=[0, HUGE]), "which is not its size"),
        (shaped("shares", data_offsets=[0, 288]), "do not follow each other"),
        (shaped("attention", data_offsets=[0]), "damaged or no trace"),
        (shaped("attention", dtype="F64"), "damaged"),
        (shaped("attention", dtype=["F16"]), "damaged"),
        (lambda header: header.update(attention=None), "damaged or no trace"),
        (lambda header: header.update(__metadata__=[]), "its metadata are not texts"),
        (lambda header: header["__metadata__"].update(more=1), "its metadata are not texts"),
        (lambda header: header.pop("__metadata__"), "no SinkScope trace"),
        (lambda header: header["__metadata__"].update({FORMAT: "[1]"}), "checksum|not an object"),
        (lambda header: header["__metadata__"].update({FORMAT: "{"}), "damaged or no trace"),
    ],
)
def test_a_header_that_says_something_impossible(
    path: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    header, data = parts(path)
    change(header)
    put(path, header, data)
    refused(path, words)


@pytest.mark.parametrize(
    "header", [b"[]", b"7", b'"x"', b"", b"\xff\xfe", b"{" * 5000, b"[" * 200_000]
)
def test_a_header_that_is_none(path: Path, header: bytes) -> None:
    put(path, header, b"")
    refused(path, "damaged or no trace")


def test_a_key_that_is_there_twice(path: Path) -> None:
    header, data = parts(path)
    text = json.dumps(header).encode()
    twice = text.replace(b'"attention":', b'"attention": {"dtype": "F16"}, "attention":', 1)
    put(path, twice, data)
    refused(path, "has the key 'attention' twice")
    metadata = text.replace(b'"__metadata__": {', b'"__metadata__": {"format": "x", ', 1)
    put(path, metadata, data)
    refused(path, "has the key 'format' twice")


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"layers": [', '"layers": [0, 1], "layers": [', "the key 'layers' twice"),
        ('"seconds": 0.25', '"seconds": NaN', "has NaN, which is not a number"),
        ('"seconds": 0.25', '"seconds": -Infinity', "has -Infinity, which is not a number"),
        ('"seconds": 0.25', '"seconds": 1e999', "has 1e999, which is not a number"),
        ('"seed": 5', f'"seed": {"9" * 5000}', "digits"),
        ('"extra": {}', f'"extra": {"[" * 3000}', "damaged or no trace"),
    ],
)
def test_json_that_is_none_in_files_without_a_header_checksum(
    path: Path, version: int, old: str, new: str, words: str
) -> None:
    header, data = parts(path)
    del header["__metadata__"][CHECKSUM]
    text = header["__metadata__"][FORMAT].replace('"version": 4', f'"version": {version}')
    assert old in text
    header["__metadata__"][FORMAT] = text.replace(old, new, 1)
    put(path, header, data)
    refused(path, words)


@pytest.mark.parametrize("version", [0, -1, True, 3.0, "4", None, 10**30])
def test_a_version_that_is_none(path: Path, version: Any) -> None:
    rewrite(path, set_to(version, "version"), sign=True)
    refused(path, "format version")


CONTRADICTIONS = {
    "more vision tokens": (set_to(4, "layout", "grids", 0, "views", 0, "rows"), "but 6 positions"),
    "a layer more": (set_to([0, 1, 3], "layers"), r"attention is F16 \[3, 2, 3, 6\], where F16"),
    "a layer twice": (set_to([3, 3], "layers"), "one of them twice"),
    "a layer below 0": (set_to([-1, 3], "layers"), "layers has"),
    "layers that are texts": (set_to(["a", "b"], "layers"), "layers has"),
    "layers that are one text": (set_to("03", "layers"), "layers has"),
    "a head fewer": (set_to([0, 1], "heads"), "attention is"),
    "a token fewer": (lambda a: a["tokens"].pop(), "attention is"),
    "tokens that are numbers": (set_to([1, 2, 3], "tokens"), "damaged"),
    "an id that is a text": (set_to("1", "tokens", 0, "id"), "id has"),
    "a text that is none": (set_to(None, "tokens", 0, "text"), "text has something"),
    "a probability above 1": (set_to(1.5, "tokens", 0, "probability"), "probabilities"),
    "a probability that is a text": (set_to("1", "tokens", 0, "probability"), "probabilities"),
    "an alternative's id": (set_to(-3, "tokens", 0, "alternatives", 0, "id"), "id has"),
    "a prompt token more": (
        lambda a: a["prompt_tokens"].append("x"),
        "11 texts for a prompt of 10",
    ),
    "a prompt that is a number": (set_to(7, "prompt"), "prompt is 7"),
    "a segment more": (
        lambda a: a["layout"]["segments"].append({"kind": "user", "start": 10, "stop": 12}),
        "segments of its prompt end at 12",
    ),
    "segments with a gap": (
        set_to(3, "layout", "segments", 1, "start"),
        "do not follow each other",
    ),
    "a segment of another kind": (set_to("x", "layout", "segments", 0, "kind"), "do not follow"),
    "a segment of no image": (set_to(4, "layout", "segments", 1, "image"), "image 4"),
    "a longer prompt": (set_to(10**6, "layout", "length"), "end at 10"),
    "a prompt beyond all models": (set_to(10**12, "layout", "length"), "should have 10+ tokens"),
    "patches behind the prompt": (
        set_to([[8, 14]], "layout", "grids", 0, "views", 0, "positions"),
        "do not lie in its",
    ),
    "patches in disorder": (
        set_to([[5, 8], [2, 5]], "layout", "grids", 0, "views", 0, "positions"),
        "rising whole numbers",
    ),
    "a stretch of no patch": (
        set_to([[2, 8], [8, 8]], "layout", "grids", 0, "views", 0, "positions"),
        "do not lie in its",
    ),
    "endless patches": (
        lambda a: (
            a["layout"].update(length=10**12),
            a["layout"]["segments"][-1].update(stop=10**12),
            a["layout"]["grids"][0]["views"][0].update(
                positions=[[0, 10**11], [10**11 + 1, 10**12]], rows=10**6, columns=10**6 - 1
            ),
        ),
        "damaged",
    ),
    "a mark behind the prompt": (set_to([99], "layout", "grids", 0, "marks"), "do not lie in its"),
    "a view of another kind": (
        set_to("x", "layout", "grids", 0, "views", 0, "kind"),
        "kind is 'x'; allowed: whole, tile, thumbnail",
    ),
    "a box of nothing": (
        set_to([0, 0, 0, 50], "layout", "grids", 0, "views", 0, "box"),
        "allowed: x0 < x1",
    ),
    "an image without views": (set_to([], "layout", "grids", 0, "views"), "needs views"),
    "an image without a size": (set_to([0, 80], "layout", "grids", 0, "original"), "original is 0"),
    "a merge of 0": (set_to(0, "layout", "grids", 0, "views", 0, "merge"), "merge is 0"),
    "a sink behind the prompt": (set_to([4, 99], "sinks", 0, "positions"), "are beyond"),
    "a sink without a score": (set_to([1.0], "sinks", 0, "scores"), "without a score"),
    "settings that are none": (set_to([], "settings"), "settings is"),
    "a VAR report that is none": (set_to("x", "var"), "var is 'x'"),
    "a model without sizes": (set_to({"id": "m"}, "model"), "damaged"),
    "a model of a text's size": (set_to("4", "model", "layers"), "model.layers is '4'"),
    "prompt rows without tokens": (set_to([], "prompt_rows", "tokens"), "do not fit each other"),
    "prompt rows in disorder": (set_to([9, 8], "prompt_rows", "positions"), "do not fit"),
    "a missing field": (lambda a: a.pop("layers"), "it lacks 'layers'"),
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_a_header_that_contradicts_itself(path: Path, what: str) -> None:
    """A new signature does not help, nor does a file of a version without checksums."""
    change, words = CONTRADICTIONS[what]
    rewrite(path, change, sign=True)
    refused(path, words)


@pytest.mark.parametrize("name", ["attention", "shares", "entropy", "reference_attention"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_no_numbers(
    path: Path, name: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = GenerationTrace.open(path)
    rows = getattr(trace, name.rpartition("_")[0], None)
    part = name.rpartition("_")[2]
    wrong = getattr(rows or trace, part).clone()
    wrong.view(-1)[1] = value
    bad = (
        dataclasses.replace(trace, reference=dataclasses.replace(rows, attention=wrong))
        if rows
        else dataclasses.replace(trace, **{part: wrong})
    )
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"cannot be saved: its {name} has values that are not"):
        bad.save(path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    monkeypatch.setattr("sinkscope.capture.storage.check_numbers", lambda tensors: None)
    bad.save(path)
    monkeypatch.undo()
    refused(path, "damaged or no trace: its .* has values that are not numbers")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seconds": float("nan")}, "seconds is nan, which is not a number"),
        ({"shares": torch.zeros(3, 2, 3, 9)}, "its shares is"),
        ({"entropy": torch.zeros(3, 2, 3, dtype=torch.float64)}, "its entropy is torch.float64"),
        ({"images": ()}, "it lacks 'image_0'"),
        ({"layers": (0, 0)}, "one of them twice"),
    ],
)
def test_what_could_not_be_opened_again_is_not_saved(
    path: Path, change: dict[str, Any], words: str
) -> None:
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"The trace cannot be saved: .*{words}"):
        dataclasses.replace(small_trace(), **change).save(path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"var": {"layers": [0.5, float("inf")]}}, r"var.layers\[1\] is inf"),
        ({"extra": {"a": torch.zeros(1)}}, "extra.a is a Tensor; allowed: texts, numbers"),
    ],
)
def test_a_trace_holds_nothing_that_json_does_not_have(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(small_trace(), **change)


def test_a_negative_zero_and_a_rounded_probability_are_numbers(tmp_path: Path) -> None:
    """Older versions could write them."""
    trace = small_trace()
    entropy, attention = trace.entropy.clone(), trace.attention.clone()
    entropy[0, 0, 0], attention[0, 0, 0, 0] = -1e-9, -0.0
    dataclasses.replace(trace, entropy=entropy, attention=attention).save(
        tmp_path / "a.safetensors"
    )
    open_all(tmp_path / "a.safetensors")
    open_lazily(tmp_path / "a.safetensors")


def test_the_header_checksum_survives_the_librarys_own_writer(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    assert metadata[CHECKSUM] == header_checksum(metadata, table_of(tensors))
    save_file(tensors, path, metadata)
    open_all(path)
    open_lazily(path)


def test_files_are_closed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = trace_file.TraceFile.__init__

    def noted(self: trace_file.TraceFile, where: Path) -> None:
        made.append(self)
        real(self, where)

    monkeypatch.setattr(trace_file.TraceFile, "__init__", noted)
    open_all(path)
    open_lazily(path)
    rewrite(path, CHANGES["layers"], sign=False)
    for read in (open_all, open_lazily):
        with pytest.raises(TraceFileError):
            read(path)
    assert len(made) == 4
    assert all(file._file.closed for file in made)


def test_no_error_shows_more_than_the_file(path: Path) -> None:
    rewrite(path, set_to("x" * 100_000, "layers"), sign=True)
    with pytest.raises(ValueError) as caught:
        open_all(path)
    assert len(str(caught.value)) < 300
    assert re.search(r"layers has .*\.\.\.", str(caught.value))
