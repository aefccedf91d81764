"""TextVQA (Singh et al., 2019): reading text in pictures; ten annotators for each question."""

from __future__ import annotations

from collections.abc import Iterator

from sinkscope.evaluation.base import Question
from sinkscope.evaluation.data import Data, Row, Table, column
from sinkscope.evaluation.judges.vlmevalkit import KIT_VQA
from sinkscope.evaluation.tasks.base import (
    SHORTLY,
    Item,
    Task,
    answers_of,
    items,
    kit_protocol,
    kit_shortly,
    pictures,
    shared_image,
    text,
)
from sinkscope.evaluation.tasks.vqa import VQA_SCORE, vqa_protocols

TABLE = Table(None, "validation")


def read(data: Data | None) -> Iterator[Item]:
    """The validation split."""
    assert data is not None
    needed = ("question_id", "question", "answers", "image")
    for table in data.tables:
        yield from items(data.rows(table), _question, _name, needed)


def _name(row: Row) -> str:
    return str(row.values.get("question_id"))


def _question(row: Row) -> Question:
    source = row.values.get("image_id")
    images = pictures(row, "image")
    return Question(
        id=_name(row),
        text=text(row, "question"),
        pictures=images,
        truth=answers_of(column(row, "answers")),
        cluster=str(source) if source else shared_image(images),
    )


def prompt(question: Question) -> str:
    """lmms-eval's: only the first letter is a capital."""
    return f"{question.text.capitalize()}{SHORTLY}"


TASK = Task(
    name="textvqa",
    about="what is written in a picture; VQA accuracy over ten annotators",
    read=read,
    protocols=(
        *vqa_protocols(prompt),
        kit_protocol(kit_shortly, KIT_VQA, VQA_SCORE),
    ),
    hub="lmms-lab-encoder/textvqa",
    tables=(TABLE,),
)
