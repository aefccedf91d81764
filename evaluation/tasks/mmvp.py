"""MMVP (Tong et al., 2024): 150 pairs of images that CLIP confuses, with a question for each pair.

Four answers of the first release are swapped (github.com/tsb0601/MMVP, issue 30): questions 99,
100, 279 and 280. They are corrected here whichever release is read, as lmms-eval does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sinkscope.evaluation.base import Protocol, Question
from sinkscope.evaluation.data import Data, Row, Table, column
from sinkscope.evaluation.judges.lmms_eval import LmmsMmvp
from sinkscope.evaluation.judges.option_letter import OptionLetter
from sinkscope.evaluation.judges.vlmevalkit import KitOption
from sinkscope.evaluation.metrics.pairs import PairAccuracy
from sinkscope.evaluation.tasks.base import (
    BY_LETTER,
    Item,
    RowFault,
    Task,
    items,
    kit_choice,
    kit_protocol,
    letter_of,
    lettered,
    lmms_protocol,
    option_lines,
    pictures,
    text,
)

TABLE = Table(None, "train")
CORRECTED = {99: "B", 100: "A", 279: "B", 280: "A"}
_OPTION = re.compile(r"\(([a-z])\)\s*(.*?)(?=\s*\([a-z]\)|$)", re.IGNORECASE | re.DOTALL)


def read(data: Data | None) -> Iterator[Item]:
    """All 300 questions."""
    assert data is not None
    needed = ("Index", "Question", "Options", "Correct Answer", "image")
    for table in data.tables:
        yield from items(data.rows(table), _question, _name, needed)


def _name(row: Row) -> str:
    return str(row.values.get("Index"))


def _question(row: Row) -> Question:
    given = text(row, "Options")
    options = lettered([option.strip() for _, option in _OPTION.findall(given)])
    number = column(row, "Index")
    if not isinstance(number, int) or number < 1:
        raise RowFault(f"has the Index {number!r}; allowed: a whole number from 1 up")
    truth = letter_of(column(row, "Correct Answer"), options)
    return Question(
        id=str(number),
        text=text(row, "Question"),
        pictures=pictures(row, "image"),
        truth=CORRECTED.get(number, truth),
        options=options,
        cluster=f"pair-{(number - 1) // 2}",
    )


def prompt(question: Question) -> str:
    """lmms-eval's."""
    return f"{question.text}\n{option_lines(question.options)}{BY_LETTER}"


TASK = Task(
    name="mmvp",
    about="150 pairs of images that CLIP takes for alike; both of a pair must be right",
    read=read,
    protocols=(
        Protocol("fixed", prompt, OptionLetter(), PairAccuracy(), max_new_tokens=16),
        lmms_protocol(prompt, LmmsMmvp(), PairAccuracy(), 16),
        kit_protocol(kit_choice, KitOption(), PairAccuracy()),
    ),
    hub="lmms-lab-eval/MMVP",
    tables=(TABLE,),
)
