"""An answer made by steps over a fixed memory, from the prompt to the last token.

1. The prompt passes through the model in a session, as for transformers' `generate`, but its keys
   go straight into the fixed cache (`cache`). The session ends there: steps need no hooks.
2. A step (`step`) makes one token of each batch row. On CUDA it is recorded (`recording`) and
   replayed. Its output about a token is one small copy; the host waits for it once per token.
   On a GPU the next step is launched before a token is reported.
3. Rows, reduced as in `capture.recorder`, wait on the device for a block of tokens (`history`).
4. The step is kept with the model (`store`), with the interventions that changed rows in it. A
   later run that agrees in all that is fixed (`StepKey`) writes its own values into their tensors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessorList

from sinkscope.capture import host_copies
from sinkscope.capture.engine.cache import FixedCache, capacity_for
from sinkscope.capture.engine.choosing import Rule, chosen_by_processors, processors_of
from sinkscope.capture.engine.clock import Clock
from sinkscope.capture.engine.history import HistoryCopies, Shape, pinned_like
from sinkscope.capture.engine.recording import (
    COMPILED_WARM_UPS,
    WARM_UPS,
    RecordingFailedError,
    can_record,
    needs_host_copy,
    record,
    runs_ahead,
)
from sinkscope.capture.engine.step import DecodeStep, StepKey
from sinkscope.capture.engine.store import release_steps, store_of
from sinkscope.capture.prefix import Prefix
from sinkscope.capture.probes.base import Probe
from sinkscope.capture.probes.trace_rows import TraceRows
from sinkscope.capture.run import Decoding, Ending, on_device, seeded
from sinkscope.capture.session import Session, attached
from sinkscope.capture.tokens import TokenProbe, TokenStatistics
from sinkscope.config import GenerationSettings
from sinkscope.interventions.base import ActiveIntervention, Intervention, overrides
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle

log = logging.getLogger(__name__)

COMPILING = "Compiling the text model for answers of this size, which may take minutes"


class StepsUnavailableError(Exception):
    """A run cannot be made by steps; the text says why, as the end of a sentence."""


@dataclass(frozen=True)
class StepRun:
    """One run to be made by steps.

    Attributes:
        inputs, settings, prefix: of the answer.
        decoding: how tokens are chosen.
        rows: the rows that explain the answer, one probe a batch row.
        others: other probes; they see only the prompt.
        interventions: what changes rows.
        tokens: receivers of the tokens, one per batch row.
        ending: ends answers; passes tokens on to `tokens`.
        on_stage: called with a description of the stage if the next token will take long.
    """

    inputs: PromptInputs
    settings: GenerationSettings
    prefix: Prefix | None
    decoding: Decoding
    rows: tuple[TraceRows, ...]
    others: tuple[Probe, ...]
    interventions: tuple[Intervention, ...]
    tokens: tuple[TokenProbe, ...]
    ending: Ending
    on_stage: Callable[[str], None] | None = None

    @property
    def batch(self) -> int:
        return len(self.rows)

    @property
    def limit(self) -> int:
        """Most new tokens."""
        limit: int = self.decoding.config.max_new_tokens
        return limit


@dataclass(frozen=True)
class StepAnswer:
    """The result of a run by steps.

    Attributes:
        session: of the prompt; its probes and interventions have seen the answer as well.
        recorded: whether the step was a recording.
        why: the reason if it should have been recorded and was not.
    """

    session: Session
    recorded: bool
    why: str


def answer_by_steps(handle: ModelHandle, run: StepRun) -> StepAnswer:
    """Make the answers. The handle's lock must be held.

    Args:
        handle: the model, on one device.
        run: the request.

    Raises:
        StepsUnavailableError: something acts on the model in a way that steps do not support. No
            token has been reported then.
        torch.OutOfMemoryError: the device's memory is full; some tokens may have been reported.
        ValueError: as `capture.answer.answer`.
    """
    with _current(handle.device):
        return _answer(handle, run)


@contextmanager
def _current(device: torch.device) -> Iterator[None]:
    """Recordings, events and streams belong to the current device."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        yield


