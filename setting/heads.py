"""Single heads of single layers, as users write them: for a setting's `own`."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sinkscope.setting.checks import MOST_INDEX, refuse
from sinkscope.utils import number_of

Heads = tuple[tuple[int, int], ...]
MOST_NAMED = 12  # in a label
MOST_HEADS = 100_000  # more than any model has
ALLOWED = (
    "all (leave it out), LAYER.HEAD with commas, such as 4.1,4.3,5.0-2, or a list of heads as JSON "
    "(with `chosen`, a list of `layer` and `head`)"
)
_PIECE = re.compile(r"(\d{1,6})\.(\d{1,6})(?:-(\d{1,6}))?")


def layer_heads(name: str, value: Any) -> Heads:
    """((layer, head), ...), rising, from pairs or from text.

    Args:
        name: of the setting.
        value: pairs of whole numbers; or text: `4.1,4.3,5.0-2` (both ends included), or the JSON of
            `methods.heads.HeadList`.

    Raises:
        ValueError: another value, no head at all, or one twice.
    """
    if isinstance(value, str):
        text = value.strip()
        pairs = _of_json(name, text) if text.startswith("{") else _of_list(name, text)
    elif isinstance(value, Iterable) and not isinstance(value, bytes | Mapping):
        pairs = [_pair(name, one) for one in value]
    else:
        raise refuse(name, value, ALLOWED)
    if not pairs:
        raise ValueError(f"{name} names no head; allowed: {ALLOWED}.")
    heads = tuple(sorted(pairs))
    for one, following in itertools.pairwise(heads):
        if one == following:
            raise ValueError(f"{name} has head {heads_text([one])} twice; allowed: each once.")
    return heads


def heads_text(heads: Iterable[tuple[int, int]]) -> str:
    """`4.1,4.3`: as users write them."""
    return ",".join(f"{layer}.{head}" for layer, head in heads)


def heads_words(heads: Sequence[tuple[int, int]], noun: str = "head") -> str:
    """`3 heads (4.1, 4.3, 5.0)`, the first of many."""
    named = [heads_text([one]) for one in heads[:MOST_NAMED]]
    more = ["…"] if len(heads) > MOST_NAMED else []
    return f"{number_of(len(heads), noun)} ({', '.join(named + more)})"


def _of_list(name: str, text: str) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    for piece in (part.strip() for part in text.split(",")):
        match = _PIECE.fullmatch(piece)
        if match is None:
            raise refuse(name, text, ALLOWED)
        layer, first = int(match[1]), int(match[2])
        last = first if match[3] is None else int(match[3])
        if last < first or len(pairs) + last - first >= MOST_HEADS:
            raise refuse(name, text, ALLOWED)
        pairs += [(layer, head) for head in range(first, last + 1)]
    return pairs


def _of_json(name: str, text: str) -> list[tuple[int, int]]:
    try:
        chosen = json.loads(text)["chosen"]
        pairs = [(one["layer"], one["head"]) for one in chosen]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise refuse(name, text, ALLOWED) from None
    return [_pair(name, one) for one in pairs]


def _pair(name: str, one: Any) -> tuple[int, int]:
    try:
        layer, head = one
        pair = int(layer), int(head)
        usable = not any(isinstance(part, bool | str) for part in (layer, head))
    except (TypeError, ValueError, OverflowError):
        raise refuse(name, one, ALLOWED) from None
    if not usable or pair != (layer, head) or not all(0 <= part <= MOST_INDEX for part in pair):
        raise refuse(name, one, ALLOWED)
    return pair


def list_text(values: Iterable[Any]) -> str:
    """A list as users write it: numbers with commas, pairs as LAYER.HEAD."""
    parts = []
    for one in values:
        pair = isinstance(one, list | tuple) and len(one) == 2
        parts.append(heads_text([(one[0], one[1])]) if pair else str(one))
    return ", ".join(parts)
