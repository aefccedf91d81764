"""Hostile values, texts and files, made from a seed: the same number gives the same input."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

TRILLION = 10**12
# Values put in the place of expected ones.
SCALARS: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, TRILLION, -TRILLION, 2**31, 2**53 + 1, 2**63, 2**64 - 1,
    0.0, -0.0, 0.5, -0.5, 1e308, -1e308, 5e-324,
    "", " ", "a", "pair", "run", "null", "NaN", "0", "1-9999999", "0, 1, 2", "\0", "\u202egnp",
    "x" * 5000, "../" * 40 + "etc/passwd", "/proc/kmsg", "/dev/zero", "file:///etc/passwd",
    "<img src=x onerror=window.__hit=1>", "{{value}}", "${1}", "__proto__", "constructor", "日本🦊",
)  # fmt: skip
LISTS: tuple[Any, ...] = (
    [], [None], [[]], [[[]]], {}, {"": None}, {"a": {}}, {"__proto__": {"x": 1}},
    [0, 0], [1, 0], [0, TRILLION], ["a", None, 3], [None] * 300, {"path": "/etc/passwd"},
    {"path": "/proc/kmsg", "meta": {"_type": "gradio.FileData"}}, {"url": "http://127.0.0.1:1/"},
)  # fmt: skip


def value(rng: random.Random) -> Any:
    """A value of any type."""
    return copy.deepcopy(rng.choice(SCALARS if rng.random() < 0.7 else LISTS))


def places(plain: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key or index) of every value inside of a value."""
    waiting = [plain]
    while waiting:
        holder = waiting.pop()
        keys = holder if isinstance(holder, dict) else range(len(holder))
        for key in list(keys):
            yield holder, key
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])


def changed(plain: Any, rng: random.Random) -> Any:
    """A copy of a value with one to three of its inner values changed, missing or duplicated."""
    made = copy.deepcopy(plain)
    for _ in range(rng.randint(1, 3)):
        found = list(places(made))
        if not found:
            return value(rng)
        holder, key = rng.choice(found)
        act = rng.random()
        if act < 0.7:
            holder[key] = value(rng)
        elif act < 0.85:
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        else:
            holder[str(value(rng))[:30]] = holder[key]
    return made


def garbled(data: bytes, rng: random.Random) -> bytes:
    """Bytes of a file with a part flipped, cut off, doubled, inserted or blanked."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(made) + 1)
        size = rng.choice((1, 1, 2, 8, 64, 1000))
        act = rng.randrange(6)
        if act == 0 and at < len(made):
            made[at] ^= 1 << rng.randrange(8)
        elif act == 1:
            del made[at:]
        elif act == 2:
            del made[at : at + size]
        elif act == 3:
            made[at:at] = made[at : at + size]
        elif act == 4:
            made[at:at] = rng.choice(PIECES)
        else:
            made[at : at + size] = bytes(len(made[at : at + size]))
    return bytes(made)


PIECES = (
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"NaN", b"1e999", b"[" * 200, b'"', b"{",
    b"}", b"]", b",", b"\n", b"null", b"9" * 5000, b"\\ud800", b"\x1f\x8b\x08", b"-", b"\xd8\xff",
)  # fmt: skip


def json_bombs(size: int = 300_000) -> dict[str, bytes]:
    """JSON texts that cost more than their size suggests, or that parsers read differently, by
    name."""
    return {
        "empty": b"",
        "lists in lists": b"[" * size,
        "closed lists in lists": b"[" * size + b"]" * size,
        "objects in objects": b'{"a":' * size,
        "a little too deep": b"[" * 900 + b"]" * 900,
        "many lists": b"[" + b"[]," * (2 * size) + b"[]]",
        "not a number": b'{"a": NaN}',
        "infinity": b"[Infinity, -Infinity]",
        "beyond floats": b"[1e999]",
        "many digits": b"[" + b"9" * size + b"]",
        "a key twice": b'{"a": 1, "a": 2}',
        "cut off": b'{"a": [1, 2, "b',
        "latin-1": '{"a": "ü"}'.encode("latin-1"),
        "utf-16": '{"a": 1}'.encode("utf-16"),
        "half a character": b'["\\ud800"]',
        "quotes": b'"' * size,
        "an open text": b'["' + b"\\" * size,
        "a number": b"1",
        "null": b"null",
        "binary": bytes(range(256)) * 50,
    }


def toml_bombs(size: int = 50_000) -> dict[str, bytes]:
    """The same for TOML."""
    return {
        "arrays in arrays": b"a=" + b"[" * size,
        "closed arrays": b"a=" + b"[" * 300 + b"]" * 300,
        "tables in tables": b"a=" + b"{a=" * size,
        "a key of many parts": b"a." * size + b"a=1",
        "a table of many parts": b"[" + b"a." * size + b"a]",
        "not a number": b"tau = nan",
        "infinity": b"tau = inf",
        "a key twice": b"a = 1\na = 2",
        "latin-1": 'a = "ü"'.encode("latin-1"),
        "binary": bytes(range(256)),
        "large": b"#" * 2_000_000,
        "many digits": b"a = " + b"9" * size,
    }


def encoded(plain: Any) -> bytes:
    """JSON as careless programs write it: including NaN."""
    return json.dumps(plain).encode()
