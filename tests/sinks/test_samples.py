"""Samples from folders, JSON lines, a hub dataset and memory; everything that can be wrong."""

from __future__ import annotations

import io
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sinkscope.sinks.samples import PROMPT, Sample, read_samples


def picture(shade: int) -> Image.Image:
    return Image.new("RGB", (56, 56), (shade, 0, 0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for i in range(6):
        picture(i).save(tmp_path / ("sub" if i % 2 else ".") / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_a_folder_is_read_with_its_subfolders(folder: Path) -> None:
    read = read_samples(folder, 6)
    ids = [s.id for s in read.samples]
    assert ids == ["0.png", "2.png", "4.png", "sub/1.png", "sub/3.png", "sub/5.png"]
    assert read.notes() == () and {s.prompt for s in read.samples} == {PROMPT}
    assert read.samples[3].open_images()[0].getpixel((0, 0)) == (1, 0, 0)


def test_a_draw_depends_on_the_seed_alone(folder: Path, tmp_path: Path) -> None:
    three = [s.id for s in read_samples(folder, 3).samples]
    again = read_samples(list(reversed(read_samples(folder, 6).samples)), 3)
    assert [s.id for s in again.samples] == three
    others = {tuple(s.id for s in read_samples(folder, 3, seed=seed).samples) for seed in range(8)}
    assert len(others) > 1


def test_unreadable_images_are_listed_and_replaced_by_others(folder: Path) -> None:
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:40])
    (folder / "text.jpg").write_text("no image")
    read = read_samples(folder, 8)
    assert len(read.samples) == 6
    assert [name for name, _ in read.skipped] == ["broken.png", "text.jpg"]
    few, skipped = read.notes()
    assert few.endswith("has 6 usable samples; 8 were asked for.")
    assert skipped.startswith("2 samples were skipped: ") and "damaged" in skipped
    for path in folder.rglob("*.png"):
        path.write_text("no image")
    with pytest.raises(ValueError, match="None of the 8 samples"):
        read_samples(folder, 8)


def test_json_lines(folder: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"image": "0.png", "question": "What?", "answer": "This."},
        {"images": ["0.png", "sub/1.png"], "prompt": "Both?", "id": "pair"},
        {"image": "0.png", "question": "What?"},
        {"image": "missing.png"},
    ]
    path = folder / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    read = read_samples(path, 9, prompt="Default?")
    pair = next(s for s in read.samples if s.id == "pair")
    assert len(pair.images) == 2 and pair.prompt == "Both?" and pair.answer is None
    (asked,) = (s for s in read.samples if s.id != "pair")
    assert (asked.prompt, asked.answer) == ("What?", "This.") and asked.id.startswith("0.png#")
    (copy, twice), (missing, _) = read.skipped
    assert copy == f"{asked.id} (2)" and missing.startswith("missing.png#")
    assert twice == f"{copy} is the same picture and question as {asked.id}."
    # The order of the lines changes nothing, nor does a mark of their encoding.
    path.write_text("\ufeff" + "\r\n".join(map(json.dumps, lines[::-1])), encoding="utf-8")
    assert read_samples(path, 9, prompt="Default?") == read


