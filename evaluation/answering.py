"""One batch of answers: rows of prompts and methods, each behind the prefix of its own images."""

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
from sinkscope.capture.run import decide, distribution_errors_named, seeded
from sinkscope.capture.session import attached
from sinkscope.config import Dialect, GenerationSettings
from sinkscope.evaluation.methods import Method
from sinkscope.interventions.var.checks import acting_layers
from sinkscope.models.loading import ModelHandle
from sinkscope.models.sink_score import FIRST_LAYER, above_threshold
from sinkscope.var_patch import VAR

_SMALLEST = 1e-45  # a probability that float32 has rounded to 0


@dataclass(frozen=True)
class Answer:
    """What a method answered; the keys of the same names in `evaluation.run_folder`."""

    text: str
    finish: str
    log_probabilities: tuple[float, ...]
    sinks: int | None
    rows_changed: float
    mass_moved: float
    seconds: float


@dataclass(frozen=True)
class Row:
    """One row: a prompt, as its prefix has it, and a method."""

    prefix: Prefix
    method: Method


def answer_rows(
    handle: ModelHandle, settings: GenerationSettings, rows: Sequence[Row]
) -> list[Answer]:
    """Answer all rows as one batch. The handle's lock must be held.

    Args:
        handle: a loaded model.
        settings: of all rows.
        rows: their prefixes are scored by one set of sink dimensions.

    Returns:
        An answer a row; its sinks are not counted (`count_sinks`).

    Raises:
        ValueError: the checkpoint is to decide how tokens are chosen, and cannot be followed.
    """
    began = time.perf_counter()
    inputs = [row.prefix.inputs for row in rows]
    longest = max(one.layout.length for one in inputs)
    decoding = decide(handle, settings, longest)
    tokens = [AnswerTokens(handle.tokenizer, row) for row in range(len(rows))]
    var = [VAR(tuple(row.method.var for row in rows))]
    prefix, start = _start(handle, rows)
    with (
        attached(
            handle,
            inputs,
            tokens,
            var if any(row.method.var is not None for row in rows) else [],
            new_tokens=settings.max_new_tokens,
            prefix=prefix,
        ) as session,
        seeded(settings.seed, handle.device),
        distribution_errors_named(settings),
    ):
        ending = decoding.ending(handle, [session[one] for one in tokens])
        handle.model.generate(  # type: ignore[operator]
            **start,
            generation_config=decoding.config,
            stopping_criteria=StoppingCriteriaList([ending]),
        )
    made = []
    for index, row in enumerate(rows):
        said = session[tokens[index]].finished()
        finish = ending.finish(index)
        changed, moved = 0.0, 0.0
        if row.method.var is not None:
            layers = session[var[0]].report(index, len(said)).layers
            changed = sum(layer.selected for layer in layers) / max(1, len(layers))
            moved = sum(layer.moved for layer in layers) / max(1, len(layers))
        made.append(
            Answer(
                "".join(token.text for token in (said[:-1] if finish == "end" else said)),
                finish,
                tuple(math.log(max(token.probability, _SMALLEST)) for token in said),
                None,
                changed,
                moved,
                (time.perf_counter() - began) / len(rows),
            )
        )
    return made


def _start(handle: ModelHandle, rows: Sequence[Row]) -> tuple[Prefix | BatchPrefix, dict[str, Any]]:
    """What the batch continues from, and what `generate` begins with."""
    first = rows[0].prefix
    if all(row.prefix.inputs is first.inputs for row in rows):  # one prompt: no padding
        return first, begin_with(handle, first.inputs, len(rows), first)
    prefix = BatchPrefix.of([row.prefix for row in rows])
    return prefix, {
        "input_ids": prefix.ids.to(handle.device),
        "attention_mask": prefix.mask.to(handle.device),
        "past_key_values": prefix.fork(handle),
    }


def count_sinks(
    handle: ModelHandle, method: Method, prefixes: Mapping[tuple[int, ...], Prefix]
) -> int | None:
    """Vision tokens that are sinks in at least one layer, by the method's dimensions and threshold
    (the plain model's: by the profile's). All of them lie in the prefix, so its scores tell."""
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
    scores = torch.stack([own for layer, own in prefix.scores.items() if layer in acting])
    vision = prefix.inputs.layout.vision_positions().to(scores.device)
    return int(above_threshold(scores[:, vision], tau, dialect).any(0).sum())
