"""An engine with prepared answers, and a user's file of questions: for tests of everything around
the answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sinkscope.evaluation.question_batches import Answer
from sinkscope.evaluation.work import Work, WorkResult


def answer_of(text: str, **others: Any) -> Answer:
    """An answer with this text."""
    values = {
        "finish_reason": "end",
        "log_probabilities": (-0.5, -0.25),
        "sinks": 2,
        "rows_changed": 0.5,
        "mass_moved": 0.125,
        "seconds": 0.1,
    }
    return Answer(text=text, **{**values, **others})


class Scripted:
    """Answers each question by a function of its work, with one text per method.

    Attributes:
        asked: the prompts, in order.
    """

    name = "scripted"

    def __init__(self, answer: Callable[[Work], Sequence[str] | Exception]) -> None:
        self._answer = answer
        self.asked: list[str] = []

    def run(self, task: Any, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for index, unit in enumerate(items):
            yield index, tuple(self._done(one) for one in unit)

    def _done(self, work: Work) -> WorkResult:
        self.asked.append(work.prompt)
        try:
            for picture in work.pictures:
                picture()
            made = self._answer(work)
        except ValueError as error:
            made = error
        if isinstance(made, Exception):
            return WorkResult("", (), str(made), {})
        return WorkResult("hash", tuple(answer_of(text) for text in made), None, {})


def write_questions(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """`questions.jsonl` with red.png beside it; by default each row asks about that image, in a
    cluster of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), (200, 30, 30)).save(folder / "red.png")
    path = folder / "questions.jsonl"
    own = [{"id": str(n), "image": "red.png", "cluster": f"own-{n}"} for n in range(len(rows))]
    given = [{**before, **row} for before, row in zip(own, rows, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return path
