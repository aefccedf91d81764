"""Samples from folders, JSON lines, a hub dataset and memory; all kinds of bad input."""

from __future__ import annotations

import base64
import hashlib
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
    assert pair.where == "line 2 of data.jsonl"
    (asked,) = (s for s in read.samples if s.id != "pair")
    assert (asked.prompt, asked.answer) == ("What?", "This.") and asked.id.startswith("0.png#")
    (copy, twice), (missing, _) = read.skipped
    assert copy.startswith("0.png#") and missing.startswith("missing.png#")
    assert copy in twice and asked.id in twice and "the same picture" in twice
    # The order of lines has no effect, nor has a byte order mark.
    path.write_text("\ufeff" + "\r\n".join(map(json.dumps, lines[::-1])), encoding="utf-8")
    assert read_samples(path, 9, prompt="Default?") == read


POPE = (
    {"question_id": 1, "image": "0.png", "text": "Is there a dog?", "label": "yes"},
    {"question_id": 2, "image": "0.png", "text": "Is there a cat?", "label": "no"},
    {"question_id": 3, "image": "2.png", "text": "Is there a dog?", "label": "no"},
)


def test_popes_questions_are_asked_with_their_answers(folder: Path) -> None:
    """Two questions about one picture are two samples; the file is called .json but has lines."""
    path = folder / "coco_pope_random.json"
    path.write_text("\n".join(map(json.dumps, POPE)) + "\n")
    read = read_samples(path, 3)
    assert [(s.id, s.prompt, s.answer, s.where) for s in read.samples] == [
        ("1", "Is there a dog?", "yes", "line 1 of coco_pope_random.json"),
        ("2", "Is there a cat?", "no", "line 2 of coco_pope_random.json"),
        ("3", "Is there a dog?", "no", "line 3 of coco_pope_random.json"),
    ]
    alike = (
        "The 3 samples show 2 different pictures. Samples of one picture are alike, so that "
        "intervals come out too narrow.",
    )
    assert read.notes() == alike
    assert len({s.fingerprint() for s in read.samples}) == 3
    (path.with_suffix(".jsonl")).write_text("\n".join(map(json.dumps, [*POPE, *POPE[:2]])))
    again = read_samples(path.with_suffix(".jsonl"), 3)
    assert len(again.samples) == 3
    assert again.notes() == (
        "2 lines say the same as others (picture, question and answer), and count once.",
        *alike,
    )


def test_one_question_with_two_answers_is_two_samples_and_without_one_none(folder: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"image": "0.png", "question": "What?", "answer": answer} for answer in ("a", "b", None)
    ]
    path = folder / "data.jsonl"
    for seed in range(6):  # in every order
        path.write_text("\n".join(map(json.dumps, rows)))
        read = read_samples(path, 9, seed=seed)
        assert sorted(str(s.answer) for s in read.samples) == ["a", "b"]
        assert len(read.skipped) == 1 and "the same picture" in read.skipped[0][1]


def test_a_question_nobody_can_find_is_not_replaced_by_ours(folder: Path) -> None:
    rows = [{"image": "0.png", "utterance": "Is it?", "gold": "no"}] * 2
    path = folder / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="no question in 2 of 2 lines; keys present: image, utter"):
        read_samples(path, 1)
    assert read_samples(path, 1, prompt="What?").samples[0].prompt == "What?"


def test_images_lie_in_another_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    path = tmp_path / "annotations" / "data.jsonl"
    path.write_text(json.dumps({"image": "0.png", "question": "What?"}))
    with pytest.raises(ValueError, match="does not exist"):
        read_samples(path, 1)
    assert read_samples(path, 1, images=folder).samples[0].prompt == "What?"
    with pytest.raises(ValueError, match=r"folder of images .*nowhere does not exist"):
        read_samples(path, 1, images=tmp_path / "nowhere")


def test_samples_that_nobody_wants_are_passed_over(folder: Path) -> None:
    first = {s.id for s in read_samples(folder, 3).samples}
    rest = read_samples(folder, 3, unless=lambda sample: sample.id in first)
    assert (
        rest.left_out == 3 and len(rest.samples) == 3 and not first & {s.id for s in rest.samples}
    )
    none = read_samples(folder, 3, unless=lambda sample: True)
    assert none.samples == () and none.left_out == 6


