"""BLINK (Fu et al., 2024): 14 kinds of visual perception as multiple choice, up to four images."""

from __future__ import annotations

from collections.abc import Iterator

from sinkscope.evaluation.base import Protocol, Question
from sinkscope.evaluation.data import Data, Row, Table, column
from sinkscope.evaluation.judges.lmms_eval import LmmsBlink
from sinkscope.evaluation.judges.option_letter import OptionLetter
from sinkscope.evaluation.judges.vlmevalkit import KitOption
from sinkscope.evaluation.metrics.accuracy import MacroByCategory
from sinkscope.evaluation.tasks.base import (
    Item,
    Task,
    items,
    kit_choice,
    kit_protocol,
    letter_of,
    lettered,
    lmms_protocol,
    pictures,
    shared_image,
    text,
)

PARTS = (
    "Art_Style",
    "Counting",
    "Forensic_Detection",
    "Functional_Correspondence",
    "IQ_Test",
    "Jigsaw",
    "Multi-view_Reasoning",
    "Object_Localization",
    "Relative_Depth",
    "Relative_Reflectance",
    "Semantic_Correspondence",
    "Spatial_Relation",
    "Visual_Correspondence",
    "Visual_Similarity",
)
TABLES = tuple(Table(part, "val") for part in PARTS)
_IMAGES = ("image_1", "image_2", "image_3", "image_4")


def read(data: Data | None) -> Iterator[Item]:
    """The questions, one part after the other."""
    assert data is not None
    needed = ("idx", "prompt", "choices", "answer", "image_1")
    for table in data.tables:
        yield from items(data.rows(table), _question, _name, needed)


def _name(row: Row) -> str:
    return str(row.values.get("idx") or f"{row.table} {row.number}")


def _question(row: Row) -> Question:
    options = lettered(column(row, "choices"))
    images = pictures(row, *_IMAGES)
    return Question(
        id=_name(row),
        text=text(row, "prompt"),
        pictures=images,
        truth=letter_of(column(row, "answer"), options),
        options=options,
        category=str(row.values.get("sub_task") or row.table.configuration or ""),
        cluster=shared_image(images),
        fields={"question": str(row.values.get("question") or "")},
    )


def prompt(question: Question) -> str:
    """lmms-eval's note, and the data's own prompt, which holds the options."""
    letters = ", ".join(letter for letter, _ in question.options)
    note = f"Note: You only need to respond with {letters} without providing any additional"
    return f"{note} information.\n{question.text}"


def kit_prompt(question: Question) -> str:
    """VLMEvalKit's: only the question, and the options as lines."""
    bare = str(question.fields.get("question") or question.text)
    return kit_choice(Question(question.id, bare, (), question.truth, question.options))


TASK = Task(
    name="blink",
    about="14 kinds of visual perception, multiple choice, up to four images",
    read=read,
    protocols=(
        Protocol("fixed", prompt, OptionLetter(), MacroByCategory(), max_new_tokens=64),
        lmms_protocol(prompt, LmmsBlink(), MacroByCategory(), 1024),
        kit_protocol(kit_prompt, KitOption(), MacroByCategory()),
    ),
    hub="BLINK-Benchmark/BLINK",
    tables=TABLES,
    parts=PARTS,
)
