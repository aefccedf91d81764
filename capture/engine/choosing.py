"""How a step chooses the next token: as transformers' `generate` does, number for number.

For all but the most common settings `generate` itself says which processors of logits it would use.
Processors that need no host are part of the step; any other processor chooses the token after the
step.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sinkscope.models.loading import ModelHandle

KNOWN = {
    "max_new_tokens",
    "repetition_penalty",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
}
WARPERS = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper)  # need no token ids

LEAST_TEMPERATURE = 1e-3


def processors_of(
    handle: ModelHandle, config: GenerationConfig, used: Mapping[str, Any], input_ids: Tensor
) -> LogitsProcessorList:
    """What `generate` would do to the logits.

    Args:
        handle, config: for `generate`.
        used: the settings of `config` that act (`capture.decoding`).
        input_ids: the prompt, int64 (B, N).
    """
    if set(used) <= KNOWN:
        return _known(used)
    return asked_of_generate(handle, config, input_ids)


def _known(used: Mapping[str, Any]) -> LogitsProcessorList:
    """The usual settings, without asking `generate`, which reads the host."""
    processors = LogitsProcessorList()
    if "repetition_penalty" in used:
        processors.append(RepetitionPenaltyLogitsProcessor(float(used["repetition_penalty"])))
    if used.get("do_sample"):
        if used.get("temperature", 1.0) != 1.0:
            processors.append(TemperatureLogitsWarper(float(used["temperature"])))
        if used.get("top_k"):
            processors.append(TopKLogitsWarper(used["top_k"]))
        if used.get("top_p", 1.0) < 1.0:
            processors.append(TopPLogitsWarper(used["top_p"]))
    return processors


def asked_of_generate(
    handle: ModelHandle, config: GenerationConfig, input_ids: Tensor
) -> LogitsProcessorList:
    """The processors that `generate` builds from a configuration, for this prompt (B, N)."""
    processors = LogitsProcessorList()

    def look(model: Any, input_ids: Tensor, **kwargs: Any) -> Tensor:
        processors.extend(kwargs["logits_processor"])
        return input_ids

    handle.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        generation_config=config,
        custom_generate=look,
    )
    return processors


@dataclass(frozen=True)
class Rule:
    """A choice that a step makes by itself.

    Attributes:
        sampled: drawn at random; else the most probable.
        penalty: repetition penalty; None without.
        warpers: of a draw, in order.
    """

    sampled: bool
    penalty: float | None = None
    warpers: tuple[Callable[[Any, Tensor], Tensor], ...] = ()

    @staticmethod
    def of(processors: Sequence[Any], sampled: bool) -> Rule | None:
        """None if some of them can only run after the step."""
        rest = list(processors)
        penalty = None
        if rest and type(rest[0]) is RepetitionPenaltyLogitsProcessor:
            penalty = float(rest.pop(0).penalty)
        known = all(type(one) in WARPERS for one in rest)
        heat = next((one.temperature for one in rest if hasattr(one, "temperature")), 1.0)
        # Beyond these, scores overflow; `torch.multinomial` checks this and raises.
        tame = heat >= LEAST_TEMPERATURE and 0.1 <= (penalty or 1.0) <= 10
        if not known or (sampled and not tame):
            return None
        return Rule(sampled, penalty, tuple(rest))

    @property
    def key(self) -> Hashable:
        """Equal for rules that choose in the same way."""
        warpers = [
            (type(one).__name__, *map(str, sorted(vars(one).items()))) for one in self.warpers
        ]
        return (self.sampled, self.penalty, tuple(warpers))

    def choose(self, logits: Tensor, seen: Tensor | None) -> Tensor:
        """int64 (B,) of float32 (B, vocabulary); `seen` is bool of the same shape, which tokens a
        penalty is for."""
        scores = logits
        if self.penalty is not None and seen is not None:
            lower = torch.where(scores < 0, scores * self.penalty, scores / self.penalty)
            scores = torch.where(seen, lower, scores)
        for warp in self.warpers:
            scores = warp(None, scores)
        if not self.sampled:
            return scores.argmax(-1)
        chances = torch.softmax(scores, -1)
        # What torch.multinomial does for one draw, without checking its input on the host.
        return (chances / torch.empty_like(chances).exponential_(1)).argmax(-1)


def chosen_by_processors(
    processors: LogitsProcessorList, sampled: bool, input_ids: Tensor, logits: Tensor
) -> Tensor:
    """int64 (B,), by the processors themselves; input_ids (B, n), logits (B, vocabulary)."""
    scores: Tensor = cast(Any, processors)(input_ids, logits.clone())
    if not sampled:
        return scores.argmax(-1)
    return torch.multinomial(torch.softmax(scores, -1), 1)[:, 0]


def statistics_tensor(logits: Tensor, token: Tensor, alternatives: int) -> Tensor:
    """float64 (B, 3 + 2 x alternatives): token, its log-probability and rank, the likeliest tokens
    and their log-probabilities. One tensor, so that one copy is enough."""
    logs = torch.log_softmax(logits, -1)
    best, ids = logs.topk(min(alternatives, logs.shape[-1]), -1)
    token_log = logs.gather(1, token[:, None])
    rank = (logs > token_log).sum(-1, keepdim=True)
    return torch.cat([part.double() for part in (token[:, None], token_log, rank, ids, best)], -1)
