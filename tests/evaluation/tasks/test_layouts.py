"""Each task reads its published layout: ids, images, truths, clusters. Prompts are in a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sinkscope.evaluation.base import Faulty, Question
from sinkscope.evaluation.data import open_data
from sinkscope.evaluation.session import Prepared, judgement
from sinkscope.evaluation.tasks.base import KIT_CHOICE, KIT_CHOICE_CHINESE
from sinkscope.evaluation.tasks.listed import TASKS, task_named
from tests.evaluation.tasks.layouts import COLOURS, LAYOUTS, data_of

SNAPSHOT = Path(__file__).with_name("prompts.json")


def read(name: str, folder: Path) -> Iterator[Question | Faulty]:
    """The items of a task's small data."""
    task = task_named(name)
    if not task.tables:
        yield from (item for item, _ in zip(task.read(None), range(14), strict=False))
        return
    given, images = data_of(name, folder)
    yield from task.read(open_data(given, task.hub, task.tables, images))


def questions(name: str, folder: Path) -> list[Question]:
    found = list(read(name, folder))
    assert not [item for item in found if isinstance(item, Faulty)]
    return [item for item in found if isinstance(item, Question)]


def test_every_task_has_a_layout_here() -> None:
    assert {task.name for task in TASKS} == {*LAYOUTS, "demo"}


@pytest.mark.parametrize("name", [task.name for task in TASKS])
def test_prompts_are_as_they_were(name: str, tmp_path: Path) -> None:
    """`SNAPSHOT` contains, for each task and protocol, the prompt of its first question. It changes
    only on purpose: `python -m tests.evaluation.tasks.test_layouts` writes it again."""
    assert described(name, tmp_path) == json.loads(SNAPSHOT.read_text())[name]


def described(name: str, folder: Path) -> dict[str, object]:
    """The prompt of a task's first question, by protocol."""
    first = questions(name, folder)[0]
    return {
        protocol.name: {
            "system": protocol.system,
            "images": len(first.pictures),
            "prompt": protocol.prompt(first),
            "max_new_tokens": protocol.max_new_tokens,
            "pixels": [protocol.min_pixels, protocol.max_pixels],
            "decoding": protocol.decoding,
            "judge": protocol.judge.name,
            "metric": protocol.metric.name,
        }
        for protocol in task_named(name).protocols
    }


@pytest.mark.parametrize("name", ["blink", "mmvp"])
def test_vlmevalkit_instructs_in_chinese_where_something_is_chinese(
    name: str, tmp_path: Path
) -> None:
    """As in its `cn_string`: a character from U+4E00 to U+9FFF, in the question or an option."""
    protocol = task_named(name).protocol("vlmevalkit")
    first = questions(name, tmp_path)[0]
    chinese = replace(first, text="\u56fe\u4e2d\u662f\u4ec0\u4e48?", fields={})
    lines = "".join(f"{letter}. {said}\n" for letter, said in first.options)
    assert protocol.prompt(chinese) == (
        f"Question: {chinese.text}\nOptions:\n{lines}"
        "\u8bf7\u76f4\u63a5\u56de\u7b54\u9009\u9879\u5b57\u6bcd\u3002"
    )
    option = replace(first, options=(*first.options[:-1], ("B", "\u7ea2")))
    assert protocol.prompt(option).endswith("\nB. \u7ea2\n" + KIT_CHOICE_CHINESE)
    japanese = replace(first, text="\u3053\u308c\u306f?", fields={})  # none of these characters
    assert protocol.prompt(japanese).endswith(KIT_CHOICE)
    assert protocol.prompt(first).endswith(KIT_CHOICE)


def test_images_come_in_the_order_of_the_data(tmp_path: Path) -> None:
    second = questions("blink", tmp_path)[1]
    colours = [picture().getpixel((5, 5)) for picture in second.pictures]
    assert colours == [COLOURS["red"], COLOURS["blue"]]


def test_blink_has_fourteen_parts_in_order(tmp_path: Path) -> None:
    found = questions("blink", tmp_path)
    assert len(found) == 28
    assert list(dict.fromkeys(one.category for one in found)) == list(task_named("blink").parts)
    assert [one.truth for one in found[:2]] == ["A", "B"]
    assert found[0].options == (("A", "red"), ("B", "blue"))


def test_sat_takes_the_letter_from_the_index(tmp_path: Path) -> None:
    found = questions("sat", tmp_path)
    assert [(one.truth, len(one.pictures)) for one in found] == [("B", 2), ("A", 1)]


def test_pope_ids_are_unique_and_subsets_share_their_images_cluster(tmp_path: Path) -> None:
    found = questions("pope", tmp_path)
    assert len({one.id for one in found}) == 6
    assert {one.cluster for one in found} == {"COCO_val2014_000000310196"}
    assert [one.truth for one in found] == ["yes", "no"] * 3


