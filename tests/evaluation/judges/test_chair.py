"""Objects that captions name."""

from __future__ import annotations

import pytest

from sinkscope.evaluation.judges.chair import Chair, objects_named
from sinkscope.evaluation.judges.coco_objects import OBJECTS
from tests.evaluation.judges.questions import question

NAMED = [
    ("A dog sits on a bench.", ["dog", "bench"]),
    ("Two dogs and three puppies", ["dog", "dog"]),
    ("Children, women and policemen", ["person", "person", "person"]),
    ("a baby elephant", ["elephant"]),  # no person
    ("adult giraffes", ["giraffe"]),
    ("a passenger train", ["train"]),
    ("passengers on a train", ["person", "train"]),
    ("a hot dog with ketchup", ["hot dog"]),  # no dog
    ("hot dogs", ["hot dog"]),
    ("the seat of the toilet", ["toilet"]),  # no chair
    ("a toilet seat", ["toilet"]),
    ("the seats of a bus", ["chair", "bus"]),
    ("wine glasses and knives", ["wine glass", "knife"]),
    ("a teddy bear", ["teddy bear"]),  # no bear
    ("a bow tie", ["tie"]),
    ("traffic lights at a stop sign", ["traffic light", "stop sign"]),
    ("a motor bike", ["motorcycle"]),
    ("an iPhone on the dining table", ["cell phone", "dining table"]),
    ("mice", ["mouse"]),
    ("buses and couches", ["bus", "couch"]),
    ("a pair of scissors, a pair of skis", ["scissors", "skis"]),
    ("the man's bicycle", ["person", "bicycle"]),
    ("home plate", []),
    ("Nothing of the kind. 123", []),
    ("", []),
]


@pytest.mark.parametrize(("caption", "objects"), NAMED)
def test_objects_named(caption: str, objects: list[str]) -> None:
    assert [thing for thing, _ in objects_named(caption)] == objects


def test_there_are_80_objects_and_each_names_itself() -> None:
    assert len(set(OBJECTS)) == 80
    for thing in OBJECTS:
        assert [found for found, _ in objects_named(f"There is a {thing}.")] == [thing], thing


def test_a_caption_with_a_hallucinated_object() -> None:
    judgement = Chair().judge("A dog and a cat, a kitten", question(["dog", "car"]))
    assert judgement.score == 0
    assert judgement.extraction == "dog, cat"
    assert judgement.details == {
        "mentioned": ["dog", "cat", "cat"],
        "hallucinated": ["cat", "cat"],
        "words": ["dog", "cat", "kitten"],
    }
    assert Chair().judge("A dog.", question(["dog", "car"])).score == 1


def test_an_empty_caption_hallucinates_nothing_and_is_unparsable() -> None:
    judgement = Chair().judge(" ", question(["dog"]))
    assert (judgement.score, judgement.extraction) == (1, None)


def test_a_truth_of_another_kind_is_refused() -> None:
    with pytest.raises(
        ValueError, match="unicorn is not an object of COCO; allowed: person, bicycle"
    ):
        Chair().judge("A dog", question(["unicorn", "dog"]))
    with pytest.raises(ValueError, match="its truth is 'dog'"):
        Chair().judge("A dog", question("dog"))
