"""One batch of answers: rows of prompts and methods, each after the prefix of its own images."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteriaList

from sinkscope.capture.answer import begin_with
from sinkscope.capture.prefix import BatchPrefix, Prefix
from sinkscope.capture.probes.answer_tokens import AnswerTokens
from sinkscope.capture.probes.base import Probe
from sinkscope.capture.run import decoding_for, distribution_errors_named, seeded
from sinkscope.capture.session import Session, attached
from sinkscope.config import Dialect, GenerationSettings
from sinkscope.evaluation.methods import Method
from sinkscope.interventions.var.checks import acting_layers
from sinkscope.interventions.var.intervention import VARIntervention
from sinkscope.models.loading import ModelHandle
from sinkscope.models.sink_score import FIRST_LAYER, above_threshold
from sinkscope.var_patch import VAR

_SMALLEST = 1e-45  # replaces a probability that float32 has rounded to 0


@dataclass(frozen=True)
class Answer:
    """A method's answer; the keys of the same names in `evaluation.run_folder`, and its token
    ids."""

    text: str
    finish_reason: str
    log_probabilities: tuple[float, ...]
    sinks: int | None
    rows_changed: float
    mass_moved: float
    seconds: float
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Row:
    """One row of a batch: a prompt with its prefix, and a method."""

    prefix: Prefix
    method: Method


def answer_rows(
    handle: ModelHandle,
    settings: GenerationSettings,
    rows: Sequence[Row],
    probes: Sequence[Probe] = (),
) -> tuple[list[Answer], Session]:
    """Answer all rows as one batch. The handle's lock must be held.

    Args:
        handle: a loaded model.
        settings: of all rows.
        rows: all of them; their prefixes have the scores of the same sink dimensions.
        probes: additional probes; the session has their results.

    Returns:
        One answer per row, without the count of its sinks (`count_sinks`); and the session.

    Raises:
        ValueError: the checkpoint decides how tokens are chosen, and cannot be followed.
    """
    began = time.perf_counter()
    inputs = [row.prefix.inputs for row in rows]
    longest = max(one.layout.length for one in inputs)
    decoding = decoding_for(handle, settings, longest)
    tokens = [AnswerTokens(handle.tokenizer, row) for row in range(len(rows))]
    var = var_of(rows)
    prefix, start = begin_rows(handle, rows)
    with (
        attached(
            handle,
            inputs,
            [*tokens, *probes],
            [var] if any(var.settings) else [],
            new_tokens=settings.max_new_tokens,
            prefix=prefix,
        ) as session,
        seeded(settings.seed, handle.device),
        distribution_errors_named(settings),
    ):
        ending = decoding.ending(handle, [session[one] for one in tokens])
        handle.model.generate(  # type: ignore[operator]  # typed as Tensor or Module
            **start,
            generation_config=decoding.config,
            stopping_criteria=StoppingCriteriaList([ending]),
        )
    answers = []
    for index, row in enumerate(rows):
        generated = session[tokens[index]].finished()
        finish_reason = ending.finish_reason(index)
        changed, moved = 0.0, 0.0
        if row.method.var is not None:
            changed, moved = var_activity(session[var], index, len(generated))
        answers.append(
            Answer(
                "".join(
                    token.text
                    for token in (generated[:-1] if finish_reason == "end" else generated)
                ),
                finish_reason,
                tuple(math.log(max(token.probability, _SMALLEST)) for token in generated),
                None,
                changed,
                moved,
                (time.perf_counter() - began) / len(rows),
                tuple(token.id for token in generated),
            )
        )
    return answers, session


def var_of(rows: Sequence[Row]) -> VAR:
    """The intervention of a batch."""
    return VAR(tuple(row.method.var for row in rows))


def var_activity(acting: VARIntervention, row: int, tokens: int) -> tuple[float, float]:
    """Share of rows changed and mean mass moved, averaged over the layers in which VAR may act, of
    a batch row whose answer has `tokens` tokens."""
    layers = acting.report(row, tokens).layers
    changed, moved = (sum(getattr(one, name) for one in layers) for name in ("selected", "moved"))
    return changed / max(1, len(layers)), moved / max(1, len(layers))


def log_of(log_probability: float) -> float:
    """A log-probability as a record has it: in nats, at most 0, and finite."""
    return math.log(max(min(1.0, math.exp(log_probability)), _SMALLEST))


def begin_rows(
    handle: ModelHandle, rows: Sequence[Row], more: torch.Tensor | None = None
) -> tuple[Prefix | BatchPrefix, dict[str, Any]]:
    """The prefix of a batch, and the first arguments of `generate`.

    Args:
        handle: a loaded model.
        rows: of the batch.
        more: int64 (B, n), tokens after the prompt of each row.
    """
    first = rows[0].prefix
    prefix: Prefix | BatchPrefix = first
    if all(row.prefix.inputs is first.inputs for row in rows):  # one prompt: no padding
        start = begin_with(handle, first.inputs, len(rows), first)
    else:
        prefix = BatchPrefix.of([row.prefix for row in rows])
        start = {
            "input_ids": prefix.ids.to(handle.device),
            "attention_mask": prefix.mask.to(handle.device),
            "past_key_values": prefix.fork(handle),
        }
    if more is not None:
        behind = {"input_ids": more, "attention_mask": torch.ones_like(more)}
        for name, tensor in behind.items():
            start[name] = torch.cat([start[name], tensor.to(handle.device)], dim=1)
    return prefix, start


def count_sinks(
    handle: ModelHandle, method: Method, prefixes: Mapping[tuple[int, ...], Prefix]
) -> int | None:
    """The number of vision tokens that are sinks in at least one layer, by the dimensions and the
    threshold of the method (for the plain model, of the profile). All vision tokens are in the
    prefix, so its scores are enough."""
    dialect: Dialect = "official"
    if method.var is not None:
        dims, tau, dialect = method.var.dims, method.var.tau, method.var.dialect
        acting = acting_layers(method.var, handle.info.layers)
    elif handle.profile is not None:
        dims, tau = handle.profile.dims, handle.profile.tau
        acting = tuple(range(FIRST_LAYER, handle.info.layers))
    else:
        return None
    prefix = prefixes[dims]
    scores = torch.stack(
        [layer_scores for layer, layer_scores in prefix.scores.items() if layer in acting]
    )
    vision = prefix.inputs.layout.vision_positions().to(scores.device)
    return int(above_threshold(scores[:, vision], tau, dialect).any(0).sum())