def _answer(handle: ModelHandle, run: StepRun) -> StepAnswer:
    ids = torch.tensor([run.inputs.token_ids], device=handle.device).expand(run.batch, -1)
    config = run.decoding.config
    processors = processors_of(handle, config, run.decoding.about["used"], ids)
    rule = Rule.of(processors, bool(config.do_sample))
    clock = Clock()
    capacity = capacity_for(run.inputs.layout.length + run.limit)
    with attached(
        handle,
        run.inputs,
        [*run.rows, *run.others],
        run.interventions,
        batch=run.batch,
        new_tokens=run.settings.max_new_tokens,
        prefix=run.prefix,
        room=capacity,
        step=clock,
    ) as session:
        _check(session)
        key = _key(handle, run, session.acting, capacity, rule)
        kept = store_of(handle).take(key)
        step = kept or DecodeStep(handle, key, rule)
        position_ids, logits = _pass_prompt(handle, run, ids, step.cache)
    heads = handle.info.heads
    states = [state for acting in session.acting for state in acting.step_state(heads)]
    if kept is not None and not step.accepts(states):
        kept = None
    if kept is None:
        step.set_interventions(session.row_changes, states, clock, run.inputs.layout.length)
    elif states:
        torch._foreach_copy_(list(step.states), states)
    with torch.no_grad(), seeded(run.settings.seed, handle.device):
        step.begin(run.inputs.layout, position_ids, logits, ids)
        rows = [session[probe] for probe in run.rows]
        landing = HistoryCopies(step.history, rows, run.inputs.layout.vision_tokens)
        driver = _Driver(handle, run, step, landing, processors, ids)
        driver.answer()
        landing.copy_all()
        if states and kept is not None:
            torch._foreach_copy_(states, list(step.states))
    step.end()
    if all(acting.step_key() is not None for acting in session.acting):
        store_of(handle).put(step)
    return StepAnswer(session, step.recording is not None, driver.why)


def _check(session: Session) -> None:
    """Raises `StepsUnavailableError` if something acts after the prompt on anything but rows."""
    for acting in session.acting:
        edits = getattr(acting, "edits", ())
        ranges = [at.positions for at in edits]
        late = any(r is None or (len(r) and r[-1] >= session.run.length) for r in ranges)
        if late or overrides(acting, "mask"):
            raise StepsUnavailableError(
                f"{type(acting).__name__} acts on something other than attention rows"
            )
        if not overrides(acting, "rows"):
            continue
        span: range | None = getattr(acting, "row_positions", None)
        if span is not None and not (span.start <= session.run.length and span.stop >= 1 << 40):
            raise StepsUnavailableError(
                f"{type(acting).__name__} acts on only some tokens of the answer"
            )


def _key(
    handle: ModelHandle,
    run: StepRun,
    acting: Sequence[ActiveIntervention],
    capacity: int,
    rule: Rule | None,
) -> StepKey:
    rows = run.rows[0]
    kept = 1 if rows.reduce_heads else len(rows.heads)
    shape = Shape.of(run.inputs.layout, len(rows.layers), run.batch, kept)
    changes = [one.step_key() for one in acting]
    return StepKey(
        shape=shape,
        capacity=capacity,
        block=shape.block(run.limit),
        layers=rows.layers,
        heads=rows.heads,
        mean=rows.reduce_heads,
        choice=None if rule is None else rule.key,
        # A new object is equal to no other.
        changes=object() if None in changes else tuple(changes),
        compiled=run.settings.compile,
    )


def _pass_prompt(
    handle: ModelHandle, run: StepRun, ids: Tensor, cache: FixedCache
) -> tuple[Tensor, Tensor]:
    """Pass the prompt through the model, its keys into `cache`.

    Returns:
        Position ids of the next token, int64 ((axes,) B, 1), and the last logits (B,
        vocabulary).
    """
    seen_ids: list[Tensor] = []

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = kwargs.get("position_ids")
        if given is not None:
            seen_ids.append(given[..., -1:])

    prefix = run.prefix
    if prefix is None:
        cache.begin(None, run.batch)
        tensors = on_device(run.inputs.tensors, handle.device)
    else:
        handle.family.resume(handle.model, prefix.positions)
        cache.begin(prefix.cache, run.batch)
        tensors = {"input_ids": ids[:, prefix.length :]}
    hook = handle.stack.language_model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        logits = handle.model(
            **tensors, past_key_values=cache, use_cache=True, logits_to_keep=1
        ).logits
    finally:
        hook.remove()
    if seen_ids:
        last = seen_ids[-1]
        position_ids = last.expand(*last.shape[:-2], run.batch, 1) + 1
    else:
        position_ids = torch.full((run.batch, 1), run.inputs.layout.length, device=handle.device)
    return position_ids, logits[:, -1].float()


