"""Naming what was generated: token texts, probabilities, ranks and alternatives, one token at a
time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from sinkscope.capture.trace import Alternative, GeneratedToken
from sinkscope.models.token_bytes import split_characters
from sinkscope.models.token_texts import TextPieces

ALTERNATIVES = 5


class TokenProbe:
    """Takes the raw logits of a run and turns each chosen token into a `GeneratedToken`.

    The logits are read at the output head, before temperature or any sampling filter: probabilities
    are the model's own.

    Args:
        tokenizer: for texts.
        batch_row: which row of the batch.
        on_token: called with the index and the token as soon as it is chosen. Its text is what can
            be shown then (`TextPieces.add`); `finished` has each token's own.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        batch_row: int = 0,
        on_token: Callable[[int, GeneratedToken], None] | None = None,
    ) -> None:
        self.tokens: list[GeneratedToken] = []
        self._pieces = TextPieces(tokenizer)
        self._batch_row = batch_row
        self._on_token = on_token
        self._logits: torch.Tensor | None = None

    def see_logits(self, logits: torch.Tensor) -> None:
        """Keeps the last position's logits (vocabulary,) of (B, n, vocabulary)."""
        self._logits = logits[self._batch_row, -1].detach()

    def choose(self, token: int) -> GeneratedToken:
        """The token that was chosen from the logits seen last."""
        if self._logits is None:
            raise RuntimeError("A token was chosen before any logits were seen.")
        made = describe_token(self._pieces, self._logits, token)
        self.tokens.append(made)
        if self._on_token is not None:
            self._on_token(len(self.tokens) - 1, made)
        return made

    def finished(self) -> tuple[GeneratedToken, ...]:
        """The tokens, with texts that join to the answer, also where it ends inside a character."""
        return with_texts(self.tokens, self._pieces)


def with_texts(tokens: Sequence[GeneratedToken], pieces: TextPieces) -> tuple[GeneratedToken, ...]:
    """The tokens that were given to `pieces`, each with its own text, and with its bytes where it
    is a part of a character."""
    texts = pieces.finish()
    split = split_characters(pieces.tokenizer, [token.id for token in tokens], texts)
    return tuple(
        token
        if token.text == text and place not in split
        else dataclasses.replace(token, text=text, piece=split.get(place, ""))
        for place, (token, text) in enumerate(zip(tokens, texts, strict=True))
    )


def describe_token(pieces: TextPieces, logits: torch.Tensor, token: int) -> GeneratedToken:
    """Probability, rank and alternatives of `token` under raw logits (vocabulary,); texts from
    `pieces`, which the token is added to."""
    logs_of_all = torch.log_softmax(logits.float(), dim=-1)  # (vocabulary,)
    if not math.isfinite(float(logs_of_all[token])):
        raise ValueError(
            "The model's output is not a number. In float16 large activations overflow; load the "
            "model in bfloat16 or float32. Otherwise its weights are damaged."
        )
    best, ids = torch.topk(logs_of_all, min(ALTERNATIVES, logits.shape[-1]))
    *logs, own = torch.cat([best, logs_of_all[token][None]]).tolist()  # one copy off the device
    among = own >= logs[-1]  # then no other pass over the vocabulary is needed
    rank = sum(other > own for other in logs) if among else int((logs_of_all > own).sum())
    alternatives = tuple(
        Alternative(i, pieces.would_add(i), min(1.0, math.exp(p)))
        for i, p in zip(ids.tolist(), logs, strict=True)
    )
    return GeneratedToken(token, pieces.add(token), min(1.0, math.exp(own)), rank, alternatives)
