"""The values of a row, for all types in use: texts, answers, choices."""

from __future__ import annotations

import ast
import json
import math
import re
import reprlib
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sinkscope.records.record import RecordError

ANSWER_KEYS = (
    "multiple_choice_answer",
    "answer",
    "correct_answer",
    "answers",
    "label",
    "response",
    "output",
    "outputs",
    "completion",
    "solution",
    "ground_truth",
    "gt_answer",
    "chosen",
)
_INDEX_KEYS = ("correct_answer_idx", "correct_answer_index", "answer_idx", "answer_index")
_LETTERED = re.compile(r"(?:\(([A-Za-z])\)|([A-Za-z])[).:])\s+")
_LONGEST_LIST = 10_000  # entries of a list written as text
_ANSWER_TYPES = "a text, a number, true or false, or a list of these"


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with keys in lower case (except single letters, which name choices) and without empty
    values: null, NaN, empty texts and lists."""
    values: dict[str, Any] = {}
    for key, value in row.items():
        if not value and (value is None or value == "" or value == []):
            continue
        if value != value and isinstance(value, float):
            continue
        name = key if len(key) == 1 or key.islower() else key.strip().lower()
        if " " in name:
            name = name.strip().replace(" ", "_")
        if name == key or name not in row:
            values[name] = value
    return values


def clean(text: str) -> str:
    """The text without half surrogate pairs, which tokenizers and files do not support."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def text_of(row: Mapping[str, Any], key: str) -> str | None:
    """A text of the row, or None if it is missing or blank.

    Raises:
        RecordError: the key holds something else.
    """
    value = row.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise RecordError(f"has {key} that is not text: {shown(value)}; allowed: a text")
    return clean(value) if value.strip() else None


def answer_of(
    row: Mapping[str, Any],
    choices: Sequence[tuple[str, str]] = (),
    keys: Sequence[str] = ANSWER_KEYS,
) -> str | None:
    """The true answer: of several annotators' answers the most frequent one, and among equals the
    first. true and false become yes and no; an integer, if the choices are texts, is a 0-based
    index and becomes the choice's letter.

    Raises:
        RecordError: its type cannot be an answer.
    """
    for key in _INDEX_KEYS:
        if choices and isinstance(index := row.get(key), int) and 0 <= index < len(choices):
            return choices[index][0]
    known = next((key for key in keys if key in row), None)
    if known is None:
        return None
    value = row[known]
    is_index = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(choices)
    if is_index and not all(_is_number(text) for _, text in choices):
        return str(choices[value][0])
    texts = _answer_text(value, known)
    return clean(texts) if texts is not None and texts.strip() else None


def choices_of(row: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """(letter, text) of each choice: columns A, B, ..., or a list, mapping or list written as text
    under `choices` or `options`; `answers` if the right one is given by its index."""
    if "A" in row and "B" in row:
        letters = [letter for letter in string.ascii_uppercase if letter in row]
        return tuple((letter, clean(str(row[letter]))) for letter in letters)
    keys = ["choices", "options"]
    if any(key in row for key in (*_INDEX_KEYS, "correct_answer")):
        keys.append("answers")
    value = next((row[key] for key in keys if key in row), None)
    if isinstance(value, str):
        value = listed(value)
    if isinstance(value, dict):
        labels, texts = value.get("label"), value.get("text")
        if isinstance(labels, list) and isinstance(texts, list) and len(labels) == len(texts):
            return tuple(zip(map(str, labels), map(clean, map(str, texts)), strict=True))
        return tuple((str(k), clean(str(v))) for k, v in value.items() if v is not None)
    if not isinstance(value, list) or not 1 < len(value) <= len(string.ascii_uppercase):
        return ()
    return tuple(
        _lettered(letter, clean(str(text)))
        for letter, text in zip(string.ascii_uppercase, value, strict=False)
    )


def listed(text: str) -> Any:
    """A list written as text in a table (JSON or Python syntax); otherwise the text itself."""
    if not (text.startswith("[") and text.endswith("]")):
        return text
    if text.count(",") + text.count("[") > _LONGEST_LIST:  # parsed, it would take a lot of memory
        return text
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return value if isinstance(value, list) else text
    return text


def shown(value: Any) -> str:
    """A value in an error message: short, on one line."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    short.maxlist = short.maxdict = 4
    short.maxlevel = 2
    return short.repr(value)


def _lettered(letter: str, text: str) -> tuple[str, str]:
    """A choice without its own letter: `(A) red` becomes `red`."""
    match = _LETTERED.match(text)
    if match is not None and (match[1] or match[2]).upper() == letter:
        return letter, text[match.end() :]
    return letter, text


def _answer_text(value: Any, key: str) -> str | None:
    """An answer as text; None if empty."""
    if isinstance(value, list):
        texts = [one for one in (_one(entry, key) for entry in value) if one and one.strip()]
        return Counter(texts).most_common(1)[0][0] if texts else None
    return _one(value, key)


def _one(value: Any, key: str) -> str | None:
    if isinstance(value, dict):  # a person's answer, or a message
        value = next((value[k] for k in ("answer", "value", "content", "text") if k in value), {})
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return str(value) if math.isfinite(value) else None
    raise RecordError(f"has {key} that is not an answer: {shown(value)}; allowed: {_ANSWER_TYPES}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
