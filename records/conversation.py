"""Conversations, in the layouts of LLaVA, ShareGPT, OpenAI and ms-swift: one pair is asked.

The pair is the first whose question shows an image (by a mark in its text or a part of its
content), or the first of all if no image is placed. Earlier turns are its history; later turns
are counted. An image mark gives an image's position and is never text: images are shown before the
text, as in LLaVA's own training, and a mark after words is noted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sinkscope.records.pictures import references_in
from sinkscope.records.record import RecordError, Reference
from sinkscope.records.values import clean, shown

MARK = re.compile(r"<image>|<ImageHere>")
_NUMBERED_MARK = re.compile(r"<image[ _]?(\d{1,2})>")
ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
_ASKING = frozenset(name for name, role in ROLES.items() if role == "user")
_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_PARTS = ("image", "image_url", "input_image")


@dataclass(slots=True)
class _Pair:
    """One exchange: the question, with its images, and the answer."""

    asked: str
    images: tuple[Reference, ...] = ()
    marks: int = 0
    image_after_text: bool = False
    answered: str | None = None
    stop: int = 0  # index of its last turn


@dataclass(slots=True)
class ParsedQuestion:
    """The question of a row.

    Attributes:
        question, answer, choices, system, history, later_turns: as in `records.record.Record`.
        images: those inside the conversation.
        marks: number of the row's own images that the question refers to; may be 0.
        image_after_text: whether an image stands after text.
        caption: whether the answer is a caption, which answers the question asked of all images.
    """

    question: str | None
    answer: str | None = None
    choices: tuple[tuple[str, str], ...] = ()
    system: str | None = None
    history: tuple[tuple[str, str], ...] = ()
    later_turns: int = 0
    images: tuple[Reference, ...] = ()
    marks: int = 0
    image_after_text: bool = False
    caption: bool = False


def plain_question(text: str) -> ParsedQuestion:
    """A question's text without its image marks. A numbered mark, `<image 2>`, becomes the words
    "image 2", because it refers to that image."""
    text = clean(text)
    if "<" not in text:
        return ParsedQuestion(text.strip() or None)
    if text.count("<") == 1 and text.startswith("<image>"):  # nearly all texts
        return ParsedQuestion(text[7:].strip() or None, marks=1)
    text = _NUMBERED_MARK.sub(r"image \1", text)
    pieces = MARK.split(text)
    image_after_text = len(pieces) > 1 and bool(pieces[0].strip())
    return ParsedQuestion(
        _joined(pieces) or None, marks=len(pieces) - 1, image_after_text=image_after_text
    )


def conversation(turns: Sequence[Any], key: str) -> ParsedQuestion | None:
    """The pair of a list of messages that is asked; None if there is no question.

    Args:
        turns: mappings with from / value, role / content, or one key a speaker
            (`{"human": ..., "assistant": ...}`).
        key: their key, for messages.

    Raises:
        RecordError: a message is invalid, has an unknown speaker, or a part that is neither text
            nor image.
    """
    system: list[str] = []
    pairs: list[_Pair] = []
    for pair in _pairs(turns, key, system):
        pairs.append(pair)
        if pair.images or pair.marks:
            break  # later turns are only counted
    if not pairs:
        return None
    index = len(pairs) - 1 if pairs[-1].images or pairs[-1].marks else 0
    pair = pairs[index]
    return ParsedQuestion(
        question=pair.asked or None,
        answer=pair.answered,
        system="\n".join(system) or None,
        history=tuple(_said_before(pairs[:index], key)),
        later_turns=_questions(turns[pair.stop :]),
        images=pair.images,
        marks=pair.marks,
        image_after_text=pair.image_after_text,
    )


def history_of(turns: Any, key: str = "history") -> tuple[tuple[str, str], ...]:
    """Earlier turns, as pairs (asked, answered) or as messages.

    Raises:
        RecordError: they are neither.
    """
    if turns is None:
        return ()
    if not isinstance(turns, list):
        raise RecordError(
            f"has {key} that is not a list: {shown(turns)}; allowed: [question, answer]"
        )
    history = []
    if all(isinstance(turn, list) for turn in turns):
        for turn in turns:
            if len(turn) != 2 or not all(isinstance(t, str) and t.strip() for t in turn):
                raise RecordError(
                    f"has {key} with {shown(turn)}; allowed: [question, answer], both texts"
                )
            history.append((plain_question(turn[0]).question or "", clean(turn[1])))
        return tuple(history)
    return tuple(_said_before(list(_pairs(turns, key, [])), key))


def messages_in(row: Mapping[str, Any], key: str) -> list[Any] | None:
    """A key's list of messages; None if it holds anything else."""
    value = row.get(key)
    return value if isinstance(value, list) and value and isinstance(value[0], dict) else None


def _said_before(pairs: Sequence[_Pair], key: str) -> Iterator[tuple[str, str]]:
    """Pairs as the history of a later one."""
    for pair in pairs:
        if not pair.asked or not pair.answered:
            raise RecordError(f"has {key} with an empty turn before the one that is asked")
        yield pair.asked, pair.answered


