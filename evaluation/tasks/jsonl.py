"""Users' own questions: any file that `records` reads (JSON lines, JSON, tables), with images.

The layouts are those of docs/data.md. Options make a multiple choice; several answers are
annotators'.
"""

from __future__ import annotations

import string
from collections.abc import Iterator

from sinkscope.evaluation.base import Protocol, Question
from sinkscope.evaluation.data import Data, Row, StoredPicture, Table
from sinkscope.evaluation.metrics.accuracy import MacroByCategory
from sinkscope.evaluation.tasks.base import (
    BY_LETTER,
    Item,
    Options,
    RowFault,
    Task,
    items,
    letter_of,
    shared_image,
)
from sinkscope.evaluation.tasks.by_question import ByQuestion
from sinkscope.records.formats import record_of
from sinkscope.records.record import Record
from sinkscope.records.values import plain, shown

TABLE = Table(None, "questions")
CATEGORIES = ("category", "sub_task", "task", "source", "type")
CLUSTERS = ("cluster", "pair", "pair_id", "group", "image_source", "image_id")
_MOST_KEYS = 20


def read(data: Data | None) -> Iterator[Item]:
    """Every row: a question, or what is wrong with it."""
    assert data is not None
    for table in data.tables:
        yield from items(data.rows(table), question_of, lambda row: f"row-{row.number}")


def question_of(row: Row) -> Question:
    """The question of a row in any layout.

    Raises:
        RowFault, records.record.RecordError: it has no image, question or answer, or the answer is
            not one of the options.
    """
    record = record_of(dict(row.values), row.number, row.where)
    keys = ", ".join(list(map(str, row.values))[:_MOST_KEYS])
    if record is None:
        raise RowFault(f"has no image; keys present: {keys}")
    if record.question is None:
        raise RowFault(f"has no question; keys present: {keys}")
    if record.answer is None:
        raise RowFault(f"has no answer; keys present: {keys}")
    if record.history:
        raise RowFault("has earlier turns; allowed: questions that stand by themselves")
    known = plain(row.values)
    options = tuple((letter.upper(), option) for letter, option in record.choices)
    images = tuple(StoredPicture(image, row.pictures) for image in record.images)
    return Question(
        id=record.id or f"row-{row.number}",
        text=record.question,
        pictures=images,
        truth=truth_of(record, options, known.get("answers")),
        options=options,
        category=_first(known, CATEGORIES),
        cluster=_first(known, CLUSTERS) or shared_image(images),
        system=record.system,
    )


def truth_of(record: Record, options: Options, annotators: object = None) -> object:
    """A letter if there are options; the annotators' answers if there are several; else a text.

    Raises:
        RowFault: it is not one of the options.
    """
    answer = record.answer or ""
    if not options:
        several = annotators if isinstance(annotators, list) else []
        if len(several) > 1 and all(isinstance(one, str) for one in several):
            return tuple(several)
        return answer
    same = [letter for letter, option in options if option.strip() == answer.strip()]
    if len(same) == 1:
        return same[0]
    if len(answer.strip("()[]. ")) == 1 and answer.strip("()[]. ") in string.ascii_letters:
        return letter_of(answer, options)
    texts = ", ".join(f"{letter} ({shown(option)})" for letter, option in options)
    raise RowFault(f"has the answer {shown(answer)}, which is not an option; allowed: {texts}")


def prompt(question: Question) -> str:
    """The question, with its options as lines unless its text contains them."""
    if not question.options or all(option in question.text for _, option in question.options):
        return question.text
    lines = "\n".join(f"{letter}. {option}" for letter, option in question.options)
    return f"{question.text}\n{lines}{BY_LETTER}"


def _first(known: dict[str, object], keys: tuple[str, ...]) -> str:
    return next((str(known[key]) for key in keys if isinstance(known.get(key), str | int)), "")


TASK = Task(
    name="jsonl",
    about="your own questions: JSON lines or a table, with a folder of images",
    read=read,
    protocols=(Protocol("fixed", prompt, ByQuestion(), MacroByCategory(), max_new_tokens=64),),
    tables=(TABLE,),
    data="a .jsonl, .json, .csv, .tsv or .parquet file (--images: the folder its names start in)",
)
