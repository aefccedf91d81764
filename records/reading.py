"""From rows to records: every row is read by its format, and unusable rows are counted.

A row without an image is left out, and so is one without a recognisable question. A default
question is asked only if the user gives one, or if a row has an image and no text at all. If no row
is left, one sentence says what the rows have and what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sinkscope.records.formats import ID_KEYS, QUESTION_KEYS, record_of
from sinkscope.records.pictures import ALLOWED, IMAGE_KEYS
from sinkscope.records.record import Record, RecordError
from sinkscope.records.sources import Source
from sinkscope.records.values import ANSWER_KEYS, plain, shown

MOST_KEYS = 30  # named in a message
_NAMED = 5  # rows named in a note
_QUESTIONS = (
    f"{', '.join(QUESTION_KEYS)}, instruction, conversations, messages, texts (docs/data.md has "
    "the layouts)"
)


@dataclass
class Tally:
    """How many rows share a fault, and the first of them."""

    count: int = 0
    first: list[int] = field(default_factory=list)
    reason: str = ""

    def add(self, number: int, reason: str = "") -> None:
        if not self.count:
            self.reason = reason
        self.count += 1
        if len(self.first) < _NAMED:
            self.first.append(number)

    def places(self, unit: str) -> str:
        """`(lines 3, 7, ...)`."""
        more = ", ..." if self.count > len(self.first) else ""
        return f"({plural(unit, self.count)} {', '.join(map(str, self.first))}{more})"


@dataclass
class Survey:
    """Counts of one pass over a source.

    Attributes:
        rows: how many there are.
        used: how many can be asked.
        no_image, no_question, faulty: rows left out.
        default_question: rows that are asked the default question.
        image_after_text: rows that place an image after text.
        later_turns: rows with further turns, which are not asked.
        keys: of the rows left out, in the order met.
    """

    rows: int = 0
    used: int = 0
    no_image: Tally = field(default_factory=Tally)
    no_question: Tally = field(default_factory=Tally)
    faulty: Tally = field(default_factory=Tally)
    default_question: Tally = field(default_factory=Tally)
    image_after_text: Tally = field(default_factory=Tally)
    later_turns: Tally = field(default_factory=Tally)
    keys: dict[str, None] = field(default_factory=dict)

    def lacks(self, tally: Tally, number: int, row: Mapping[str, Any]) -> None:
        tally.add(number)
        for key in row:
            if len(self.keys) >= MOST_KEYS:
                break
            self.keys.setdefault(str(key)[:40])

    def check(self, source: Source) -> None:
        """Raises ValueError if no row can be used."""
        if self.used:
            return
        name, unit, rows = source.name, source.unit, self.rows
        if not rows:
            raise ValueError(f"The data {name} is empty.")
        units = plural(unit, rows)
        present = f"keys present: {', '.join(map(_printable, self.keys)) or 'none'}"
        if self.no_question.count:
            raise ValueError(
                f"{name} has no question in {self.no_question.count} of {rows} {units}; {present}; "
                f"allowed: {_QUESTIONS}; or one question for all of them (prompt)."
                + self._others(self.no_question)
            )
        if self.no_image.count:
            raise ValueError(
                f"{name} has no image in {self.no_image.count} of {rows} {units}; {present}; "
                f"allowed: {ALLOWED}." + self._others(self.no_image)
            )
        raise ValueError(self.faulty.reason)

    def notes(self, source: Source, prompt: str) -> tuple[str, ...]:
        """Notes for the user about the rows, one sentence each."""
        unit, of = source.unit, "" if not source.whole else f" of {self.rows}"
        lines = list(source.notes)

        def say(tally: Tally, words: str) -> None:
            if tally.count:
                units = plural(unit, tally.count if not of else self.rows)
                lines.append(f"{tally.count}{of} {units} {words} {tally.places(unit)}.")

        say(self.no_image, "have no image and were skipped")
        say(self.no_question, "have no question and were skipped")
        if self.faulty.count:
            say(self.faulty, "cannot be read and were skipped")
            lines[-1] += f" {self.faulty.reason}"
        if self.default_question.count and self.default_question.count < self.used:
            say(
                self.default_question,
                f"have no question of their own and are asked {shown(prompt)}",
            )
        say(self.image_after_text, "place an image behind words; it is shown before them")
        say(self.later_turns, "are conversations whose later turns are not asked")
        return tuple(lines)

    def _others(self, but: Tally) -> str:
        others = ((self.no_image, "Without an image"), (self.faulty, "Cannot be read"))
        return "".join(f" {words}: {t.count}." for t, words in others if t.count and t is not but)


def plural(unit: str, count: int) -> str:
    """`line` and `lines`, `entry` and `entries`."""
    if count == 1:
        return unit
    return f"{unit[:-1]}ies" if unit.endswith("y") else f"{unit}s"


def records_of(
    source: Source, prompt: str | None = None, survey: Survey | None = None
) -> Iterator[Record]:
    """The records of a source that can be asked, one after the other.

    Args:
        source: where the rows come from.
        prompt: the user's own question for rows that have none; None: a row with text must have its
            own question.
        survey: counts what is seen.

    Yields:
        Records; `question` is None for the default question.

    Raises:
        ValueError: the source cannot be read, or a row of it is not an object.
    """
    seen = survey or Survey()
    for number, row in source.rows():
        seen.rows += 1
        if not isinstance(row, dict):
            raise ValueError(
                f"{_sentence(source.place(number), source)} is not JSON object: {shown(row)}."
            )
        try:
            record = record_of(row, number, source.place(number))
        except RecordError as error:
            seen.faulty.add(number, f"{_sentence(source.place(number), source)} {error}.")
            continue
        if record is None:
            seen.lacks(seen.no_image, number, row)
            continue
        if record.question is None:
            if prompt is None and not record.caption and _has_words(row):
                seen.lacks(seen.no_question, number, row)
                continue
            seen.default_question.add(number)
        if record.image_after_text:
            seen.image_after_text.add(number)
        if record.later_turns:
            seen.later_turns.add(number)
        seen.used += 1
        yield record


def _has_words(row: Mapping[str, Any]) -> bool:
    """Whether something in the row could be a question under an unknown key."""
    known = {*ID_KEYS, *IMAGE_KEYS}
    return any(
        key not in known and not key.startswith("image")
        for key, value in plain(row).items()
        if isinstance(value, str | list | dict) or key in ANSWER_KEYS
    )


def _sentence(place: str, source: Source) -> str:
    """The position of a row with the full name of its source: `Line 3 of /data/pope.jsonl`."""
    short = place.rsplit(" of ", 1)[0] if source.whole else place
    words = f"{short} of {source.name}" if source.whole else short
    return words[:1].upper() + words[1:]


def _printable(key: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in key)
