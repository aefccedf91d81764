"""Scoring: each word is explained by every method, its maps are scored, the records are written."""

from __future__ import annotations

import dataclasses
import datetime
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sinkscope.attention_extractor import generate
from sinkscope.capture.given import given_answer
from sinkscope.capture.trace import GenerationTrace
from sinkscope.config import GenerationSettings, ModelSettings
from sinkscope.evaluation.explanations.controls import CONTROLS, control_map, seed_of
from sinkscope.evaluation.explanations.folder import ScoreConfig, ScoreFolder, read_scores
from sinkscope.evaluation.explanations.removal import removals
from sinkscope.evaluation.explanations.scores import mask_on_cells, scored
from sinkscope.evaluation.explanations.settings import ScoreSettings
from sinkscope.evaluation.explanations.targets import Target, targets_of
from sinkscope.evaluation.provenance import git_state, host, versions
from sinkscope.evaluation.record import AnswerRecord
from sinkscope.jobs.job import Progress, Stopped
from sinkscope.methods.base import Method
from sinkscope.methods.base import Target as Tokens
from sinkscope.methods.explain import METHODS
from sinkscope.methods.passes import passes_of
from sinkscope.methods.together import SlotChoice, explain_each, methods_named
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle
from sinkscope.utils import plain_values

MOST_IN_A_ROW = 20  # the run is given up after this many failed targets in a row


class NoTargetError(ValueError):
    """The word cannot be explained in this answer, which is not an error of the run."""


@dataclass(frozen=True)
class Progressed:
    """A run's progress: targets in all (of those read), with scores, without, failed."""

    targets: int
    scored: int
    left_out: int
    failed: int
    complete: bool
    lacking: dict[str, str]