def _pairs(turns: Sequence[Any], key: str, system: list[str]) -> Iterator[_Pair]:
    """The exchanges, one by one; consecutive messages of one speaker are one turn. System messages
    go into `system`."""
    pair: _Pair | None = None
    for number, turn in enumerate(turns, 1):
        for speaker, content in _spoken(turn, key):
            if speaker == "user":
                if pair is not None and pair.answered is not None:
                    yield pair
                    pair = None
                pair = pair or _Pair("")
                _add_question(pair, _content(content, key))
            elif speaker == "assistant":
                if pair is not None:
                    text = _content(content, key).text.strip()
                    pair.answered = "\n".join(filter(None, (pair.answered, text))) or None
            elif speaker == "system":
                if text := _content(content, key).text:
                    system.append(text)
            elif pair is None or pair.answered is None:
                raise RecordError(
                    f"has {key} with the speaker {shown(speaker)}; allowed: {', '.join(ROLES)}"
                )
            else:  # such as tools, after an answer
                yield pair
                return
        if pair is not None:
            pair.stop = number
    if pair is not None:
        yield pair


def _add_question(pair: _Pair, content: _Content) -> None:
    asked = plain_question(content.text)
    shows = bool(content.images or content.marks or asked.marks)
    pair.image_after_text |= (
        content.image_after_text or asked.image_after_text or (shows and bool(pair.asked))
    )
    pair.asked = "\n".join(filter(None, (pair.asked, asked.question)))
    pair.images += content.images
    pair.marks += content.marks + asked.marks


def _questions(turns: Sequence[Any]) -> int:
    """How many of the turns are questions; nothing else about them is checked."""
    asking = 0
    for turn in turns:
        if isinstance(turn, dict):
            named = turn.get("from") or turn.get("role")
            asking += named in _ASKING if isinstance(named, str) else not _ASKING.isdisjoint(turn)
    return asking


def _spoken(turn: Any, key: str) -> list[tuple[str, Any]]:
    """(speaker, content) of a message; the speaker is user, assistant, system, or unknown."""
    if not isinstance(turn, dict):
        raise RecordError(f"has {key} with {shown(turn)}; allowed: messages with a speaker")
    named = turn.get("from") or turn.get("role")
    if named is not None:
        content = turn["value"] if "value" in turn else turn.get("content")
        return [(ROLES.get(str(named).lower(), str(named)), content)]
    spoken = [(ROLES[name], turn[name]) for name in turn if name in ROLES]
    if not spoken:
        raise RecordError(
            f"has {key} with {shown(turn)}; allowed: from and value, or role and content"
        )
    return sorted(spoken, key=lambda one: one[0] == "assistant")


@dataclass(slots=True)
class _Content:
    text: str
    images: tuple[Reference, ...] = ()
    marks: int = 0
    image_after_text: bool = False


def _content(content: Any, key: str) -> _Content:
    """The content of a message: a text, or parts that are texts and images."""
    if content is None:
        return _Content("")
    if isinstance(content, str):
        return _Content(clean(content))
    parts = content if isinstance(content, list) else [content]
    result, words = _Content(""), list[str]()
    for part in parts:
        if isinstance(part, str):
            words.append(clean(part))
        elif isinstance(part, dict):
            _add_part(result, words, part, key)
        else:
            raise RecordError(f"has {key} with content {shown(part)}; allowed: texts and images")
    result.text = "\n".join(words)
    return result


def _add_part(content: _Content, words: list[str], part: Mapping[str, Any], key: str) -> None:
    kind = part.get("type") or next((k for k in ("text", *_IMAGE_PARTS) if k in part), None)
    if kind in _TEXT_PARTS:
        text = part.get("text", part.get("content"))
        if not isinstance(text, str):
            raise RecordError(f"has {key} with a part of text that has none: {shown(part)}")
        words.append(clean(text))
    elif kind in _IMAGE_PARTS:
        content.image_after_text |= any(word.strip() for word in words)
        names = ("image_url", "image", "url", "path", "bytes", "data", "source")
        name = next((n for n in names if part.get(n) is not None), None)
        if name is None:
            content.marks += 1  # refers to the next of the row's own images
        else:
            value = {name: part[name]} if name in names[4:] else part[name]
            content.images += references_in(value, f"the image of {key}")
    else:
        raise RecordError(
            f"has {key} with a part of type {shown(kind)}; allowed: text, image, image_url, "
            "input_text, input_image"
        )


def _joined(pieces: Sequence[str]) -> str:
    """The pieces of a text between its marks, with one line break or one space for each mark."""
    joined: list[str] = []
    space = ""
    for piece in pieces:
        words = piece.strip()
        space += piece[: len(piece) - len(piece.lstrip())] if words else piece
        if words:
            if joined:
                joined.append("\n" if "\n" in space else " ")
            joined.append(words)
            space = piece[len(piece.rstrip()) :]
    return "".join(joined)
