"""The bundled model's scenes: drawn questions with exact answers, without end.

Each scene is asked one question of every kind that it allows; questions of one scene are one
cluster. No training run has seen these scenes, nor do the model card or the finding of sinks use
them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from PIL import Image

from sinkscope.demo.measure import CHECK_SIZES
from sinkscope.demo.questions import KINDS, questions
from sinkscope.demo.scenes import scene
from sinkscope.evaluation.base import Protocol, Question
from sinkscope.evaluation.data import Data
from sinkscope.evaluation.judges.exact_match import ExactMatch
from sinkscope.evaluation.metrics.accuracy import MacroByCategory
from sinkscope.evaluation.tasks.base import LoadedPicture, Task

SEED = 4  # the first number of these scenes' seeds; training, card and sinks have others


def read(data: Data | None) -> Iterator[Question]:
    """An endless stream of questions, scene by scene."""
    for index in itertools.count():
        width, height = CHECK_SIZES[index % len(CHECK_SIZES)]
        drawn = scene((SEED, index), width, height)
        picture = LoadedPicture(Image.fromarray(drawn.image))
        for drawn_question in questions(drawn, KINDS):
            yield Question(
                id=f"scene-{index}-{drawn_question.kind}",
                text=drawn_question.prompt,
                pictures=(picture,),
                truth=drawn_question.answer,
                category=drawn_question.kind,
                cluster=f"scene-{index}",
                fields={"objects": len(drawn.objects)},
            )


def prompt(question: Question) -> str:
    """The question as the model was trained on it."""
    return question.text


TASK = Task(
    name="demo",
    about="drawn scenes with exact answers, for the bundled model",
    read=read,
    protocols=(Protocol("fixed", prompt, ExactMatch(), MacroByCategory(), max_new_tokens=64),),
    endless=True,
    parts=KINDS,
)
