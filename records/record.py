"""One question about pictures, as a row of a file asks it, and the error of a row that cannot be
read."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from sinkscope.utils import sha256


class RecordError(ValueError):
    """A row that cannot be used. The text says which key and what is allowed, but not which row:
    the reader of the file knows that."""


class Reference(NamedTuple):
    """A row's reference to one picture.

    Attributes:
        encoding: `file`: a path; `base64`: base64 text or a data URI; `bytes`: a file's bytes;
            `row`: the index of another row of the same table, which has the picture.
        value: see there.
    """

    encoding: Literal["file", "base64", "bytes", "row"]
    value: str | bytes


class Record(NamedTuple):
    """One usable row. A tuple, because large files give hundreds of thousands.

    Attributes:
        question: without image marks; None if the row has no question of its own.
        images: at least one.
        answer: the true answer as text, or None.
        choices: (letter, text) of a multiple-choice question.
        system: the system message.
        history: earlier turns, (what was asked, what was answered).
        later_turns: how many turns of the conversation come after this one.
        image_after_text: whether the row places an image after text; images are shown first.
        caption: whether the answer is a caption, which answers the question asked of all images.
        id: the row's own name, or None.
        number: which row of its source, from 1.
        where: the same in words, such as `line 17 of pope.jsonl`.
        values: the whole row, for other uses.
    """

    question: str | None
    images: tuple[Reference, ...]
    answer: str | None = None
    choices: tuple[tuple[str, str], ...] = ()
    system: str | None = None
    history: tuple[tuple[str, str], ...] = ()
    later_turns: int = 0
    image_after_text: bool = False
    caption: bool = False
    id: str | None = None
    number: int = 0
    where: str = ""
    values: Mapping[str, Any] = MappingProxyType({})

    def prompt(self) -> str | None:
        """The question with its choices, one per line, if it does not name them itself."""
        if self.question is None or all(text in self.question for _, text in self.choices):
            return self.question
        return "\n".join([self.question, *(f"{letter}. {text}" for letter, text in self.choices)])

    def content(self) -> str:
        """The content that identifies the record: image names, question, answer; not its id or
        position. An image without a question is identified only by its name."""
        names = [image_name(image) for image in self.images]
        parts = [self.prompt(), self.answer, self.system]
        if len(names) == 1 and parts == [None, None, None]:
            return names[0]
        parts += [text for turn in self.history for text in turn]
        # With their lengths, so that no two rows run together into the same text.
        return "".join(f"{-1 if s is None else len(s)}:{s};" for s in (*names, "", *parts))

    def name(self) -> str:
        """The id, or one made of the content."""
        if self.id is not None:
            return self.id
        names = "+".join(image_name(image) for image in self.images[:4])
        return f"{names[:100]}#{self.short()}"

    def short(self) -> str:
        """Eight hexadecimal digits of the content."""
        return sha256(self.content().encode("utf-8", "surrogatepass"))[:8]


def image_name(image: Reference) -> str:
    """The path of an image file, else a hash of the row's value."""
    if image.encoding == "file" and isinstance(image.value, str):
        return image.value
    data = image.value.encode() if isinstance(image.value, str) else image.value
    return sha256(data)[:16]
