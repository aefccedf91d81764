"""Questions: the answers are true, and shape words are matched to the objects they name."""

import re

import pytest

from sinkscope.demo.questions import ABSENT, AMBIGUOUS, KINDS, NUMBERS, TRAINING_KINDS, questions
from sinkscope.demo.scenes import SHAPES, Scene, SceneObject, scene


def made_of(*things: tuple[str, str, str]) -> Scene:
    """A scene's truth without its pixels."""
    drawn = scene(0, 84, 84)
    objects = tuple(SceneObject(s, c, p, 20, (0, 0, 20, 20)) for s, c, p in things)
    return Scene(drawn.image, objects, drawn.owner, (0,))


TWO_STARS = made_of(
    ("star", "red", "top left"), ("ring", "orange", "center"), ("star", "blue", "bottom")
)


def every(kind: str, of: Scene, tries: int = 40) -> dict[str, str]:
    asked = (q for seed in range(tries) for q in questions(of, [kind], seed))
    return {q.prompt: q.answer for q in asked}


def test_answers_worked_out_by_hand():
    assert every("describe", TWO_STARS) == {
        "Describe the image.": "a red star at the top left, "
        "an orange ring at the center, a blue star at the bottom."
    }
    assert every("colour", TWO_STARS) == {"What colour is the ring?": "the ring is orange."}
    what = every("what", TWO_STARS)
    assert (
        what["What is at the bottom?"] == "a blue star."
        and what["What is at the left?"] == "nothing."
    )
    where = every("where", TWO_STARS)
    assert where["Where is the blue star?"] == "the blue star is at the bottom."
    assert where["Where is the ring?"] == "the ring is at the center."
    assert "Where is the star?" not in where
    count = every("count", TWO_STARS)
    assert count["How many stars are there?"] == "at the top left, at the bottom: two."
    assert count["How many crosses are there?"] == "none."
    exist = every("exist", TWO_STARS, 200)
    assert exist["Is there an orange ring?"] == "yes, an orange ring."
    assert exist["Is there a red ring?"] == "no."
    assert every("left", made_of(("star", "red", "left"), ("ring", "red", "top"))) == {
        "Which is further left, the star or the ring?": "the star.",
        "Which is further left, the ring or the star?": "the star.",
    }


def test_an_empty_scene_has_nothing_to_be_asked_by_name():
    empty = made_of()
    kinds = [q.kind for q in questions(empty, TRAINING_KINDS)]
    assert kinds == ["describe", "what", "exist", "count"]
    assert {q.answer for q in questions(empty, TRAINING_KINDS)} == {"nothing.", "no.", "none."}


@pytest.mark.parametrize("seed", range(40))
def test_each_shape_word_names_what_is_said_of_it(seed):
    drawn = scene(seed, 84, 84, min_objects=0, max_objects=5, repeat=0.7)
    for q in questions(drawn, TRAINING_KINDS, seed):
        for text, named in ((q.prompt, q.prompt_objects), (q.answer, q.answer_objects)):
            said = re.findall(rf"\b({'|'.join(SHAPES)})\b", text)
            assert len(said) == len(named), q
            for word, index in zip(said, named, strict=True):
                if index >= 0:
                    assert drawn.objects[index].shape == word
                elif index == ABSENT:
                    assert q.answer == "no."
                else:
                    assert index == AMBIGUOUS
        if q.kind == "count":
            assert q.answer.endswith(f"{NUMBERS[q.count]}.") and q.answer.count("at the") == q.count


def test_both_answers_of_a_yes_no_question_are_common():
    answers = [q.answer[:2] for s in range(300) for q in questions(scene(s, 84, 84), ["exist"], s)]
    assert 0.3 < answers.count("no") / len(answers) < 0.6


def test_an_unknown_kind_is_refused_with_the_kinds():
    with pytest.raises(ValueError, match=", ".join(KINDS)):
        questions(scene(0, 84, 84), ["riddle"])
