"""GQA (Hudson and Manning, 2019), balanced test-dev: compositional questions about 398 images.

Questions and images are two tables, joined by `imageId`. All images of the split are kept in
memory, compressed, while the questions are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from sinkscope.evaluation.base import Protocol, Question
from sinkscope.evaluation.data import Data, Row, StoredPicture, Table, column
from sinkscope.evaluation.judges.exact_match import ExactMatch
from sinkscope.evaluation.judges.lmms_eval import LmmsExactMatch
from sinkscope.evaluation.judges.vlmevalkit import KitExactMatch
from sinkscope.evaluation.metrics.accuracy import Accuracy
from sinkscope.evaluation.tasks.base import (
    SHORTLY,
    Item,
    RowFault,
    Task,
    items,
    kit_protocol,
    kit_shortly,
    lmms_protocol,
    text,
)

QUESTIONS = Table("testdev_balanced_instructions", "testdev")
IMAGES = Table("testdev_balanced_images", "testdev")


def read(data: Data | None) -> Iterator[Item]:
    """The questions, each with its image.

    Raises:
        ValueError: only one of the two tables was given, as a file.
    """
    assert data is not None
    if IMAGES not in data.tables:
        raise ValueError(
            f"The data {data.name} is one file, and GQA has two tables ({QUESTIONS} and {IMAGES}); "
            "give the folder that holds both."
        )
    images: dict[str, tuple[StoredPicture, ...]] = {}
    for row in data.rows(IMAGES):
        if row.damage:
            continue  # a question about such an image says that there is none
        images[str(column(row, "id"))] = row.images("image")

    def make(row: Row) -> Question:
        return replace(_question(row), pictures=_pictures(row, images))

    needed = ("id", "imageId", "question", "answer")
    yield from items(data.rows(QUESTIONS), make, _name, needed)


def _name(row: Row) -> str:
    return str(row.values.get("id"))


def _pictures(
    row: Row, images: Mapping[str, tuple[StoredPicture, ...]]
) -> tuple[StoredPicture, ...]:
    name = str(column(row, "imageId"))
    if not (image := images.get(name)):
        raise RowFault(f"names the image {name!r}, which {IMAGES} does not have")
    return image


def _question(row: Row) -> Question:
    types = row.values.get("types")
    kind = types.get("structural") if isinstance(types, dict) else ""
    return Question(
        id=_name(row),
        text=text(row, "question"),
        pictures=(),
        truth=text(row, "answer"),
        category=str(kind or ""),
        cluster=str(column(row, "imageId")),
    )


def prompt(question: Question) -> str:
    """lmms-eval's."""
    return f"{question.text}{SHORTLY}"


TASK = Task(
    name="gqa",
    about="compositional questions about real photos; exact match",
    read=read,
    protocols=(
        Protocol("fixed", prompt, ExactMatch(), Accuracy(), max_new_tokens=16),
        lmms_protocol(prompt, LmmsExactMatch(), Accuracy(), 16),
        kit_protocol(kit_shortly, KitExactMatch(), Accuracy()),
    ),
    hub="lmms-lab-encoder/GQA",
    tables=(QUESTIONS, IMAGES),
    joined=(IMAGES,),
)
