"""Folders of runs, written by hand in the form that `evaluate run` writes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sinkscope.config import ModelSettings
from sinkscope.evaluation.method_specs import parse_methods
from sinkscope.evaluation.record import AnswerRecord
from sinkscope.evaluation.settings import RunConfig, RunSettings


def record(
    question: str, index: int, method: str, score: float | None, **more: Any
) -> AnswerRecord:
    """One answer: "yes" if it is right, "no" if it is wrong, an error if there is no score."""
    said = None if score is None else "yes" if score == 1 else "no"
    made = AnswerRecord(
        task="demo",
        protocol="fixed",
        question=question,
        index=index,
        method=method,
        prompt_hash="0",
        answer=said,
        extraction=said,
        score=score,
        details={},
        truth="yes",
        category="colour",
        cluster=question,
        fields={},
        log_probabilities=None if score is None else (-0.5, -0.25),
        finish=None if score is None else "end",
        sinks=7,
        rows_changed=0.0 if method == "default" else 0.125,
        mass_moved=0.0 if method == "default" else 0.02,
        seconds=0.5,
        error="The image is broken." if score is None else None,
    )
    return dataclasses.replace(made, **more)


def write_run(
    folder: Path,
    records: Sequence[AnswerRecord],
    *,
    methods: Sequence[str] = ("default", "var"),
    sweeps: Sequence[str] = (),
    questions: int | None = None,
    run: dict[str, Any] | None = None,
    finished: bool = True,
) -> Path:
    """A run's folder; with `finished`, a session reached its end and wrote its summary."""
    folder.mkdir(parents=True)
    settings = RunSettings(**{"task": "demo", "limit": 1000, **(run or {})})
    config = RunConfig(settings, ModelSettings("demo"), parse_methods(methods, sweeps))
    (folder / "run.toml").write_text(config.toml(), encoding="utf-8")
    text = "".join(one.line() for one in records)
    (folder / "records.jsonl").write_text(text, encoding="utf-8")
    (folder / "provenance.json").write_text('{"versions": {"torch": "2.13"}}', encoding="utf-8")
    if finished:
        failed = len({one.question for one in records if one.error})
        there = len({one.question for one in records})
        summary = {
            "questions": there if questions is None else questions,
            "answered": there - failed,
            "failed": failed,
            "complete": not failed and questions is None,
        }
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def scored(method_scores: dict[str, Sequence[float | None]], **more: Any) -> list[AnswerRecord]:
    """Records of questions q0, q1, ... with these scores by method, question by question."""
    count = len(next(iter(method_scores.values())))
    return [
        record(f"q{i}", i, method, scores[i], **more)
        for i in range(count)
        for method, scores in method_scores.items()
    ]
