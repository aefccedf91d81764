"""VizWiz (Gurari et al., 2018): blind people's questions about their photos, many unanswerable."""

from __future__ import annotations

from collections.abc import Iterator

from sinkscope.evaluation.base import Question
from sinkscope.evaluation.data import Data, Row, Table, column
from sinkscope.evaluation.tasks.base import (
    SHORTLY,
    Item,
    Task,
    answers_of,
    items,
    pictures,
    text,
)
from sinkscope.evaluation.tasks.vqa import vqa_protocols

TABLE = Table(None, "val")
_UNANSWERABLE = (
    "\nWhen the provided information is insufficient, respond with 'Unanswerable'." + SHORTLY
)


def read(data: Data | None) -> Iterator[Item]:
    """The validation split; the test split has no answers."""
    assert data is not None
    needed = ("question_id", "question", "answers", "image")
    for table in data.tables:
        yield from items(data.rows(table), _question, _name, needed)


def _name(row: Row) -> str:
    return str(row.values.get("question_id"))


def _question(row: Row) -> Question:
    return Question(
        id=_name(row),
        text=text(row, "question"),
        pictures=pictures(row, "image"),
        truth=answers_of(column(row, "answers")),
        category=str(row.values.get("category") or ""),
    )


def prompt(question: Question) -> str:
    """lmms-eval's, which is LLaVA's."""
    return f"{question.text.capitalize()}{_UNANSWERABLE}"


TASK = Task(
    name="vizwiz",
    about="questions by blind people about their photos; VQA accuracy",
    read=read,
    protocols=vqa_protocols(prompt),
    hub="lmms-lab-encoder/VizWiz-VQA",
    tables=(TABLE,),
)
