"""Held-out scenes with questions that have exact answers: the samples that come with SinkScope."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sinkscope.demo.measure import SINK_SCENES, sink_scenes
from sinkscope.demo.questions import DESCRIBE, questions

KINDS = (
    "describe",
    "what",
    "colour",
    "exist",
    "where",
)  # asked in rotation; all have exact answers
SOURCE = "the generator of the bundled model's scenes"


@dataclass(frozen=True)
class SceneQuestion:
    """A scene and what is asked about it.

    Attributes:
        name: `scene 70012`.
        image: uint8 (height, width, 3).
        question: what is asked.
        answer: its exact answer; None for the user's own question.
    """

    name: str
    image: npt.NDArray[np.uint8]
    question: str
    answer: str | None


def scene_questions(count: int, prompt: str | None, seed: int) -> Iterator[SceneQuestion]:
    """Scenes for finding sinks and for experiments, in the order of their numbers.

    Args:
        count: how many.
        prompt: asked about each; None asks each scene a question from `KINDS`.
        seed: of the scenes.

    Raises:
        ValueError: `count` is out of range.
    """
    if not 1 <= count <= SINK_SCENES:
        raise ValueError(f"samples is {count}; of the drawn scenes, allowed: 1 to {SINK_SCENES}.")
    for index, (number, scene) in enumerate(sink_scenes(seed, count)):
        question, answer = prompt or DESCRIBE, None
        if prompt is None or prompt == DESCRIBE:
            kind = KINDS[index % len(KINDS)] if prompt is None else "describe"
            asked = (questions(scene, [kind]) or questions(scene, ["describe"]))[0]
            question, answer = asked.prompt, asked.answer
        yield SceneQuestion(f"scene {number}", scene.image, question, answer)