def score_methods(
    handle: ModelHandle,
    settings: ScoreSettings,
    model: ModelSettings,
    folder: Path,
    *,
    methods: Sequence[Method] = METHODS,
    on_progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Progressed:
    """Explain and score the remaining targets.

    Args:
        handle: the model; its lock is taken for each pass.
        settings: data, methods, steps.
        model: the settings that the handle was loaded with, for the folder's configuration.
        folder: new, empty, or that of the same run.
        methods: the methods among which `settings.methods` are searched.
        on_progress: called with targets done, in all (0: unknown), and the current target. stop:
            set it to end; finished scores are kept.

    Raises:
        ValueError: no such data or method, another run in the folder, or too many targets in a row
            failed.
        Stopped: `stop` was set.
    """
    chosen = methods_named(settings.methods, methods)
    names = (*CONTROLS, *(one.name for one in chosen))
    config = ScoreConfig(settings, model, names, handle.info.revision)
    total = (settings.limit or 500) if settings.data == "demo" else settings.limit or 0
    with ScoreFolder(folder, config) as out:
        out.note_session(_provenance(handle, config))
        run = _Run(handle, settings, chosen, out, total, on_progress, stop)
        run.left_out_before = {
            one.index for one in read_scores(folder)[1] if one.details.get("left_out")
        }
        try:
            run.all()
        finally:
            out.write_summary(dataclasses.asdict(run.progress()))
        return run.progress()


@dataclass
class _Run:
    handle: ModelHandle
    settings: ScoreSettings
    methods: Sequence[Method]
    out: ScoreFolder
    total: int
    on_progress: Progress | None
    stop: threading.Event | None
    targets: int = 0
    left_out: int = 0
    failed: int = 0
    over: bool = False
    left_out_before: set[int] = field(default_factory=set)

    def all(self) -> None:
        self.lacking: dict[str, str] = {}
        in_a_row = 0
        for index, target in enumerate(targets_of(self.settings)):
            self._tell(target.id)
            if self.stop is not None and self.stop.is_set():
                raise Stopped(index, self.total, "targets")
            self.targets += 1
            if index in self.out.done:
                self.left_out += index in self.left_out_before
                continue
            records = self._records(index, target)
            self.out.append(records)
            in_a_row = in_a_row + 1 if records[0].error else 0
            if in_a_row >= MOST_IN_A_ROW:
                raise ValueError(
                    f"{MOST_IN_A_ROW} targets in a row failed, the last one: {records[0].error} "
                    "The run has ended; finished scores are kept."
                )
        self.over = True
        self._tell("")

    def progress(self) -> Progressed:
        return Progressed(
            self.targets,
            self.targets - self.left_out - self.failed,
            self.left_out,
            self.failed,
            self.over and not self.failed,
            dict(getattr(self, "lacking", {})),
        )

    def _tell(self, text: str) -> None:
        if self.on_progress is not None:
            self.on_progress(self.targets, self.total, text)

    def _records(self, index: int, target: Target) -> list[AnswerRecord]:
        began = time.perf_counter()
        names = (*CONTROLS, *(one.name for one in self.methods))
        answer: str | None = None
        try:
            scores, answer = self._scored(target)
        except NoTargetError as reason:
            self.left_out += 1
            scores = {name: {"lacking": str(reason), "left_out": True} for name in names}
        except (ValueError, OSError) as error:
            self.failed += 1
            return [self._record(index, target, name, {}, None, str(error)) for name in names]
        seconds = round(time.perf_counter() - began, 3)
        for name in names:
            scores[name].setdefault("seconds", seconds)
            if "lacking" in scores[name]:
                self.lacking.setdefault(name, scores[name]["lacking"])
        return [self._record(index, target, name, scores[name], answer, None) for name in names]

    def _scored(self, target: Target) -> tuple[dict[str, dict[str, Any]], str]:
        """Scores by method, and the answer."""
        image, mask = target.load()
        inputs = self.handle.prepare([image], target.prompt)
        trace = self._answered(target, inputs)
        tokens = word_tokens(trace, target)
        grid = trace.layout.grids[0]
        truth = mask_on_cells(mask, grid)
        if truth.all():
            raise NoTargetError("the object covers every cell of the map")
        maps: dict[str, npt.NDArray[Any]] = {
            name: control_map(name, grid, target.id, self.settings.seed) for name in CONTROLS
        }
        scores: dict[str, dict[str, Any]] = {}
        choice = SlotChoice(self.settings.layers, self.settings.heads, self.settings.reduce)
        session = passes_of(self.handle, trace, inputs, stop=self.stop)
        for result in explain_each(
            trace,
            Tokens(tuple(tokens)),
            self.methods,
            choice,
            session=session,
            on_progress=lambda done, total, text: self._tell(f"{target.id}: {text}"),
            stop=self.stop,
        ):
            if result.patches is None:
                scores[result.method.name] = {"lacking": result.why_not}
            else:
                maps[result.method.name] = result.patches.values
                scores[result.method.name] = {"seconds": round(result.seconds, 4)}
        for name, values in maps.items():
            scores.setdefault(name, {})["scores"] = scored(values, truth)
        if self.settings.steps:
            areas = removals(
                self.handle,
                inputs,
                [token.id for token in trace.tokens],
                tokens,
                maps,
                self.settings.steps,
                seed_of(target.id, self.settings.seed) % 2**32,
            )
            for name, area in areas.items():
                scores[name]["scores"] |= dataclasses.asdict(area)
        about = {"tokens": tokens, "cells": int(truth.sum()), "of": int(np.size(truth))}
        return {name: {**about, **values} for name, values in scores.items()}, trace.text

    def _answered(self, target: Target, inputs: PromptInputs) -> GenerationTrace:
        capture = GenerationSettings(
            max_new_tokens=self.settings.max_new_tokens,
            seed=self.settings.seed,
            reference=any(one.name == "relative" for one in self.methods),
        )
        if target.answer is not None:
            return given_answer(self.handle, inputs, capture, target.answer)
        trace = generate(self.handle, inputs, capture, stop=self.stop)
        if self.stop is not None and self.stop.is_set():
            raise Stopped(self.targets, self.total, "targets")
        if target.expected is not None and trace.text.strip() != target.expected:
            raise NoTargetError("the model's answer is wrong, so the word may name something else")
        return trace

    def _record(
        self,
        index: int,
        target: Target,
        method: str,
        details: dict[str, Any],
        answer: str | None,
        error: str | None,
    ) -> AnswerRecord:
        scores = details.get("scores")
        return AnswerRecord(
            task="explain-score",
            protocol="fixed",
            question=target.id,
            index=index,
            method=method,
            prompt_hash="",
            answer=answer,
            extraction=None,
            score=None if scores is None else scores["pointing"],
            details=plain_values(_finite(details)),
            truth=target.word,
            category="",
            cluster=target.cluster,
            fields={},
            seconds=details.get("seconds"),
            error=error,
            host=host(self.handle),
        )


def word_tokens(trace: GenerationTrace, target: Target) -> list[int]:
    """All of the answer's tokens that spell the word.

    Raises:
        NoTargetError: the word is not in the answer.
    """
    text = "".join(token.text for token in trace.tokens)
    lead = len(text) - len(text.lstrip())
    pattern = re.compile(rf"(?<!\w){re.escape(target.word.strip())}(?!\w)", re.IGNORECASE)
    place = pattern.search(text, lead + target.start)
    if place is None:
        raise NoTargetError(f"the word {target.word!r} is not in the answer")
    tokens, start = [], 0
    for index, token in enumerate(trace.tokens):
        stop = start + len(token.text)
        if start < place.end() and stop > place.start():
            tokens.append(index)
        start = stop
    return tokens


def _finite(details: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: a score that is not defined is null."""
    scores = details.get("scores")
    if scores is None:
        return details
    kept = {name: float(v) if np.isfinite(v) else None for name, v in scores.items()}
    return {**details, "scores": kept}


def _provenance(handle: ModelHandle, config: ScoreConfig) -> dict[str, Any]:
    values = {
        "config": config.as_dict(),
        "model": dataclasses.asdict(handle.info),
        "session": {
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "libraries": versions(),
            "git": git_state(),
            **host(handle),
        },
    }
    return dict(plain_values(values))
