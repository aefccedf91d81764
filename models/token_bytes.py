"""The bytes of tokens that hold only a part of a character.

Tokenizers that work on bytes split rare characters (CJK, emoji) over tokens. Their texts are shown
with the token that completes them (`models.token_texts`); this module gives the bytes of each.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from sinkscope.models.token_texts import UNKNOWN

_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")  # byte fallback, as Llama 2 has it


def split_characters(tokenizer: Any, ids: Sequence[int], texts: Sequence[str]) -> dict[int, str]:
    """Index of each token that is a part of a character -> its bytes, such as "E7 8C".

    Args:
        tokenizer: anything with transformers' `decode` and `convert_ids_to_tokens`.
        ids, texts: of the tokens; a token that ends inside a character has the text "".

    Returns:
        All tokens of each such group, including the one that completes the character; nothing for a
        group whose bytes are unknown, or for another kind of tokenizer.
    """
    characters: dict[int, str] = {}
    group: list[int] = []
    for index, text in enumerate(texts):
        group.append(index)
        if text == "" and index + 1 < len(texts):
            continue
        if len(group) > 1 or text == "" or UNKNOWN in text:
            parts = {k: token_bytes(tokenizer, ids[k]) for k in group}
            if any(_is_part(part) for part in parts.values()):
                characters |= {k: part.hex(" ").upper() for k, part in parts.items() if part}
        group = []
    return characters


def token_bytes(tokenizer: Any, token: int) -> bytes | None:
    """The bytes that a token stands for; None where they are not known."""
    convert = getattr(tokenizer, "convert_ids_to_tokens", None)
    piece = convert(int(token)) if convert is not None else None
    if not isinstance(piece, str):
        return None
    if match := _FALLBACK.match(piece):
        return bytes.fromhex(match[1])
    table = _bytes_of_letters()
    try:
        result = bytes(table[letter] for letter in piece)
    except KeyError:
        return None
    # Another kind of tokenizer has pieces with such letters too, which mean themselves.
    alone = tokenizer.decode([int(token)], clean_up_tokenization_spaces=False)
    return result if result.decode("utf-8", "replace") == alone else None


def _is_part(part: bytes | None) -> bool:
    """Whether bytes begin or end inside a character."""
    try:
        (part or b"").decode()
    except UnicodeDecodeError:
        return True
    return False


@functools.cache
def _bytes_of_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: the printable ones are themselves, the others follow from 256."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {
        chr(256 + index): byte for index, byte in enumerate(others)
    }
