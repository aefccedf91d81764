"""The type of a task, and what the tasks share: reading rows into questions, texts of prompts."""

from __future__ import annotations

import posixpath
import re
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from sinkscope.evaluation.base import Faulty, Judge, Metric, Protocol, Question
from sinkscope.evaluation.data import MOST_NAMED, Data, Row, StoredPicture, Table, column
from sinkscope.records.record import RecordError, image_name
from sinkscope.records.values import shown

Item = Question | Faulty
Options = tuple[tuple[str, str], ...]

SHORTLY = "\nAnswer the question using a single word or phrase."  # lmms-eval's, and LLaVA's before
BY_LETTER = "\nAnswer with the option's letter from the given choices directly."
# VLMEvalKit's Qwen prompts (vlmeval/vlm/qwen2_vl/prompt.py).
KIT_CHOICE = "Please select the correct answer from the options above."
KIT_CHOICE_CHINESE = "\u8bf7\u76f4\u63a5\u56de\u7b54\u9009\u9879\u5b57\u6bcd\u3002"
_CHINESE = re.compile("[\u4e00-\u9fff]")  # its `cn_string`
KIT_YES_NO = " Please answer yes or no."
KIT_SHORTLY = "\nPlease try to answer the question with short words or phrases if possible."

CELL = 28 * 28  # pixels of the resized image that become one vision token of Qwen2.5-VL
# What lmms-eval's qwen2_5_vl, and VLMEvalKit's Qwen2.5-VL entries, set for every task.
LMMS_PIXELS: dict[str, Any] = {"min_pixels": 256 * CELL, "max_pixels": 2048 * CELL}
KIT_PIXELS: dict[str, Any] = {"min_pixels": 1280 * CELL, "max_pixels": 16384 * CELL}
LMMS_NOTE = (
    "Tokens are chosen as the checkpoint's generation_config.json says, which lmms-eval leaves at "
    "work but for the temperature."
)
KIT_NOTE = "VLMEvalKit samples at temperature 0.01 and top_k 1, which is greedy decoding."


@dataclass(frozen=True)
class Task:
    """One benchmark.

    Attributes:
        name: the value of `--task`.
        about: one line for the list of tasks.
        read: reads its questions, in the data's order, from opened data (None if it needs none).
        protocols: at least `fixed`, the first one.
        hub: its dataset on the hub; None if it has none.
        tables: of the dataset that it reads.
        data: what `--data` may be if there is no dataset; "" if no data is needed.
        endless: whether there is no last question, so that a limit is needed.
        parts: its categories, if they are known in advance.
        joined: tables without questions that are joined with the questions.
    """

    name: str
    about: str
    read: Callable[[Data | None], Iterator[Item]]
    protocols: tuple[Protocol, ...]
    hub: str | None = None
    tables: tuple[Table, ...] = ()
    data: str = ""
    endless: bool = False
    parts: tuple[str, ...] = ()
    joined: tuple[Table, ...] = ()

    def protocol(self, name: str) -> Protocol:
        """The task's protocol of this name.

        Raises:
            ValueError: the task has none of this name.
        """
        for one in self.protocols:
            if one.name == name:
                return one
        raise ValueError(
            f"protocol is {name!r}; the task {self.name} has "
            f"{', '.join(one.name for one in self.protocols)}."
        )


class RowFault(ValueError):  # noqa: N818  (recorded as the row's fault, and ends nothing)
    """A row that gives no question; the text says what is wrong, not where."""


@dataclass(frozen=True)
class LoadedPicture:
    """An image that is in memory already."""

    image: Image.Image

    def __call__(self) -> Image.Image:
        return self.image


def items(
    rows: Iterable[Row],
    make: Callable[[Row], Question],
    name: Callable[[Row], str],
    needed: Sequence[str] = (),
) -> Iterator[Item]:
    """The questions of rows; a row that gives no question becomes a `Faulty`.

    Args:
        rows: of a table.
        make: makes the question of a row, or raises `RowFault` or `RecordError`.
        name: gives the id of a row that `make` refuses.
        needed: columns that every question needs.

    Raises:
        ValueError: the first row that can be read lacks a needed column; the existing ones are
            named. A later row that lacks one (possible in JSON lines) becomes a `Faulty`.
    """
    first = True
    for row in rows:
        if row.damage:
            name_of = f"{row.table} row {row.number}"
            yield Faulty(name_of, row.damage, _category(row))
            continue
        if first:
            for one in needed:
                column(row, one)
        first = False
        try:
            if lacks := [one for one in needed if one not in row.values]:
                columns = ", ".join(list(map(str, row.values))[:MOST_NAMED])
                raise RowFault(f"has no {', '.join(lacks)}; columns present: {columns}")
            yield make(row)
        except (RowFault, RecordError) as error:
            text = str(error).rstrip(".")
            yield Faulty(name(row), f"{_first_up(row.where)} {text}.", _category(row))