def test_mmvp_pairs_and_the_four_corrected_answers(tmp_path: Path) -> None:
    found = {one.id: one for one in questions("mmvp", tmp_path)}
    assert found["1"].cluster == found["2"].cluster != found["99"].cluster
    assert found["99"].cluster == found["100"].cluster
    truths = [found[name].truth for name in ("1", "2", "99", "100")]
    assert truths == ["A", "B", "B", "A"]
    assert found["1"].options == (("A", "Open"), ("B", "Closed"))


def test_gqa_joins_the_images_of_its_other_table(tmp_path: Path) -> None:
    first, second = questions("gqa", tmp_path)
    assert first.pictures[0]().getpixel((3, 3)) == COLOURS["blue"]
    assert second.pictures[0]().getpixel((3, 3)) == COLOURS["red"]
    assert (first.truth, first.category, first.cluster) == ("no", "verify", "n161313")


def test_mme_pairs_share_a_cluster_and_no_id(tmp_path: Path) -> None:
    found = questions("mme", tmp_path)
    assert len({one.id for one in found}) == 4
    assert [one.cluster for one in found[:2]] == ["color/color/000000001584.jpg"] * 2
    assert [one.truth for one in found] == ["yes", "no"] * 2


def test_chair_takes_objects_from_instances_and_captions(tmp_path: Path) -> None:
    found = {one.id: one for one in questions("chair", tmp_path)}
    assert set(found) == {"42", "73"}  # 74 has no object
    assert found["42"].truth == ["chair", "dog"]
    assert found["73"].truth == ["bed", "motorcycle"]
    assert found["42"].pictures[0]().size == (64, 48)


def test_older_files_group_and_find_their_options(tmp_path: Path) -> None:
    first, second = questions("older-blink", tmp_path)
    assert (first.truth, first.category, len(first.pictures)) == ("A", "Counting", 2)
    assert (second.truth, second.category, len(second.pictures)) == ("B", "Depth", 1)
    assert first.options == second.options == (("A", "red"), ("B", "blue"))
    assert "<image>" not in first.text


def test_substring_legacy_stands_beside_ours(tmp_path: Path) -> None:
    """The older script's bug: it finds "(A)" in "blank"; our judge says that nothing was
    answered."""
    from sinkscope.evaluation.judges.substring_legacy import SubstringLegacy

    task = task_named("older-blink")
    prepared = Prepared(task, task.protocols[0], SubstringLegacy(), None, None)
    made = judgement(prepared, questions("older-blink", tmp_path)[0], "blank")
    assert made.score == 1.0
    assert "warning" in made.details
    assert made.details["own"] == {"judge": "by_question", "score": 0.0, "extraction": None}


def test_substring_legacy_looks_for_the_truth_as_the_file_words_it(tmp_path: Path) -> None:
    """The second truth is the text "blue", which our judge reads as the letter B."""
    from sinkscope.evaluation.judges.substring_legacy import SubstringLegacy

    second = questions("older-blink", tmp_path)[1]
    assert second.truth == "B"
    scores = [SubstringLegacy().judge(said, second).score for said in ("It is Blue.", "(B)")]
    assert scores == [1.0, 0.0]


@pytest.mark.parametrize("name", ["jsonl", "older-blink", "older-sat"])
def test_questions_about_one_image_share_a_cluster_where_the_file_names_none(
    name: str, tmp_path: Path
) -> None:
    given, images = data_of(name, tmp_path)
    path = next(tmp_path.glob("*.jsonl"))
    again = [{**json.loads(line)} for line in path.read_text().splitlines()]
    for number, row in enumerate(again):
        row["id"] = f"again-{number}"
    more = "".join(json.dumps(row).replace("red.png", "./red.png") + "\n" for row in again)
    path.write_text(path.read_text() + more)
    task = task_named(name)
    found = list(task.read(open_data(given, task.hub, task.tables, images)))
    half = len(again)
    assert [one.cluster for one in found[:half]] == [one.cluster for one in found[half:]]
    assert found[0].cluster != found[1].cluster


def test_own_files_take_texts_choices_and_several_images(tmp_path: Path) -> None:
    found = {one.id: one for one in questions("jsonl", tmp_path)}
    assert found["a"].truth == "red"
    assert (found["b"].truth, found["b"].category) == ("B", "choice")
    assert len(found["c"].pictures) == 2
    assert task_named("jsonl").protocols[0].prompt(found["b"]).startswith("Which?\nA. red\nB. blue")


def test_scenes_have_all_kinds_and_one_cluster_each(tmp_path: Path) -> None:
    found = questions("demo", tmp_path)
    assert {one.cluster for one in found if one.id.startswith("scene-0-")} == {"scene-0"}
    again = questions("demo", tmp_path)
    assert [(one.id, one.text, one.truth) for one in found] == [
        (one.id, one.text, one.truth) for one in again
    ]
    assert found[0].pictures[0]().tobytes() == again[0].pictures[0]().tobytes()


if __name__ == "__main__":  # pragma: no cover
    import tempfile

    made = {}
    for task in TASKS:
        with tempfile.TemporaryDirectory() as folder:
            made[task.name] = described(task.name, Path(folder))
    SNAPSHOT.write_text(json.dumps(made, ensure_ascii=False, indent=1) + "\n")
