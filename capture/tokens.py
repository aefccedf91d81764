"""Describing generated tokens: texts, probabilities, ranks and alternatives, one token at a
time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sinkscope.capture.trace import Alternative, GeneratedToken
from sinkscope.models.token_bytes import split_characters
from sinkscope.models.token_texts import TextPieces

ALTERNATIVES = 5
TOKENS_AT_ONCE = 32  # tokens; each takes a few float32 copies of the vocabulary
NOT_A_NUMBER = (
    "The model's output is not a number. In float16 large activations overflow; load the model in "
    "bfloat16 or float32. Otherwise its weights are damaged."
)


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
        self._seen: torch.Tensor | TokenStatistics | None = None

    def see_logits(self, logits: torch.Tensor) -> None:
        """Keeps the last position's logits (vocabulary,) of (B, n, vocabulary)."""
        self._seen = logits[self._batch_row, -1].detach()

    def see_statistics(self, weights: TokenStatistics) -> None:
        """Instead of logits: the weights of the token that will be chosen from them."""
        self._seen = weights

    def choose(self, token: int) -> GeneratedToken:
        """Describe the token that was chosen from the logits seen last."""
        if self._seen is None:
            raise RuntimeError("A token was chosen before any logits were seen.")
        seen = self._seen
        weights = seen if isinstance(seen, TokenStatistics) else token_statistics(seen, token)
        generated = described(self._pieces, weights, token)
        self.tokens.append(generated)
        if self._on_token is not None:
            self._on_token(len(self.tokens) - 1, generated)
        return generated

    def finished(self) -> tuple[GeneratedToken, ...]:
        """The tokens, with texts that join to the answer, also if it ends inside a character."""
        return with_texts(self.tokens, self._pieces)


def with_texts(tokens: Sequence[GeneratedToken], pieces: TextPieces) -> tuple[GeneratedToken, ...]:
    """The tokens that were given to `pieces`, each with its own text, and with its bytes where it
    is a part of a character."""
    texts = pieces.texts()
    split = split_characters(pieces.tokenizer, [token.id for token in tokens], texts)
    return tuple(
        token
        if token.text == text and index not in split
        else dataclasses.replace(token, text=text, piece=split.get(index, ""))
        for index, (token, text) in enumerate(zip(tokens, texts, strict=True))
    )


@dataclass(frozen=True)
class TokenStatistics:
    """Probability, rank and alternatives of a chosen token under raw logits.

    Attributes:
        log_probability: its log-probability.
        rank: how many tokens are more likely.
        ids, log_probabilities: the most likely tokens and their log-probabilities, descending.
    """

    log_probability: float
    rank: int
    ids: tuple[int, ...]
    log_probabilities: tuple[float, ...]


def token_statistics(logits: torch.Tensor, token: int) -> TokenStatistics:
    """The weights of `token` under raw logits (vocabulary,): one copy from the device."""
    logs_of_all = torch.log_softmax(logits.float(), dim=-1)  # (vocabulary,)
    best, ids = torch.topk(logs_of_all, min(ALTERNATIVES, logits.shape[-1]))
    *logs, token_log = torch.cat([best, logs_of_all[token][None]]).tolist()
    among = token_log >= logs[-1]  # then no other pass over the vocabulary is needed
    rank = (
        sum(other > token_log for other in logs) if among else int((logs_of_all > token_log).sum())
    )
    return TokenStatistics(token_log, rank, tuple(ids.tolist()), tuple(logs))


def batch_statistics(logits: torch.Tensor, tokens: Sequence[int]) -> list[TokenStatistics]:
    """The same for T tokens at once: logits (T, vocabulary); one copy from the device for a few
    dozen of them."""
    statistics = []
    for low in range(0, len(tokens), TOKENS_AT_ONCE):
        wanted = torch.tensor(tokens[low : low + TOKENS_AT_ONCE], device=logits.device)
        logs_of_all = torch.log_softmax(logits[low : low + TOKENS_AT_ONCE].float(), dim=-1)
        best, ids = torch.topk(logs_of_all, min(ALTERNATIVES, logits.shape[-1]))
        token_logs = logs_of_all.gather(1, wanted[:, None])
        rank = (logs_of_all > token_logs).sum(-1, keepdim=True)
        # float64 represents every id and rank exactly.
        parts = torch.cat([token_logs.double(), rank.double(), ids.double(), best.double()], dim=1)
        count = best.shape[1]
        for log_p, own_rank, *rest in parts.tolist():
            likeliest = tuple(int(i) for i in rest[:count])
            statistics.append(TokenStatistics(log_p, int(own_rank), likeliest, tuple(rest[count:])))
    return statistics


def described(pieces: TextPieces, weights: TokenStatistics, token: int) -> GeneratedToken:
    """A chosen token with its probability, rank and alternatives; texts from `pieces`, which the
    token is added to.

    Raises:
        ValueError: the model's output is not finite.
    """
    if not math.isfinite(weights.log_probability):
        raise ValueError(NOT_A_NUMBER)
    alternatives = tuple(
        Alternative(i, pieces.would_add(i), min(1.0, math.exp(p)))
        for i, p in zip(weights.ids, weights.log_probabilities, strict=True)
    )
    probability = min(1.0, math.exp(weights.log_probability))
    return GeneratedToken(token, pieces.add(token), probability, weights.rank, alternatives)


def describe_token(pieces: TextPieces, logits: torch.Tensor, token: int) -> GeneratedToken:
    """Probability, rank and alternatives of `token` under raw logits (vocabulary,)."""
    return described(pieces, token_statistics(logits, token), token)
