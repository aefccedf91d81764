"""The texts of tokens join to the tokenizer's decoded text, for every kind of tokenizer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sinkscope.models.profiles import DEMO
from sinkscope.models.token_texts import MOST_PENDING, TextPieces, joining, token_texts
from tests.tiny_model import build_tokenizer

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["\u2581", "\u2581a", "\u2581red", "\u2581star", "s", "tar", "\u4f60", "!", "\u2581\u2581"]


def fast(made: Tokenizer) -> PreTrainedTokenizerFast:
    made.add_special_tokens(["<s>", "<end>"])
    return PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False)


def metaspace(prepend: str = "always") -> PreTrainedTokenizerFast:
    """As in SentencePiece unigram models: a word's blank is part of its token."""
    pieces = [("<unk>", 0.0), *((word, -1.0 - k) for k, word in enumerate(WORDS))]
    letters = [(chr(c), -9.0) for c in range(ord("a"), ord("z") + 1) if chr(c) not in WORDS]
    made = Tokenizer(models.Unigram(pieces + letters, unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    made.decoder = decoders.Metaspace(prepend_scheme=prepend)
    return fast(made)


def byte_fallback() -> PreTrainedTokenizerFast:
    """As in Llama 2 and Mistral: blanks as U+2581, unknown characters as bytes."""
    pieces = [("<unk>", 0.0), *((b, -20.0) for b in BYTES), *((w, -1.0) for w in WORDS)]
    made = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return fast(made)


def word_piece() -> PreTrainedTokenizerFast:
    words = ["[UNK]", "a", "red", "star", "##s", "##tar", ".", "'", "n't"]
    made = Tokenizer(models.WordPiece({w: k for k, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    return fast(made)


def without_decoder() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "red": 2, "star": 3}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return fast(made)


KINDS: dict[str, Callable[[], Any]] = {
    "bundled": lambda: AutoTokenizer.from_pretrained(DEMO),
    "tiny": build_tokenizer,
    "Metaspace": metaspace,
    "Metaspace, never prepended": lambda: metaspace("never"),
    "byte fallback": byte_fallback,
    "WordPiece": word_piece,
    "no decoder": without_decoder,
}


@functools.cache
def tokenizer(kind: str) -> Any:
    return KINDS[kind]()


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(max_size=40))
@example(
    text="a red star \U0001f468\u200d\U0001f469\u200d\U0001f467 \U00020bb7 \ufffd\ufffd e\u0301"
)
@settings(max_examples=30, deadline=None)
def test_texts_join_to_the_decoded_text(kind: str, text: str) -> None:
    ids = tokenizer(kind)(text, add_special_tokens=False)["input_ids"]
    pieces = token_texts(tokenizer(kind), ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == tokenizer(kind).decode(ids)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_texts_of_any_ids_join_wherever_they_end(kind: str, data: st.DataObject) -> None:
    """Ids that no text produces: bytes that are not characters, unknown ids, control tokens."""
    names = tokenizer(kind)
    most = len(names) + 2  # a model's vocabulary is often padded beyond the tokenizer's
    ids = data.draw(st.lists(st.integers(0, most), max_size=2 * MOST_PENDING))
    pieces = TextPieces(names)
    for count, token in enumerate(ids, 1):
        pieces.add(token)
        if count % 7 == 0:  # a stop may come at any token
            assert "".join(pieces.texts()) == names.decode(ids[:count])
    assert "".join(pieces.texts()) == names.decode(ids)
    if kind != "byte fallback":  # text already shown can become U+FFFD later
        fresh, shown = TextPieces(names), ""
        for token in ids:
            shown += fresh.add(token)
        assert names.decode(ids).startswith(shown)


@pytest.mark.parametrize("kind", ["bundled", "tiny"])
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_runs_of_bytes_that_are_no_characters(kind: str, data: st.DataObject) -> None:
    names = tokenizer(kind)
    alphabet = [chr(c) for c in (0x0122, 0x0120, 0xF0, 0xE4, 0xFF, 0xC3)]  # as byte-level BPE says
    some = [i for i in names.convert_tokens_to_ids(alphabet) if i is not None]
    ids = data.draw(st.lists(st.sampled_from(some), max_size=3 * MOST_PENDING))
    assert "".join(token_texts(names, ids)) == names.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_asking_for_alternatives_changes_nothing(kind: str, data: st.DataObject) -> None:
    names = tokenizer(kind)
    token_ids = st.integers(0, len(names) - 1)
    steps = data.draw(st.lists(st.tuples(token_ids, st.lists(token_ids, max_size=3)), max_size=20))
    asking, plain = TextPieces(names), TextPieces(names)
    for token, others in steps:
        for other in (*others, token):
            asking.would_add(other)
        assert asking.add(token) == plain.add(token)
    assert asking.texts() == plain.texts()


def test_blanks_between_words_stay() -> None:
    for kind in ("Metaspace", "byte fallback", "WordPiece", "no decoder"):
        ids = tokenizer(kind)("a red star", add_special_tokens=False)["input_ids"]
        assert token_texts(tokenizer(kind), ids) == ("a", " red", " star"), kind


@pytest.mark.parametrize("kind", ["bundled", "tiny", "byte fallback"])
def test_a_character_belongs_to_the_token_that_completes_it(kind: str) -> None:
    names = tokenizer(kind)
    ids = names("\U0001f600!", add_special_tokens=False)["input_ids"]
    ids = ids[-5:]  # byte fallback has a blank before it
    assert token_texts(names, ids) == ("", "", "", "\U0001f600", "!")
    for cut in (1, 2, 3):  # an answer that ends inside a character keeps its bytes
        pieces = token_texts(names, ids[:cut])
        assert "".join(pieces) == names.decode(ids[:cut])
        assert set("".join(pieces)) == {"\ufffd"}
    end = names.convert_tokens_to_ids("<|im_end|>" if kind != "byte fallback" else "<end>")
    cut_off = token_texts(names, [*ids[:2], end])
    assert cut_off[-1] == names.decode(
        [end]
    )  # the token that ends the answer has its own text only
    assert "".join(cut_off[:-1]) == names.decode(ids[:2])


def test_what_another_token_would_have_been() -> None:
    names = tokenizer("Metaspace")
    pieces = TextPieces(names)
    red, star = names.convert_tokens_to_ids(["\u2581red", "\u2581star"])
    assert pieces.would_add(red) == "red"
    pieces.add(red)
    assert pieces.would_add(star) == " star"
    assert pieces.add(star) == " star"
    bundled = tokenizer("bundled")
    ids = bundled("\U0001f600", add_special_tokens=False)["input_ids"]
    pieces = TextPieces(bundled)
    assert [pieces.add(token) for token in ids[:3]] == ["", "", ""]
    assert pieces.would_add(ids[3]) == "\U0001f600"
    assert pieces.would_add(ids[0]) == "\ufffd"  # beside that of the three before it
    assert pieces.would_add(bundled(" red", add_special_tokens=False)["input_ids"][0]) == " red"
    pieces = TextPieces(bundled)
    pieces.add(ids[0])
    assert pieces.would_add(ids[1]) == "\ufffd"  # a character that is still not complete


@pytest.mark.parametrize("kind", ["bundled", "Metaspace"])
@pytest.mark.parametrize("what", ["text", "one token", "no characters"])
def test_only_a_few_tokens_are_decoded_at_a_time(
    kind: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = tokenizer(kind)
    ids = {
        "text": names("a red star " * 200, add_special_tokens=False)["input_ids"],
        "one token": [len(names) - 1] * 1000,
        "no characters": names("\u4f60", add_special_tokens=False)["input_ids"][:1] * 1000,
    }[what]
    decoded: list[int] = []
    real = names.decode

    def counted(some: list[int], **options: Any) -> Any:
        decoded.append(len(some))
        return real(some, **options)

    monkeypatch.setattr(names, "decode", counted)
    token_texts(names, ids)
    *steps, whole = decoded
    assert whole == len(ids)
    assert max(steps) <= 2 * MOST_PENDING
    assert len(steps) <= 3 * len(ids)
    if what != "no characters":
        assert sum(steps) <= 6 * len(ids)


@given(st.lists(st.text("ab\ufffd", max_size=3), min_size=1), st.text("ab\ufffd", max_size=12))
@example(["a", "b"], "ab\ufffd")
@example(["ab", ""], "b")
def test_pieces_are_mended_to_join_to_anything(texts: list[str], whole: str) -> None:
    mended = joining(texts, whole)
    assert len(mended) == len(texts)
    assert "".join(mended) == whole
    assert joining(mended, whole) == mended
