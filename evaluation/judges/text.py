"""How judges normalise a text."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence

_MARKS = re.compile(r"[*`_\"“”„«»‘’]+")
_PUNCTUATION = re.compile(r"[^\w\s]", re.UNICODE)
_ARTICLES = frozenset({"a", "an", "the"})


def plain(text: str) -> str:
    """Unicode's compatibility form (Ｂ is B, （ is a bracket), without emphasis, quotation marks,
    and white space at its ends. Line breaks stay. Apostrophes become '."""
    text = unicodedata.normalize("NFKC", text.replace("’", "'"))
    return _MARKS.sub("", text).strip()


def words(text: str) -> list[str]:
    """The words in lower case, without punctuation and the articles a, an, the."""
    cleaned = _PUNCTUATION.sub(" ", plain(text).casefold().replace("'", ""))
    result = cleaned.split()
    return [word for word in result if word not in _ARTICLES] or result


def without_punctuation(text: str) -> str:
    """Without the 32 signs of ASCII punctuation."""
    return text.translate(str.maketrans("", "", string.punctuation))


def starts(inner: Sequence[str], outer: Sequence[str]) -> list[int]:
    """The positions of the words of `inner` as a contiguous sequence in `outer`; none if it is
    empty."""
    size = len(inner)
    if not size:
        return []
    return [i for i in range(len(outer) - size + 1) if list(outer[i : i + size]) == list(inner)]
