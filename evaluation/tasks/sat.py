"""SAT (Ray et al., 2024): spatial aptitude in static and moving scenes, two options."""

from __future__ import annotations

from collections.abc import Iterator

from sinkscope.evaluation.base import Protocol, Question
from sinkscope.evaluation.data import Data, Row, Table, column
from sinkscope.evaluation.judges.lmms_eval import LmmsSat
from sinkscope.evaluation.judges.option_letter import OptionLetter
from sinkscope.evaluation.metrics.accuracy import MacroByCategory
from sinkscope.evaluation.tasks.base import (
    Item,
    RowFault,
    Task,
    items,
    lettered,
    lmms_protocol,
    option_lines,
    pictures,
    shared_image,
    text,
)

TABLE = Table(None, "test")
_MOVEMENT = (
    "When multiple images are provided, You want to realize that when camera moves left, the "
    "objects in the image move right, and vice versa. And when you are asked about the movement of "
    "the same object captured in different images, you can compare the position of the object "
    "relative to other objects in the image to answer the question.\n"
)


def read(data: Data | None) -> Iterator[Item]:
    """The test split."""
    assert data is not None
    needed = ("image_bytes", "question", "answers", "correct_answer_idx")
    for table in data.tables:
        yield from items(data.rows(table), _question, _name, needed)


def _name(row: Row) -> str:
    return f"{row.table.split}-{row.number}"


def _question(row: Row) -> Question:
    options = lettered(column(row, "answers"))
    index = column(row, "correct_answer_idx")
    if not isinstance(index, int) or not 0 <= index < len(options):
        raise RowFault(f"has correct_answer_idx {index!r}; allowed: 0 to {len(options) - 1}")
    images = pictures(row, "image_bytes")
    return Question(
        id=_name(row),
        text=text(row, "question").strip(),
        pictures=images,
        truth=options[index][0],
        options=options,
        category=str(row.values.get("question_type") or ""),
        cluster=shared_image(images),
    )


def prompt(question: Question) -> str:
    """lmms-eval's: the question, what moves when the camera does, the options."""
    lines = option_lines(question.options)
    ask = "Only output the letter of the correct option and nothing else."
    return f"{question.text}\n{_MOVEMENT}\n{lines}\n\n{ask}"


TASK = Task(
    name="sat",
    about="spatial aptitude in static and moving scenes, two options",
    read=read,
    protocols=(
        Protocol("fixed", prompt, OptionLetter(), MacroByCategory(), max_new_tokens=16),
        lmms_protocol(prompt, LmmsSat(), MacroByCategory(), 16),
    ),
    hub="nv-njb/SAT",
    tables=(TABLE,),
)