def test_rows_of_one_id_are_told_apart_by_what_they_ask(folder: Path) -> None:
    lines = [{"image": f"{2 * i}.png", "question": f"{i}?", "id": "x"} for i in range(3)]
    for given in (lines, lines[::-1]):
        (folder / "data.jsonl").write_text("\n".join(map(json.dumps, given)))
        read = read_samples(folder / "data.jsonl", 3)
        assert [(s.id, s.prompt) for s in read.samples] == [
            ("x", "0?"),
            ("x (2)", "1?"),
            ("x (3)", "2?"),
        ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "Line 1 of .* is no JSON"),
        ("[1]", "is no JSON object"),
        ('{"prompt": "x"}', "has no image"),
        ('{"image": 3}', "has no image"),
        ('{"image": "0.png", "prompt": 3}', "prompt that is no text: 3"),
    ],
)
def test_malformed_lines_are_named(folder: Path, line: str, message: str) -> None:
    (folder / "data.jsonl").write_text(line)
    with pytest.raises(ValueError, match=message):
        read_samples(folder / "data.jsonl", 1)


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist; allowed: a folder"):
        read_samples(tmp_path / "nowhere", 1)
    (tmp_path / "data.csv").write_text("")
    with pytest.raises(ValueError, match=r"neither a folder nor a \.jsonl file"):
        read_samples(tmp_path / "data.csv", 1)
    with pytest.raises(ValueError, match="has no images"):
        read_samples(tmp_path, 1)
    with pytest.raises(ValueError, match="count is 0"):
        read_samples(tmp_path, 0)
    with pytest.raises(ValueError, match="Two samples have the id a"):
        read_samples([Sample("a", (picture(1),)), Sample("a", (picture(2),))], 2)
    with pytest.raises(ValueError, match="empty prompt"):
        Sample("a", (picture(1),), " ")
    with pytest.raises(ValueError, match="no list of images"):
        Sample("a", picture(1))  # type: ignore[arg-type]


def test_fingerprints_see_pixels_and_prompt_not_names(tmp_path: Path) -> None:
    picture(5).save(tmp_path / "a.png")
    one, same = Sample("one", (picture(5),)), Sample("other", (tmp_path / "a.png",))
    assert one.fingerprint() == same.fingerprint()
    assert one.fingerprint() != Sample("one", (picture(6),)).fingerprint()
    assert one.fingerprint() != Sample("one", (picture(5),), "Else?").fingerprint()


class Rows(list[Any]):
    """As the library's streamed dataset."""

    def decode(self, enable: bool) -> Rows:
        assert not enable
        return self

    def shuffle(self, seed: int, buffer_size: int) -> Rows:
        return self


def fake_datasets(rows: list[dict[str, Any]], asked: list[Any]) -> types.ModuleType:
    module = types.ModuleType("datasets")

    def load_dataset(name: str, split: str, streaming: bool) -> Rows:
        asked.append((name, split, streaming))
        if name == "owner/missing":
            raise OSError("not found")
        return Rows(rows)

    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    module.exceptions = types.SimpleNamespace(DatasetsError=RuntimeError)  # type: ignore[attr-defined]
    return module


def undecoded(image: Image.Image) -> dict[str, Any]:
    """As the library gives an image that it has not decoded."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": "a.png"}


def test_hub_datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="install the library datasets"):
        read_samples("hub:owner/name", 2)
    asked: list[Any] = []
    rows: list[dict[str, Any]] = [
        {"image": undecoded(picture(i)), "question": "What?", "answer": f"{i}"} for i in range(9)
    ]
    monkeypatch.setitem(sys.modules, "datasets", fake_datasets(rows, asked))
    read = read_samples("hub:owner/name:test", 2)
    assert len(read.samples) == 2 and asked == [("owner/name", "test", True)]
    assert all(s.answer and s.prompt == "What?" for s in read.samples)
    picture(50).save(tmp_path / "there.png")
    there = {"bytes": None, "path": str(tmp_path / "there.png")}
    broken = {"bytes": b"no image", "path": "b.png"}
    some = [{"image": broken}, {"images": [there, undecoded(picture(1))]}]
    monkeypatch.setitem(sys.modules, "datasets", fake_datasets(some, asked))
    read = read_samples("hub:owner/name", 2)
    assert len(read.samples) == 1 and len(read.samples[0].images) == 2
    assert len(read.skipped) == 1 and "not an image that can be read" in read.notes()[1]
    with pytest.raises(ValueError, match="cannot be read: not found"):
        read_samples("hub:owner/missing", 2)
    with pytest.raises(ValueError, match="names no dataset"):
        read_samples("hub:name", 2)
    monkeypatch.setitem(sys.modules, "datasets", fake_datasets([{"text": "x"}], asked))
    with pytest.raises(ValueError, match="has no column image or images"):
        read_samples("hub:owner/name", 2)
