"""The tokens of an answer as they are chosen, with text and probability from the raw logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sinkscope.capture.probes.base import Probe, Reader
from sinkscope.capture.tokens import TokenProbe
from sinkscope.capture.trace import GeneratedToken
from sinkscope.models.run_info import RunInfo
from sinkscope.models.sites import SiteSelection


@dataclass(frozen=True)
class AnswerTokens(Probe):
    """Describes the tokens of one batch row; `session[probe]` is a `capture.tokens.TokenProbe`.

    The logits are seen at the output head, before temperature or any sampling filter.
    `capture.run.Ending` reports the chosen token to it.

    Attributes:
        tokenizer: for texts.
        batch_row: which row of the batch.
        on_token: called with the index and the token as soon as it is chosen.
    """

    tokenizer: Any
    batch_row: int = 0
    on_token: Callable[[int, GeneratedToken], None] | None = None

    def begin(self, run: RunInfo) -> Reader:
        return _LastLogits(
            TokenProbe(self.tokenizer, batch_row=self.batch_row, on_token=self.on_token)
        )


class _LastLogits(Reader):
    reads = (SiteSelection("logits"),)

    def __init__(self, tokens: TokenProbe) -> None:
        self._tokens = tokens

    def see(self, site: str, layer: int, values: Any, positions: Sequence[int]) -> None:
        self._tokens.see_logits(values)

    def result(self) -> TokenProbe:
        """The tokens so far are its `tokens`."""
        return self._tokens
