"""The meaning of a row's keys: one function and one row of `FORMATS` for each layout.

The first format that knows a row reads it. docs/data.md has the table of them, which a test makes
from `FORMATS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sinkscope.records.conversation import (
    ParsedQuestion,
    conversation,
    history_of,
    messages_in,
    plain_question,
)
from sinkscope.records.pictures import references
from sinkscope.records.record import Record, RecordError
from sinkscope.records.values import answer_of, choices_of, clean, plain, shown, text_of

ID_KEYS = ("id", "question_id", "questionid", "idx", "index", "uid")
QUESTION_KEYS = ("prompt", "question", "query", "problem", "text")  # if a row has both, the first
CAPTION_KEYS = ("caption", "captions")
_MESSAGE_KEYS = ("messages", "input", "prompt")
_BESIDE_CONVERSATIONS = ("chosen", "solution", "answer", "answers", "ground_truth", "label")
_OF_QUERY = ("response", "answer", "answers", "label", "solution", "chosen")
_OF_INSTRUCTION = ("output", "outputs", "response", "answer", "answers", "chosen")


@dataclass(frozen=True)
class Format:
    """One layout of a row.

    Attributes:
        name: what it is called.
        keys: which keys it reads, in words.
        example: a typical row, as JSON.
        read: the question of a row; None if the row has another layout.
    """

    name: str
    keys: str
    example: str
    read: Callable[[Mapping[str, Any]], ParsedQuestion | None]


def _conversations(row: Mapping[str, Any]) -> ParsedQuestion | None:
    for key in ("conversations", "conversation"):
        if isinstance(turns := row.get(key), list):
            return _answered(conversation(turns, key), row, _BESIDE_CONVERSATIONS)
    return None


def _messages(row: Mapping[str, Any]) -> ParsedQuestion | None:
    for key in _MESSAGE_KEYS:
        if (turns := messages_in(row, key)) is not None:
            keys = (*_BESIDE_CONVERSATIONS, "completion", "output", "response")
            return _answered(conversation(turns, key), row, keys)
    return None


def _texts(row: Mapping[str, Any]) -> ParsedQuestion | None:
    turns = messages_in(row, "texts")
    return None if turns is None else conversation(turns, "texts")


def _instruction(row: Mapping[str, Any]) -> ParsedQuestion | None:
    if (instruction := text_of(row, "instruction")) is None:
        return None
    keys = ("input", "inputs", "question", "query")
    text = "\n".join(filter(None, (instruction, *(text_of(row, key) for key in keys))))
    return _with_history(plain_question(text), row, _OF_INSTRUCTION)


def _query(row: Mapping[str, Any]) -> ParsedQuestion | None:
    if (text := text_of(row, "query")) is None or not ({"response", "history"} & row.keys()):
        return None
    return _with_history(plain_question(text), row, _OF_QUERY)


def _choices(row: Mapping[str, Any]) -> ParsedQuestion | None:
    choices = choices_of(row)
    if not choices or (asked := _question(row)) is None:
        return None
    return dataclasses.replace(asked, choices=choices, answer=answer_of(row, choices))


def _question(row: Mapping[str, Any]) -> ParsedQuestion | None:
    for key in QUESTION_KEYS:
        if key == "text" and "file_name" in row and not _has_answer(row):
            return None  # the text of an image folder's metadata is a caption
        if (text := text_of(row, key)) is not None:
            if (hint := row.get("hint")) and isinstance(hint, str):
                text = f"{hint}\n{text}"
            if isinstance(options := row.get("options"), str) and not choices_of(row):
                text = f"{text}\n{options}"
            asked = plain_question(text)
            return dataclasses.replace(asked, answer=answer_of(row))
    return None


def _caption(row: Mapping[str, Any]) -> ParsedQuestion | None:
    keys = (*CAPTION_KEYS, "text") if "file_name" in row else CAPTION_KEYS
    answer = answer_of(row, keys=keys)
    return None if answer is None else ParsedQuestion(None, answer=answer, caption=True)


FORMATS: tuple[Format, ...] = (
    Format(
        "LLaVA, ShareGPT",
        "`conversations` (or `conversation`): turns of `from` and `value`, or one key per speaker; "
        "`image` or `images`; `system`; the preferred answer in `chosen`",
        '{"id": "000000033471", "image": "coco/train2017/000000033471.jpg", "conversations": '
        '[{"from": "human", "value": "<image>\\nWhat are the colors of the bus?"}, '
        '{"from": "gpt", "value": "White and red."}]}',
        _conversations,
    ),
    Format(
        "OpenAI, ms-swift, LLaMA-Factory messages",
        "`messages` (or `input`, `prompt`): `role` and `content`, a text or parts `text`, "
        "`image_url`, `image`, `input_text`, `input_image`; `images`",
        '{"messages": [{"role": "user", "content": "<image>What is it?"}, '
        '{"role": "assistant", "content": "A kitten."}], "images": ["x.jpg"]}',
        _messages,
    ),
    Format(
        "The Cauldron",
        "`texts`: turns of `user` and `assistant`; `images`",
        '{"images": ["x.jpg"], "texts": [{"user": "What is it?", "assistant": "A kitten."}]}',
        _texts,
    ),
    Format(
        "Alpaca",
        "`instruction`, followed by `input`; `output`; `history`; `system`; `images`",
        '{"instruction": "Answer the question.", "input": "What is it?", "output": "A kitten.", '
        '"images": ["x.jpg"]}',
        _instruction,
    ),
    Format(
        "ms-swift query and response",
        "`query`, `response`, `history` (lists of question and answer), `system`, `images`",
        '{"query": "<image>What is it?", "response": "A kitten.", "history": [], '
        '"images": ["x.jpg"]}',
        _query,
    ),
    Format(
        "Multiple choice, VLMEvalKit",
        "`question`, with `hint` before it; columns `A`, `B`, ..., or `choices` or `options`; "
        "`answer`: a letter, a text, or the index of a choice from 0",
        '{"index": 0, "image": "x.jpg", "question": "Which pet is it?", "A": "dog", "B": "cat", '
        '"answer": "B"}',
        _choices,
    ),
    Format(
        "POPE, VQA and other pairs",
        "`prompt`, `question`, `query`, `problem` or `text`; `answer`, `answers`, `label`, "
        "`response`, `output`, `completion`, `solution`, `ground_truth`",
        '{"question_id": 1, "image": "COCO_val2014_000000310196.jpg", '
        '"text": "Is there a snowboard in the image?", "label": "yes"}',
        _question,
    ),
    Format(
        "Captions",
        "`caption` or `captions`, and `text` beside `file_name`: the answer; the question is "
        "`--prompt`",
        '{"file_name": "0001.png", "text": "A golden retriever playing with a ball."}',
        _caption,
    ),
)


def record_of(raw: Mapping[str, Any], number: int = 0, where: str = "") -> Record | None:
    """A row as a record whose question may be missing; None if it names no image.

    Args:
        raw: the row as its file has it.
        number, where: as in `Record`.

    Raises:
        RecordError: a key has an invalid value; the text names it.
    """
    row = plain(raw)
    asked = next(
        (question for one in FORMATS if (question := one.read(row)) is not None),
        ParsedQuestion(None),
    )
    images = asked.images or references(row)
    if not images:
        return None
    if asked.marks and not asked.images:
        if asked.marks > len(images):
            raise RecordError(
                f"has {asked.marks} image marks in its question, but {len(images)} "
                f"image{'s' if len(images) > 1 else ''}"
            )
        images = images[: asked.marks]  # the others belong to later turns
    answer = asked.answer
    if answer is None and asked.question is None:
        answer = answer_of(row)
    return Record(
        question=asked.question,
        images=images,
        answer=answer,
        choices=asked.choices,
        system=asked.system or text_of(row, "system"),
        history=asked.history,
        later_turns=asked.later_turns,
        image_after_text=asked.image_after_text,
        caption=asked.caption,
        id=_id(row),
        number=number,
        where=where,
        values=raw,
    )


def _answered(
    asked: ParsedQuestion | None, row: Mapping[str, Any], keys: tuple[str, ...]
) -> ParsedQuestion | None:
    """The pair with the answer from outside the conversation, if the conversation has none."""
    if asked is None or asked.answer is not None:
        return asked
    return dataclasses.replace(asked, answer=answer_of(row, keys=keys))


def _with_history(
    asked: ParsedQuestion, row: Mapping[str, Any], keys: tuple[str, ...]
) -> ParsedQuestion:
    history = history_of(row.get("history"))
    return dataclasses.replace(asked, history=history, answer=answer_of(row, keys=keys))


def _has_answer(row: Mapping[str, Any]) -> bool:
    return answer_of(row) is not None


def _id(row: Mapping[str, Any]) -> str | None:
    for key in ID_KEYS:
        value = row.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
            name = clean(str(value))
            return name if len(name) <= 120 else shown(name)
    return None
