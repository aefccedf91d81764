"""Questions about a scene, with exact answers.

Every question also states which object each of its shape words names. Training uses this to teach
the step from a name to the named object, and the check to know where the model should have
looked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sinkscope.demo.scenes import COLOURS, PLACES, SHAPES, Scene, SceneObject

KINDS: tuple[str, ...] = ("describe", "what", "colour", "exist", "where", "count", "left")
TRAINING_KINDS: tuple[str, ...] = (*KINDS, "list")
NUMBERS: tuple[str, ...] = (
    "none",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
)
PLURALS: dict[str, str] = {s: s + ("es" if s.endswith("s") else "s") for s in SHAPES}
DESCRIBE = "Describe the image."
NOTHING = "nothing."

ABSENT = -1
"""A shape word that names nothing in the scene."""
AMBIGUOUS = -2
"""A shape word that matches several objects."""


@dataclass(frozen=True)
class Question:
    """One question with its answer.

    Attributes:
        kind: One of ``TRAINING_KINDS``.
        prompt: What is asked.
        answer: The exact answer.
        prompt_objects: For each shape word in the prompt, in order: the index of the object it
            names, or ``ABSENT`` or ``AMBIGUOUS``.
        answer_objects: The same for the answer.
        count: For "count": how many there are. Otherwise -1.
    """

    kind: str
    prompt: str
    answer: str
    prompt_objects: tuple[int, ...] = ()
    answer_objects: tuple[int, ...] = ()
    count: int = -1


def questions(scene: Scene, kinds: Sequence[str] = KINDS, seed: int = 0) -> list[Question]:
    """One question of each of ``kinds`` (repeats allowed), as far as the scene allows it.

    Args:
        scene: The scene.
        kinds: Names in ``TRAINING_KINDS``; "list" is only for training.
        seed: Which object is asked about, and how.

    Returns:
        The questions, at most one for each entry of ``kinds``: "What colour is the star?" cannot be
        asked if there is no star, or if there are two.

    Raises:
        ValueError: For an unknown kind.
    """
    rng = np.random.default_rng([seed, *scene.seed])
    result = []
    for kind in kinds:
        if kind not in TRAINING_KINDS:
            raise ValueError(f"question kind is {kind!r}: allowed is {', '.join(TRAINING_KINDS)}")
        question = _ask(kind, scene.objects, rng)
        if question is not None:
            result.append(question)
    return result


def _ask(kind: str, objects: tuple[SceneObject, ...], rng: np.random.Generator) -> Question | None:
    if kind == "describe":
        return _describe(objects)
    if kind == "what":
        return _what(objects, rng)
    if kind == "exist":
        return _exist(objects, rng)
    if kind == "count":
        return _count(objects, rng)
    if not objects:
        return None
    if kind == "list":
        return _list(objects, rng)
    if kind == "colour":
        return _colour(objects, rng)
    if kind == "where":
        return _where(objects, rng)
    return _left(objects, rng)


def with_article(noun: str) -> str:
    """ "a star", "an orange star"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _name(thing: SceneObject) -> str:
    return with_article(f"{thing.colour} {thing.shape}")


def _everything(count: int) -> tuple[int, ...]:
    return tuple(range(count))


def _pick(rng: np.random.Generator, items: Sequence[int]) -> int:
    return int(items[int(rng.integers(len(items)))])


def _unique_shapes(objects: tuple[SceneObject, ...]) -> list[int]:
    shapes = [o.shape for o in objects]
    return [i for i, s in enumerate(shapes) if shapes.count(s) == 1]


def _describe(objects: tuple[SceneObject, ...]) -> Question:
    if not objects:
        return Question("describe", DESCRIBE, NOTHING)
    text = ", ".join(f"{_name(o)} at the {o.place}" for o in objects) + "."
    return Question("describe", DESCRIBE, text, (), _everything(len(objects)))


def _list(objects: tuple[SceneObject, ...], rng: np.random.Generator) -> Question:
    # Random order: the model cannot know which shape comes next, so it must find the colour by the
    # shape.
    order = rng.permutation(len(objects)).tolist()
    text = ", ".join(f"a {objects[i].shape} {objects[i].colour}" for i in order) + "."
    names = [(o.shape, o.colour) for o in objects]
    shapes = [o.shape for o in objects]
    named = tuple(i if shapes.count(names[i][0]) == 1 else AMBIGUOUS for i in order)
    return Question("list", "What are the objects?", text, (), named)


