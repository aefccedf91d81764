"""MME (Fu et al., 2023): yes or no about perception and cognition, two questions for each image."""

from __future__ import annotations

from collections.abc import Iterator

from sinkscope.evaluation.base import Protocol, Question
from sinkscope.evaluation.data import Data, Row, Table, column
from sinkscope.evaluation.judges.lmms_eval import LmmsMme
from sinkscope.evaluation.judges.vlmevalkit import KitYesNo
from sinkscope.evaluation.judges.yes_no import YesNo
from sinkscope.evaluation.metrics.pairs import Mme
from sinkscope.evaluation.tasks.base import (
    SHORTLY,
    Item,
    Task,
    items,
    kit_protocol,
    lmms_protocol,
    pictures,
    text,
    yes_or_no,
)
from sinkscope.utils import sha256

TABLE = Table(None, "test")
PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = (
    *("commonsense_reasoning", "numerical_calculation"),
    *("text_translation", "code_reasoning"),
)
_REQUEST = " Please answer yes or no."


def read(data: Data | None) -> Iterator[Item]:
    """The test split: two questions for each image."""
    assert data is not None
    needed = ("question_id", "category", "question", "answer", "image")
    for table in data.tables:
        yield from items(data.rows(table), _question, _name, needed)


def _name(row: Row) -> str:
    """The two questions of an image have one question_id."""
    asked = sha256(str(row.values.get("question")).encode("utf-8", "surrogatepass"))[:8]
    return f"{row.values.get('question_id')}#{asked}"


def _question(row: Row) -> Question:
    category = text(row, "category")
    return Question(
        id=_name(row),
        text=text(row, "question").strip(),
        pictures=pictures(row, "image"),
        truth=yes_or_no(column(row, "answer")),
        category=category,
        cluster=f"{category}/{text(row, 'question_id')}",
    )


def prompt(question: Question) -> str:
    """lmms-eval's: without the data's own request for yes or no."""
    return f"{question.text.replace(_REQUEST, '')}{SHORTLY}"


def kit_prompt(question: Question) -> str:
    """VLMEvalKit's: the data's words as they are."""
    return question.text


TASK = Task(
    name="mme",
    about="yes or no about perception and cognition; MME's own score",
    read=read,
    protocols=(
        Protocol("fixed", prompt, YesNo(), Mme(), max_new_tokens=16),
        lmms_protocol(prompt, LmmsMme(), Mme(), 16),
        kit_protocol(kit_prompt, KitYesNo(), Mme()),
    ),
    hub="lmms-lab-encoder/MME",
    tables=(TABLE,),
    parts=(*PERCEPTION, *COGNITION),
)