def test_a_wrong_folder_of_images_is_found_out_early(tmp_path: Path) -> None:
    lines = (json.dumps({"image": f"{i}.png", "question": "What?"}) for i in range(20_000))
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"None of the 1010 samples .*; the first: .* not exist"):
        read_samples(tmp_path / "data.jsonl", 1)


def test_images_inside_a_file_are_kept_as_they_are(tmp_path: Path) -> None:
    """Images are decoded when needed; only one at a time is in memory."""
    file = io.BytesIO()
    picture(7).save(file, "PNG")
    uri = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "What?"}]
    row = {"messages": [{"role": "user", "content": content}]}
    (tmp_path / "data.jsonl").write_text(json.dumps(row))
    (sample,) = read_samples(tmp_path / "data.jsonl", 1).samples
    assert sample.images == (file.getvalue(),)
    assert sample.open_images()[0].getpixel((0, 0)) == (7, 0, 0)


def test_system_message_and_history_are_part_of_what_is_seen() -> None:
    plain = Sample("a", (picture(1),), "What?")
    kind = Sample("a", (picture(1),), "What?", system="Be kind.")
    late = Sample("a", (picture(1),), "What?", history=(("Hi", "Ho"),))
    assert len({plain.fingerprint(), kind.fingerprint(), late.fingerprint()}) == 3
    # The fingerprint is unchanged without them: existing files in the work folder use it.
    seen = json.dumps([plain.digests, plain.prompt]).encode()
    assert plain.fingerprint() == hashlib.sha256(seen).hexdigest()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "Line 1 of .* is not JSON"),
        ("[1]", "is not JSON object"),
        ('{"prompt": "x"}', "has no image"),
        ('{"image": 3}', "has no image"),
        ('{"image": "0.png", "prompt": 3}', "prompt that is not text: 3"),
    ],
)
def test_malformed_lines_are_named(folder: Path, line: str, message: str) -> None:
    (folder / "data.jsonl").write_text(line)
    with pytest.raises(ValueError, match=message):
        read_samples(folder / "data.jsonl", 1)


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist; allowed: a folder"):
        read_samples(tmp_path / "nowhere", 1)
    (tmp_path / "data.xml").write_text("")
    with pytest.raises(ValueError, match=r"neither a folder nor a \.jsonl, .* or \.parquet file"):
        read_samples(tmp_path / "data.xml", 1)
    with pytest.raises(ValueError, match="images is given, but a hub dataset"):
        read_samples("hub:owner/name", 1, images=tmp_path)
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
    """Like the library's streamed dataset."""

    def decode(self, enable: bool) -> Rows:
        assert not enable
        return self

    def shuffle(self, seed: int, buffer_size: int) -> Rows:
        return self


def fake_datasets(rows: list[dict[str, Any]], asked: list[Any]) -> types.ModuleType:
    module = types.ModuleType("datasets")

    def load_dataset(name: str, *own: str, split: str, streaming: bool, **more: str) -> Rows:
        asked.append((name, *own, split, streaming, *more.items()))
        if name == "owner/missing":
            raise OSError("not found")
        return Rows(rows)

    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    module.exceptions = types.SimpleNamespace(DatasetsError=RuntimeError)  # type: ignore[attr-defined]
    return module


def undecoded(image: Image.Image) -> dict[str, Any]:
    """Like an image that the library has not decoded."""
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
    there = {"bytes": None, "path": "hf://datasets/owner/name/there.png"}
    monkeypatch.setattr(
        "fsspec.open", lambda name, mode: (tmp_path / name.rsplit("/", 1)[1]).open(mode)
    )
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
    with pytest.raises(ValueError, match="no image in 1 of 1 row; keys present: text"):
        read_samples("hub:owner/name", 2)
    read_samples_of = (("hub:owner/name@abc:some:val", ("some", "val", True, ("revision", "abc"))),)
    for name, expected in read_samples_of:
        monkeypatch.setitem(sys.modules, "datasets", fake_datasets(rows, asked))
        assert read_samples(name, 2).samples[0].where == f"a row of {name}"
        assert asked[-1] == ("owner/name", *expected)
    # Rows that cannot be asked end the run; a large dataset is not read to its end for them.
    endless = [{"image": undecoded(picture(1)), "gold": "x"}] * 100_000
    monkeypatch.setitem(sys.modules, "datasets", fake_datasets(endless, asked))
    with pytest.raises(ValueError, match="no question in 120 of 120 rows"):
        read_samples("hub:owner/name", 2)
