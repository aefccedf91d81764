"""Files of the older evaluation script: `blink_validation.jsonl` and `sat2_test.jsonl`.

A row has the question in `conversations[0].value`, its options written into it, and the truth in
`conversations[1].value`; its images are `image_1` ... `image_4`, or one under another of the names
below. docs/evaluation.md maps that script's options.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from sinkscope.evaluation.base import Protocol, Question
from sinkscope.evaluation.data import Data, Row, Table
from sinkscope.evaluation.metrics.accuracy import MacroByCategory
from sinkscope.evaluation.tasks.base import (
    Item,
    Options,
    RowFault,
    Task,
    items,
    letter_of,
    pictures,
    shared_image,
)
from sinkscope.evaluation.tasks.by_question import ByQuestion
from sinkscope.records.conversation import plain_question
from sinkscope.records.values import shown

BLINK, SAT = Table(None, "blink_validation"), Table(None, "sat2_test")
NUMBERED = ("image_1", "image_2", "image_3", "image_4")
SINGLE = ("image", "img", "image_path", "img_path", "path")
GROUPS = ("sub_task", "task", "source")
IDS = ("id", "idx", "question_id")
SYSTEM = "Answer the question with the text of the correct choice alone."
MAX_PIXELS = 1_587_600
_OPTION = re.compile(r"(?:^|\n|\s)\(?([A-H])[).:]\s*(.*?)(?=(?:\n|\s)\(?[A-H][).:]\s|\n|$)")


def read(data: Data | None) -> Iterator[Item]:
    """The rows of the file."""
    assert data is not None
    for table in data.tables:
        yield from items(data.rows(table), _question, _name, ("conversations",))


def _name(row: Row) -> str:
    return next(
        (str(row.values[key]) for key in IDS if row.values.get(key) is not None),
        f"row-{row.number}",
    )


def _question(row: Row) -> Question:
    asked = plain_question(_turn(row, 0)).question
    if not asked:
        raise RowFault("has an empty question")
    truth = _turn(row, 1).strip()
    if not truth:
        raise RowFault("has no answer")
    options = options_in(asked)
    known = {key: row.values.get(key) for key in GROUPS}
    numbered = [key for key in NUMBERED if row.values.get(key)]
    single = [key for key in SINGLE if row.values.get(key)][:1]
    images = pictures(row, *(numbered or single or NUMBERED))
    return Question(
        id=_name(row),
        text=asked,
        pictures=images,
        truth=_truth(truth, options),
        options=options,
        category=next((str(value) for value in known.values() if value), ""),
        cluster=shared_image(images),
        fields={"truth": truth},
    )


def _turn(row: Row, index: int) -> str:
    turns: Any = row.values["conversations"]
    if not isinstance(turns, list) or len(turns) <= index or not isinstance(turns[index], dict):
        raise RowFault(f"has no conversations[{index}]; allowed: the question and the answer")
    value = turns[index].get("value")
    if not isinstance(value, str):
        raise RowFault(f"has conversations[{index}].value {shown(value)}; allowed: a text")
    return value


def options_in(question: str) -> Options:
    """The options that a question writes as `(A) x (B) y`, or one per line; empty if its letters
    are not A, B, ... without a gap."""
    options = [(letter, option.strip()) for letter, option in _OPTION.findall(question)]
    letters = "".join(letter for letter, _ in options)
    return tuple(options) if len(options) > 1 and letters == "ABCDEFGH"[: len(options)] else ()


def _truth(truth: str, options: Options) -> str:
    """The letter of the truth, which is a letter, an option's text, or both."""
    if not options:
        return truth
    same = [letter for letter, text in options if text.casefold() == truth.casefold()]
    if len(same) == 1:
        return same[0]
    leading = re.match(r"\(?([A-Ha-h])[).:]?(?:\s|$)", truth)
    return letter_of(leading[1] if leading else truth, options)


def prompt(question: Question) -> str:
    """The question, unchanged."""
    return question.text


def _task(name: str, what: str, table: Table) -> Task:
    return Task(
        name=name,
        about=f"the older evaluation script's JSON lines of {what}",
        read=read,
        protocols=(
            Protocol(
                "fixed",
                prompt,
                ByQuestion(),
                MacroByCategory(),
                system=SYSTEM,
                max_new_tokens=256,
                max_pixels=MAX_PIXELS,
                note="The older script's settings and image order; the system prompt says the "
                "same in our words. Its string_match is --judge substring-legacy.",
            ),
        ),
        tables=(table,),
        data=f"{table.split}.jsonl, or the folder that holds it (the script's data_root)",
    )


BLINK_TASK = _task("older-blink", "BLINK", BLINK)
SAT_TASK = _task("older-sat", "SAT", SAT)
