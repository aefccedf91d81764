"""The bytes of tokens that are parts of one character."""

from __future__ import annotations

from typing import Any

import pytest

from sinkscope.models.token_bytes import split_characters, token_bytes
from sinkscope.models.token_texts import token_texts
from tests.models.test_token_texts import byte_fallback, metaspace, word_piece
from tests.tiny_model import build_tokenizer

CAT = "\u732b"  # E7 8C AB


def ids_of(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


@pytest.mark.parametrize("make", [build_tokenizer, byte_fallback], ids=["byte level", "fallback"])
def test_the_parts_of_a_character_are_grouped(make: Any) -> None:
    tokenizer = make()
    ids = ids_of(tokenizer, f"a {CAT} a")
    texts = token_texts(tokenizer, ids)
    found = split_characters(tokenizer, ids, texts)
    assert " ".join(found[k] for k in sorted(found)).endswith("E7 8C AB")
    assert len(found) > 1, "the tokenizer does not split the character: the test shows nothing"
    places = sorted(found)
    assert places == list(range(places[0], places[-1] + 1))
    assert [texts[k] for k in places[:-1]] == [""] * (len(places) - 1)
    assert texts[places[-1]].endswith(CAT)


def test_a_character_that_no_token_completes() -> None:
    tokenizer = build_tokenizer()
    ids = ids_of(tokenizer, CAT)[:-1]
    found = split_characters(tokenizer, ids, token_texts(tokenizer, ids))
    assert "AB" not in " ".join(found.values()) and found


@pytest.mark.parametrize("make", [metaspace, word_piece])
def test_other_tokenizers_have_no_bytes(make: Any) -> None:
    tokenizer = make()
    ids = ids_of(tokenizer, "a red star")
    assert split_characters(tokenizer, ids, token_texts(tokenizer, ids)) == {}


def test_whole_texts_are_no_parts() -> None:
    tokenizer = build_tokenizer()
    ids = ids_of(tokenizer, "a red star, caf\u00e9")
    texts = token_texts(tokenizer, ids)
    whole = [k for k, text in enumerate(texts) if text.isascii() and text]
    assert not set(split_characters(tokenizer, ids, texts)) & set(whole)
    assert token_bytes(tokenizer, ids[0]) == b"a"
    assert token_bytes(object(), 3) is None
