"""A sample by seed: neither order nor file matters, and memory does not grow."""

from __future__ import annotations

import json
import random
import threading
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sinkscope.records.pictures import FolderPictures
from sinkscope.records.sampling import RecordSample, StoppedReading
from sinkscope.records.sources import file_source


def draw(folder: Path, rows: list[dict[str, Any]], count: int, **options: Any) -> RecordSample:
    path = folder / "my.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return RecordSample(file_source(path, FolderPictures(folder)), count, **options)


def rows(count: int) -> list[dict[str, Any]]:
    return [{"image": f"{i % 7}.png", "question": f"{i}?", "answer": "x"} for i in range(count)]


def test_the_order_of_lines_plays_no_part(tmp_path: Path) -> None:
    given = rows(500)
    first = [r.question for r in draw(tmp_path, given, 5)]
    random.Random(1).shuffle(given)
    assert [r.question for r in draw(tmp_path, given, 5)] == first
    assert [r.question for r in draw(tmp_path, given, 5, seed=1)] != first
    # If fewer or more are wanted, the first ones are the same.
    assert [r.question for r in draw(tmp_path, given, 50)] == first


def test_all_come_once_in_as_many_passes_as_it_takes(tmp_path: Path) -> None:
    drawn = list(draw(tmp_path, rows(2000), 1))
    assert sorted(int(r.question[:-1]) for r in drawn if r.question) == list(range(2000))
    assert len({r.id for r in drawn}) == 2000


def test_a_draw_is_fair(tmp_path: Path) -> None:
    given = rows(40)
    seen = Counter(
        record.question
        for seed in range(150)
        for record, _ in zip(draw(tmp_path, given, 4, seed=seed), range(4), strict=False)
    )
    assert len(seen) == 40 and min(seen.values()) > 2 and max(seen.values()) < 40  # 15 expected


def test_the_same_again_counts_once(tmp_path: Path) -> None:
    made = draw(tmp_path, [*rows(20), *rows(5), {**rows(1)[0], "id": "other"}], 5)
    assert len(list(made)) == 20 and made.repeated == 6
    # Two questions about one picture, and one question with two answers, are not the same.
    pair = [{"image": "a.png", "text": t, "label": "yes"} for t in ("Is it?", "Was it?")]
    assert len(list(draw(tmp_path, [*pair, {**pair[0], "label": "no"}], 5))) == 3


def test_ids_are_the_rows_own_and_told_apart_by_what_they_ask(tmp_path: Path) -> None:
    given = [{"image": "a.png", "question": f"{i}?", "id": "x"} for i in range(3)]
    given += [{"image": "a.png", "question": "Y?", "id": 7}, {"image": "b.png", "question": "Z?"}]

    def ids(some: list[dict[str, Any]], **options: Any) -> dict[str | None, str | None]:
        return {r.question: r.id for r in draw(tmp_path, some, 9, **options)}

    made = ids(given)
    assert ids(given[::-1], seed=3) == made and len(set(made.values())) == 5
    assert made["Y?"] == "7" and str(made["Z?"]).startswith("b.png#")
    assert all(str(made[f"{i}?"]).startswith("x#") for i in range(3))
    assert ids(given[2:])["2?"] == "x"


def test_stop_ends_reading(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoppedReading, match="was stopped after 1000 rows"):
        list(draw(tmp_path, rows(3000), 5, stop=stop))


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        given = [{**row, "more": "y" * 3000} for row in rows(count)]
        made = draw(tmp_path, given, 2)
        del given
        tracemalloc.start()
        next(iter(made))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(10)
    assert peak(6000) < peak(1500) + 60 * 4500 + 200_000  # and not 3000 bytes a row
