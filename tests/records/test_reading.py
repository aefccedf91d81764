"""What is counted and reported, and when a run stops before anything is computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sinkscope.records.pictures import FolderPictures
from sinkscope.records.reading import Survey, records_of
from sinkscope.records.record import Record
from sinkscope.records.sources import file_source

UNKNOWN = {"image": "a.png", "utterance": "Is it?", "gold": "no"}
POPE = {"question_id": 1, "image": "a.png", "text": "Is it?", "label": "no"}
SAID = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
TEXT_ONLY = {"id": "x", "conversations": SAID}


def read(
    folder: Path, rows: list[dict[str, Any]], prompt: str | None = None
) -> tuple[list[Record], tuple[str, ...]]:
    path = folder / "my.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    source, survey = file_source(path, FolderPictures(folder)), Survey()
    records = list(records_of(source, prompt, survey))
    survey.check(source)
    return records, survey.notes(source, prompt or "Describe the image.")


def test_no_question_stops_and_names_the_keys(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        read(tmp_path, [UNKNOWN] * 240)
    assert str(error.value) == (
        f"{tmp_path}/my.jsonl has no question in 240 of 240 lines; keys present: image, utterance, "
        "gold; allowed: prompt, question, query, problem, text, instruction, conversations, "
        "messages, texts (docs/data.md has the layouts); or one question for all of them (prompt)."
    )
    for row in (
        {"image": "a.png", "label": 3},
        {"image": "a.png", "answer": "x"},
        {"image": "a.png", "dialog": [{"x": 1}]},
        {"image": "a.png", "conversations": [{"from": "gpt", "value": "A cat."}]},
        {"image": "a.png", "question": "<image>"},
        {"image": "a.png", "question": "  "},
    ):
        with pytest.raises(
            ValueError, match="has no question in 1 of 1 line; keys present: image,"
        ):
            read(tmp_path, [row])


def test_the_users_own_question_is_asked_of_all_that_have_none(tmp_path: Path) -> None:
    records, notes = read(tmp_path, [UNKNOWN, {"image": "b.png", "label": "cat"}, POPE], "What?")
    assert [r.question for r in records] == [None, None, "Is it?"]
    assert [r.answer for r in records] == [None, "cat", "no"]
    assert notes == (
        "2 of 3 lines have no question of their own and are asked 'What?' (lines 1, 2).",
    )


def test_a_picture_and_nothing_else_is_asked_our_question(tmp_path: Path) -> None:
    rows = [{"image": "a.png", "id": "x", "width": 640, "height": 480}, {"images": ["b.png"]}]
    records, notes = read(tmp_path, rows)
    assert [r.question for r in records] == [None, None] and notes == ()


def test_a_mix_is_counted_with_the_first_lines(tmp_path: Path) -> None:
    rows = [POPE, TEXT_ONLY, UNKNOWN, TEXT_ONLY, {**POPE, "image": "http://a.b/c.png"}] * 3
    records, notes = read(tmp_path, rows)
    assert len(records) == 3
    assert notes[0] == "6 of 15 lines have no image and were skipped (lines 2, 4, 7, 9, 12, ...)."
    assert notes[1] == "3 of 15 lines have no question and were skipped (lines 3, 8, 13)."
    assert notes[2].startswith(
        "3 of 15 lines cannot be read and were skipped (lines 5, 10, 15). "
        f"Line 5 of {tmp_path}/my.jsonl names its image by an address ('http://a.b/c.png')"
    )


def test_no_image_stops_and_names_the_keys(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="has no image in 2 of 2 lines; keys present: id, conversa"
    ):
        read(tmp_path, [TEXT_ONLY, TEXT_ONLY])
    with pytest.raises(ValueError, match=r"no question in 1 of 2 lines.* Without an image: 1\."):
        read(tmp_path, [UNKNOWN, TEXT_ONLY])
    with pytest.raises(ValueError, match=r"my\.jsonl is empty"):
        read(tmp_path, [])


def test_the_only_fault_is_said_in_full(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^Line 1 of .*has prompt that is not text: 3; allowed: a"
    ):
        read(tmp_path, [{"image": "a.png", "prompt": 3}])


def test_conversations_and_marks_are_noted(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "What?\n<image>"}, {"from": "gpt", "value": "A cat."}] * 2
    _, notes = read(tmp_path, [{"image": "a.png", "conversations": turns}, POPE])
    assert notes == (
        "1 of 2 lines place an image behind words; it is shown before them (line 1).",
        "1 of 2 lines are conversations whose later turns are not asked (line 1).",
    )


def test_entries_of_a_list_are_called_so(tmp_path: Path) -> None:
    path = tmp_path / "my.json"
    path.write_text(json.dumps([POPE, TEXT_ONLY, TEXT_ONLY]))
    source, survey = file_source(path, FolderPictures(tmp_path)), Survey()
    (record,) = records_of(source, None, survey)
    assert record.where == "entry 1 of my.json"
    assert survey.notes(source, "") == (
        "2 of 3 entries have no image and were skipped (entries 2, 3).",
    )


def test_hostile_keys_make_a_short_message(tmp_path: Path) -> None:
    row = {"image": "a.png", **{f"\x1b[31m{i}" + "k" * 5000: "x" for i in range(1000)}}
    with pytest.raises(ValueError) as error:
        read(tmp_path, [row])
    assert len(str(error.value)) < 2000 and "\x1b" not in str(error.value)
