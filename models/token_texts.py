"""One piece of text for each token, for prompts and answers alike.

Decoding tokens one by one is wrong for most tokenizers: byte-level ones split a character over
tokens (each alone gives U+FFFD), others (Metaspace, WordPiece) put the blank between two words into
how a token is decoded after another. So a piece is what a token ADDS to the text before it, and
only `decode` is assumed of the tokenizer. Only the last few tokens are decoded at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

UNKNOWN = "\ufffd"  # the decoding of bytes that are not a complete character
MOST_PENDING = 32  # tokens that may wait for a character to end
OPEN = 4  # of these, the last may still be parts of one character (UTF-8: 4 bytes)
CONTEXT = 16  # maximum number of tokens decoded before the waiting ones, if many wait


class TextPieces:
    """Splits a text into one piece per token, as the tokens come.

    A token that ends inside a character gets "" and the one that completes it gets all of it; bytes
    that no token completes stay where they are, as U+FFFD.

    Args:
        tokenizer: anything with transformers' `decode`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._ids: list[int] = []
        self._texts: list[str] = []
        self._context: list[
            int
        ] = []  # the tokens before the waiting ones that are decoded with them
        self._before = ""  # what the context alone is decoded to
        self._waiting: list[int] = []
        self._seen: list[str] = []  # what the context is decoded to with 1, 2, ... waiting tokens
        self._again: str | None = None  # what the next token adds if it is the same as the last
        self._tried: dict[int, str] = {}  # what all would be decoded to with these next tokens

    def add(self, token: int) -> str:
        """What can be shown once this token is there: its own piece and those that waited for it.

        The pieces so returned join to the text as far as it is complete; `texts` gives each token
        its own and the rest.
        """
        self._ids.append(token)
        if self._again is not None and token == self._ids[-2]:
            self._texts.append(self._again)
            self._tried.clear()
            return self._again
        context = self._context
        self._texts.append("")
        self._waiting.append(token)
        text = self._tried.get(token)
        if text is None:
            text = self._decode(self._context + self._waiting)
        self._seen.append(text)
        self._again = None
        self._tried.clear()
        if text.startswith(self._before) and not text.endswith(UNKNOWN):
            shown = self._settle(len(self._waiting))
            if context == self._context == [token]:  # unchanged, so the result is the same
                self._again = shown
            return shown
        if len(self._waiting) >= MOST_PENDING:
            return self._settle(MOST_PENDING - OPEN)
        return ""

    def would_add(self, token: int) -> str:
        """The piece of `token` if it were the next and last one."""
        text = self._tried[token] = self._decode([*self._context, *self._waiting, token])
        for so_far in (*self._seen[-1:], self._before):  # the second where it completes a character
            if text.startswith(so_far) and text != so_far:
                return text[len(so_far) :]
        return self._decode([token])

    def texts(self) -> tuple[str, ...]:
        """The piece of each token so far; they join to what all of them are decoded to."""
        if self._waiting:
            self._settle(len(self._waiting))
            self._tried.clear()
        return tuple(joining(self._texts, self._decode(self._ids)))

    def _decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return text

    def _settle(self, count: int) -> str:
        """Give the first `count` waiting tokens their pieces; all of these."""
        text, at = self._seen[-1], len(self._before)
        first = len(self._texts) - len(self._waiting)
        for index, upto in enumerate(self._seen[:count]):
            # What has changed since was part of a character that continues.
            end = max(at, len(upto)) if text.startswith(upto) else at
            self._texts[first + index] = text[at:end]
            at = end
        shown = text[len(self._before) : at]
        settled, rest = self._waiting[:count], self._waiting[count:]
        alone = self._decode(settled)
        if rest or not alone:  # a token without text may give no context (an unknown id)
            settled = (self._context + settled)[-CONTEXT:]
            alone = self._decode(settled)
        self._context, self._before, self._waiting = settled, alone, rest
        self._seen = [self._decode(settled + rest[: k + 1]) for k in range(len(rest))]
        return shown


def token_texts(tokenizer: Any, ids: Iterable[int]) -> tuple[str, ...]:
    """The piece of each token (`TextPieces`); they join to `tokenizer.decode(ids)`."""
    pieces = TextPieces(tokenizer)
    for token in ids:
        pieces.add(token)
    return pieces.texts()


def joining(texts: list[str], whole: str) -> list[str]:
    """The pieces, changed as little as possible, so that they join to `whole`.

    They already do, except for decoders whose text is not the sum of single steps: byte fallback
    turns a whole run of bytes into U+FFFD if its end is incomplete.
    """
    joined = "".join(texts)
    if joined == whole or not texts:
        return texts
    shorter = min(len(joined), len(whole))
    same = next((k for k in range(shorter) if joined[k] != whole[k]), shorter)
    left = shorter - same
    after = next((k for k in range(left) if joined[-1 - k] != whole[-1 - k]), left)
    made, start, end = [], 0, 0
    for index, text in enumerate(texts):
        end += len(text)
        if index == len(texts) - 1:
            stop = len(whole)
        elif end <= same:
            stop = end
        else:  # a difference is assigned to the token in which it ends
            stop = max(same, end + len(whole) - len(joined) if end >= len(joined) - after else same)
        made.append(whole[start:stop])
        start = stop
    return made