def _what(objects: tuple[SceneObject, ...], rng: np.random.Generator) -> Question:
    free = [c for c in range(len(PLACES)) if all(o.cell != c for o in objects)]
    if not objects or (free and rng.random() < 0.2):
        return Question("what", f"What is at the {PLACES[_pick(rng, free)]}?", NOTHING)
    i = int(rng.integers(len(objects)))
    return Question(
        "what", f"What is at the {objects[i].place}?", f"{_name(objects[i])}.", (), (i,)
    )


def _colour(objects: tuple[SceneObject, ...], rng: np.random.Generator) -> Question | None:
    unique = _unique_shapes(objects)
    if not unique:
        return None
    i = _pick(rng, unique)
    shape = objects[i].shape
    answer = f"the {shape} is {objects[i].colour}."
    return Question("colour", f"What colour is the {shape}?", answer, (i,), (i,))


def _exist(objects: tuple[SceneObject, ...], rng: np.random.Generator) -> Question:
    colours = list(COLOURS)
    if objects and rng.random() < 0.5:
        thing = objects[int(rng.integers(len(objects)))]
        colour, shape = thing.colour, thing.shape
    elif (
        objects and rng.random() < 0.8
    ):  # near misses: the right shape with another colour, or the reverse
        thing = objects[int(rng.integers(len(objects)))]
        colour, shape = thing.colour, thing.shape
        if rng.random() < 0.5:
            colour = colours[int(rng.integers(len(colours)))]
        else:
            shape = SHAPES[int(rng.integers(len(SHAPES)))]
    else:
        colour, shape = (
            colours[int(rng.integers(len(colours)))],
            SHAPES[int(rng.integers(len(SHAPES)))],
        )
    matches = [i for i, o in enumerate(objects) if (o.colour, o.shape) == (colour, shape)]
    noun = with_article(f"{colour} {shape}")
    named = AMBIGUOUS if len(matches) > 1 else matches[0] if matches else ABSENT
    if not matches:
        return Question("exist", f"Is there {noun}?", "no.", (named,))
    return Question("exist", f"Is there {noun}?", f"yes, {noun}.", (named,), (named,))


def _where(objects: tuple[SceneObject, ...], rng: np.random.Generator) -> Question | None:
    unique = _unique_shapes(objects)
    pairs = [(o.colour, o.shape) for o in objects]
    single = [i for i, pair in enumerate(pairs) if pairs.count(pair) == 1]
    if not single:
        return None
    i = _pick(rng, single)
    thing = objects[i]
    plain = i in unique and rng.random() < 0.6
    noun = thing.shape if plain else f"{thing.colour} {thing.shape}"
    answer = f"the {noun} is at the {thing.place}."
    return Question("where", f"Where is the {noun}?", answer, (i,), (i,))


def _count(objects: tuple[SceneObject, ...], rng: np.random.Generator) -> Question:
    if rng.random() < 0.2:
        noun, matches = "objects", list(range(len(objects)))
    else:
        likely = objects and rng.random() < 0.75
        shape = (
            objects[int(rng.integers(len(objects)))].shape
            if likely
            else SHAPES[int(rng.integers(len(SHAPES)))]
        )
        noun, matches = PLURALS[shape], [i for i, o in enumerate(objects) if o.shape == shape]
    # The answer lists the places before the number, so that each step can be looked at.
    steps = ", ".join(f"at the {objects[i].place}" for i in matches)
    answer = f"{steps}: {NUMBERS[len(matches)]}." if matches else f"{NUMBERS[0]}."
    return Question("count", f"How many {noun} are there?", answer, count=len(matches))


def _left(objects: tuple[SceneObject, ...], rng: np.random.Generator) -> Question | None:
    unique = _unique_shapes(objects)
    pairs = [(a, b) for a in unique for b in unique if objects[a].cell % 3 != objects[b].cell % 3]
    if not pairs:
        return None
    a, b = pairs[int(rng.integers(len(pairs)))]
    winner = a if objects[a].cell % 3 < objects[b].cell % 3 else b
    prompt = f"Which is further left, the {objects[a].shape} or the {objects[b].shape}?"
    return Question("left", prompt, f"the {objects[winner].shape}.", (a, b), (winner,))