class _Driver:
    """Launches steps, waits for their tokens, and reports them."""

    def __init__(
        self,
        handle: ModelHandle,
        run: StepRun,
        step: DecodeStep,
        landing: HistoryCopies,
        processors: LogitsProcessorList,
        ids: Tensor,
    ) -> None:
        self._handle, self._run, self._step, self._landing = handle, run, step, landing
        self._processors, self._ids = processors, ids
        self._on_host = [list(run.inputs.token_ids) for _ in range(run.batch)]
        self._crosses = needs_host_copy(handle.device)
        self._ready = step.recording is not None or not can_record(handle.device)
        self._ahead = runs_ahead(handle.device)
        self._pinned: Tensor | None = None
        self.why = ""

    def answer(self) -> None:
        """Run until all rows have ended."""
        run = self._run
        self._choose()
        for count in range(1, run.limit + 1):
            statistics = self._read()
            tokens = [int(row[0]) for row in statistics]
            going = count < run.limit and not run.ending.ends_with(tokens)
            ahead = going and self._ahead and self._ready
            if ahead:
                self._launch()
            over = self._report(tokens, statistics)
            if all(over) or count == run.limit:
                return
            if not ahead:
                self._launch()

    def _choose(self) -> None:
        if self._step.rule is not None:
            self._step.choose()
        else:
            self._choose_by_processors()

    def _choose_by_processors(self) -> None:
        logits = self._step.logits
        assert logits is not None
        sampled = bool(self._run.decoding.config.do_sample)
        token = chosen_by_processors(self._processors, sampled, self._ids, logits)
        self._step.take(token)
        self._ids = torch.cat([self._ids, token[:, None]], 1)

    def _launch(self) -> None:
        if self._step.key.compiled and not self._step.ran:
            log.info("%s (%s)", COMPILING, self._step.key)
            if self._run.on_stage is not None:
                self._run.on_stage(COMPILING)
        self._step.ran = True
        if not self._ready:
            self._record()
        self._step.launch()
        if self._step.rule is None:
            self._choose_by_processors()
        self._landing.collect()
        self._landing.count_step()

    def _record(self) -> None:
        self._ready = True
        step = self._step
        warm_ups = COMPILED_WARM_UPS if step.key.compiled else WARM_UPS
        try:
            step.recording = record(step, step.changing_tensors(), self._handle.device, warm_ups)
        except RecordingFailedError as error:
            release_steps(self._handle)
            self.why = f"the step cannot be recorded: {error}"

    def _read(self) -> list[list[float]]:
        """The values of the newest tokens: the one copy per token for which the host waits."""
        statistics = self._step.statistics
        assert statistics is not None
        arrived = statistics
        if self._crosses:
            if self._pinned is None:
                self._pinned = pinned_like(statistics)
            arrived = self._pinned.copy_(statistics, non_blocking=True)
            host_copies.record_event(statistics.device).synchronize()
        rows: list[list[float]] = arrived.tolist()
        return rows

    def _report(self, tokens: list[int], statistics: list[list[float]]) -> list[bool]:
        for probe, (_, log_probability, rank, *likeliest) in zip(
            self._run.tokens, statistics, strict=True
        ):
            half = len(likeliest) // 2
            ids, logs = likeliest[:half], likeliest[half:]
            probe.see_statistics(
                TokenStatistics(log_probability, int(rank), tuple(map(int, ids)), tuple(logs))
            )
        whole = None
        if self._run.ending.needs_ids:
            for row, token in zip(self._on_host, tokens, strict=True):
                row.append(token)
            whole = torch.tensor(self._on_host)
        return self._run.ending.report(tokens, whole)
