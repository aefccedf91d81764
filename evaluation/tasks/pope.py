"""POPE (Li et al., 2023): is an object in the picture? Three subsets of 3,000 over 500 images."""

from __future__ import annotations

from collections.abc import Iterator

from sinkscope.evaluation.base import Protocol, Question
from sinkscope.evaluation.data import Data, Row, Table, column
from sinkscope.evaluation.judges.lmms_eval import LmmsPope
from sinkscope.evaluation.judges.vlmevalkit import KitYesNo
from sinkscope.evaluation.judges.yes_no import YesNo
from sinkscope.evaluation.metrics.pope import Pope
from sinkscope.evaluation.tasks.base import (
    KIT_YES_NO,
    SHORTLY,
    Item,
    Task,
    items,
    kit_protocol,
    lmms_protocol,
    pictures,
    shared_image,
    text,
    yes_or_no,
)

TABLE = Table(None, "test")
SUBSETS = ("random", "popular", "adversarial")


def read(data: Data | None) -> Iterator[Item]:
    """The test split, which holds the three subsets."""
    assert data is not None
    needed = ("question_id", "question", "answer", "image", "category")
    for table in data.tables:
        yield from items(data.rows(table), _question, _name, needed)


def _name(row: Row) -> str:
    """Question ids begin again in each subset."""
    return f"{row.values.get('category')}-{row.values.get('question_id')}"


def _question(row: Row) -> Question:
    # the image's name; three subsets ask about the same 500
    source = row.values.get("image_source")
    images = pictures(row, "image")
    return Question(
        id=_name(row),
        text=text(row, "question").strip(),
        pictures=images,
        truth=yes_or_no(column(row, "answer")),
        category=text(row, "category"),
        cluster=str(source) if source else shared_image(images),
    )


def prompt(question: Question) -> str:
    """lmms-eval's."""
    return f"{question.text}{SHORTLY}"


def kit_prompt(question: Question) -> str:
    """VLMEvalKit's."""
    return f"{question.text}{KIT_YES_NO}"


TASK = Task(
    name="pope",
    about="is an object in the picture: random, popular and adversarial objects",
    read=read,
    protocols=(
        Protocol("fixed", prompt, YesNo(), Pope(), max_new_tokens=16),
        lmms_protocol(prompt, LmmsPope(), Pope("lmms-eval-pope", "lmms-eval"), 128),
        kit_protocol(kit_prompt, KitYesNo(), Pope("vlmevalkit-pope", "vlmevalkit")),
    ),
    hub="lmms-lab-encoder/POPE",
    tables=(TABLE,),
    parts=SUBSETS,
)