def _category(row: Row) -> str:
    """The category of a faulty row; "" if it has none."""
    known = (row.values.get(key) for key in ("sub_task", "category"))
    return next((value for value in known if isinstance(value, str)), "")


def text(row: Row, name: str) -> str:
    """The text in a column of a row.

    Raises:
        RowFault: it is empty or not a text.
    """
    value = column(row, name)
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value != value:
        raise RowFault(f"has no {name} ({shown(value)})")
    if not str(value).strip():
        raise RowFault(f"has an empty {name}")
    return str(value)


def pictures(row: Row, *columns: str) -> tuple[StoredPicture, ...]:
    """The images of a row.

    Raises:
        RowFault: there is none.
    """
    images = row.images(*columns)
    if not images:
        raise RowFault(f"has no image in {', '.join(columns)}")
    return images


def shared_image(pictures: Sequence[StoredPicture]) -> str:
    """The cluster of a question if its data names none: its first image, by path or bytes, because
    questions about one image are not independent."""
    reference = pictures[0].reference
    name = image_name(reference)
    return posixpath.normpath(name) if reference.encoding == "file" else name


def lettered(texts: Sequence[Any]) -> Options:
    """Options with the letters A, B, ... before their texts.

    Raises:
        RowFault: there are fewer than two or more than the alphabet has letters.
    """
    if not isinstance(texts, list | tuple) or not 2 <= len(texts) <= len(string.ascii_uppercase):
        raise RowFault(f"has no options: {shown(texts)}; allowed: a list of 2 to 26 texts")
    return tuple(zip(string.ascii_uppercase, map(str, texts), strict=False))


def letter_of(value: Any, options: Options) -> str:
    """The truth's letter, from "(A)", "a" or "A.".

    Raises:
        RowFault: it is empty, or is not a letter of the options.
    """
    text = "" if value is None else str(value).strip()
    if not text:
        raise RowFault("has no answer")
    letter = text.strip("()[]. ").upper()
    letters = [one for one, _ in options]
    if letter not in letters:
        raise RowFault(f"has the answer {shown(text)}; allowed: {', '.join(letters)}")
    return letter


def yes_or_no(value: Any) -> str:
    """ "yes" or "no".

    Raises:
        RowFault: it is neither.
    """
    word = "" if value is None else str(value).strip().rstrip(".").lower()
    if word not in ("yes", "no"):
        raise RowFault(f"has the answer {shown(value)}; allowed: yes, no")
    return word


def answers_of(value: Any) -> tuple[str, ...]:
    """Annotators' answers: a list of texts, or of objects with `answer`.

    Raises:
        RowFault: there is none.
    """
    given = value if isinstance(value, list | tuple) else []
    answers = [one.get("answer") if isinstance(one, dict) else one for one in given]
    texts = tuple(one for one in answers if isinstance(one, str))
    if not answers or len(texts) != len(answers):
        raise RowFault(f"has no answers: {shown(value)}; allowed: a list of texts")
    return texts


def lmms_protocol(
    prompt: Callable[[Question], str],
    judge: Judge,
    metric: Metric,
    max_new_tokens: int,
    note: str = "",
) -> Protocol:
    """lmms-eval's protocol of a task; `note` is added after `LMMS_NOTE`."""
    return Protocol(
        "lmms-eval",
        prompt,
        judge,
        metric,
        max_new_tokens=max_new_tokens,
        decoding="checkpoint",
        note=f"{LMMS_NOTE} {note}".rstrip(),
        **LMMS_PIXELS,
    )


def kit_protocol(prompt: Callable[[Question], str], judge: Judge, metric: Metric) -> Protocol:
    """VLMEvalKit's protocol of a task."""
    return Protocol(
        "vlmevalkit", prompt, judge, metric, max_new_tokens=2048, note=KIT_NOTE, **KIT_PIXELS
    )


def option_lines(options: Options) -> str:
    """`A. x` and `B. y`, one per line."""
    return "\n".join(f"{letter}. {option}" for letter, option in options)


def kit_choice(question: Question) -> str:
    """VLMEvalKit's prompt of a multiple choice, with a Chinese instruction if the question or an
    option has a Chinese character."""
    lines = "".join(f"{letter}. {option}\n" for letter, option in question.options)
    prompt = f"Question: {question.text}\nOptions:\n{lines}"
    return prompt + (KIT_CHOICE_CHINESE if _CHINESE.search(prompt) else KIT_CHOICE)


def kit_shortly(question: Question) -> str:
    """VLMEvalKit's prompt of a short answer."""
    return f"{question.text}{KIT_SHORTLY}"


def _first_up(words: str) -> str:
    return words[:1].upper() + words[1:]
