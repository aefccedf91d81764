"""Whether a method gives the plain model's answer: one pass over that answer, nothing generated.

VAR rarely changes an answer. So the plain model's answer is appended to the prompt, and one pass
with VAR gives VAR's choice at each of its positions (speculative decoding, arXiv 2211.17192: the
answer is a draft). If the most probable token is the draft's at every position, greedy decoding
with VAR gives that answer, with the probabilities and rows of the pass. Otherwise the row is
generated (`evaluation.answering`). Either way the answer is the method's own.

The pass begins at the first layer in which VAR acts, with the plain model's hidden states there
(`evaluation.lower_layers`). Answers of very different lengths are checked in two passes, because a
pass is as long as its longest row.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sinkscope.capture.decoding import own_values
from sinkscope.capture.probes.base import Probe
from sinkscope.capture.run import checkpoint_decoding, decoding_for
from sinkscope.capture.session import attached
from sinkscope.config import GenerationSettings
from sinkscope.evaluation.answering import (
    Answer,
    Row,
    answer_rows,
    begin_rows,
    log_of,
    var_activity,
    var_of,
)
from sinkscope.evaluation.lower_layers import LowerLayers, ReplacedStream, skipped_layers, stream_at
from sinkscope.models.loading import ModelHandle
from sinkscope.models.sites import NO_LAYER, SiteSelection

MOST_NEW_TOKENS = 64  # above, a draft that is wrong early costs more than it saves
PASS = 64  # a separate pass costs as much as this many tokens
MOST_LOGITS = 1 << 28  # of one pass: rows x positions x vocabulary


@dataclass(frozen=True)
class _Logits(Probe):
    reads: tuple[SiteSelection, ...] = (SiteSelection("logits"),)


def can_check(handle: ModelHandle, settings: GenerationSettings) -> bool:
    """Whether answers are short, and each token is the most probable one, independent of earlier
    tokens: no sampling, no penalty, nothing forbidden."""
    ours = settings.decoding == "ours"
    values = own_values(settings) if ours else checkpoint_decoding(handle).values
    return settings.max_new_tokens <= MOST_NEW_TOKENS and set(values) <= {"max_new_tokens"}


@dataclass(frozen=True)
class Drafts:
    """The plain model's answers to the questions of a batch.

    Attributes:
        answers: of each question.
        lower: its hidden states at the input of the first layer in which another method acts.
    """

    answers: tuple[Answer, ...]
    lower: LowerLayers


def draft_answers(
    handle: ModelHandle, settings: GenerationSettings, rows: Sequence[Row], layer: int
) -> Drafts:
    """Let the plain model answer. The handle's lock must be held.

    Args:
        handle: a loaded model.
        settings: of all rows.
        rows: of the plain model, one per question.
        layer: the first one in which another method acts.
    """
    layer = min(layer, handle.info.layers - 1)
    stream = stream_at(layer)
    answers, session = answer_rows(handle, settings, rows, [stream])
    return Drafts(tuple(answers), LowerLayers(layer, session[stream][layer], _suffix(rows)))


def _suffix(rows: Sequence[Row]) -> int:
    """Positions of a batch between the prefix and the answer, including padding."""
    return max(len(row.prefix.inputs.token_ids) - row.prefix.length for row in rows)


def check_rows(
    handle: ModelHandle,
    settings: GenerationSettings,
    rows: Sequence[Row],
    questions: Sequence[int],
    drafts: Drafts,
) -> list[Answer | None]:
    """Check each row's draft. The handle's lock must be held.

    Args:
        handle: a loaded model.
        settings: of all rows; `can_check` must allow them.
        rows: with VAR; their prefixes are scored by one set of sink dimensions.
        questions: the question of each row, as an index into the drafts.
        drafts: of `draft_answers`.

    Returns:
        A row's answer, without the count of its sinks; None if it differs from the draft.
    """
    answers: list[Answer | None] = [None] * len(rows)
    vocabulary = handle.model.config.get_text_config().vocab_size
    lengths = [len(drafts.answers[question].ids) for question in questions]
    for members in _passes(lengths, vocabulary):
        some = [rows[one] for one in members], [questions[one] for one in members]
        for one, answer in zip(members, _pass(handle, settings, *some, drafts), strict=True):
            answers[one] = answer
    return answers


def _passes(lengths: Sequence[int], vocabulary: int) -> Iterator[list[int]]:
    """The rows of each pass: all, or the short and the long ones, within the limits."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    longest, count = lengths[order[-1]], len(order)

    def cost(cut: int) -> int:
        short = lengths[order[cut - 1]] * cut + PASS if cut else 0
        return short + longest * (count - cut)

    cut = min(range(count), key=cost)
    for part in (order[:cut], order[cut:]):
        most = max(1, MOST_LOGITS // (vocabulary * lengths[part[-1]])) if part else 1
        for start in range(0, len(part), most):
            yield sorted(part[start : start + most])


def _pass(
    handle: ModelHandle,
    settings: GenerationSettings,
    rows: Sequence[Row],
    questions: Sequence[int],
    drafts: Drafts,
) -> list[Answer | None]:
    prompts = [row.prefix.inputs for row in rows]
    answers = [drafts.answers[question] for question in questions]
    longest = max(len(draft.ids) for draft in answers)
    # A shorter draft's tokens see nothing after it.
    ids = torch.tensor(
        [[*draft.ids, *([draft.ids[0]] * (longest - len(draft.ids)))] for draft in answers]
    )
    prefix, start = begin_rows(handle, rows, ids[:, :-1])
    logits, var = _Logits(), var_of(rows)
    # One more token is generated and ignored: `generate` continues the positions correctly.
    one = dataclasses.replace(settings, max_new_tokens=1)
    decoding = decoding_for(handle, one, max(prompt.layout.length for prompt in prompts))
    lower, suffix = drafts.lower, _suffix(rows)
    given = ReplacedStream(lower.layer, lower.of_rows(questions, suffix, suffix + longest - 1))
    with (
        attached(
            handle, prompts, [logits], [given, var], new_tokens=longest, prefix=prefix
        ) as session,
        skipped_layers(handle.stack.layers[: lower.layer]),
    ):
        handle.model.generate(  # type: ignore[operator]  # typed as Tensor or Module
            **start, generation_config=decoding.config, logits_to_keep=longest
        )
    (seen,) = session[logits][NO_LAYER]
    best, logs = _read(seen, ids.to(seen.device))
    accepted: list[Answer | None] = []
    for row, draft in enumerate(answers):
        count = len(draft.ids)
        row_logs = logs[row][:count]
        if tuple(best[row][:count]) != draft.ids or not all(map(math.isfinite, row_logs)):
            accepted.append(None)
            continue
        changed, moved = var_activity(session[var], row, count)
        accepted.append(
            dataclasses.replace(
                draft,
                log_probabilities=tuple(map(log_of, row_logs)),
                sinks=None,
                rows_changed=changed,
                mass_moved=moved,
            )
        )
    return accepted


def _read(logits: Tensor, ids: Tensor) -> tuple[list[list[int]], list[list[float]]]:
    """Of logits (B, T, V): the most probable tokens, and the log-probability of `ids` (B, T)."""
    logs = [
        torch.log_softmax(row_logits.float(), dim=-1).gather(1, wanted[:, None])[:, 0]
        # Row by row: float32 takes twice as much.
        for row_logits, wanted in zip(logits, ids, strict=True)
    ]
    return logits.argmax(-1).tolist(), torch.stack(logs).tolist()
