"""The part of an Evaluate run that the browser receives.

`live` is small and sent with each value while a run is in progress; `build_evaluate_payload` is the
whole result in one file, packed like those of runs. Every sentence comes from the report
(`evaluation.report.words`), so that page, report and terminal say the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sinkscope.evaluation.base import Question
from sinkscope.evaluation.record import AnswerRecord
from sinkscope.evaluation.report import words
from sinkscope.evaluation.report.gather import Section, gather
from sinkscope.evaluation.report.tables import Table, tables
from sinkscope.evaluation.run_folder import CONFIG
from sinkscope.evaluation.settings import read_config
from sinkscope.evaluation.statistics.compare import (
    BETTER,
    WORSE,
    Comparison,
    Difference,
    Estimate,
)
from sinkscope.evaluation.statistics.intervals import Interval
from sinkscope.evaluation.statistics.settings import RESAMPLES, CompareSettings
from sinkscope.web.evaluate.files import without_folder
from sinkscope.web.runs.payload import pack

DEMO = "demo"
MOST_LISTED = 300  # failures listed at most
LIVE_RESAMPLES = 500
KINDS = {BETTER: "better", WORSE: "worse"}


def read_section(folder: Path, resamples: int = RESAMPLES) -> Section:
    """The run as the report reads it, as far as its folder has answers.

    Raises:
        ValueError: there is no record yet, or no run.
    """
    run = read_config(folder / CONFIG).run
    section = gather([folder], CompareSettings(seed=run.seed, resamples=resamples))[0]
    # Scenes can be made in any number, so the number asked for counts, not the number read.
    return replace(section, expected=run.limit)


def live(section: Section) -> dict[str, Any]:
    """Scores and differences so far: plain values, no NaN."""
    comparison = section.comparison
    if comparison is None:
        return {"scores": [], "differences": [], "questions": 0}
    return {
        "figure": words.figure_name(comparison.main),
        "confidence": f"{100 * comparison.settings.confidence:.0f} % interval",
        "questions": len(comparison.questions),
        "scores": [_score(comparison, name) for name in comparison.methods],
        "differences": [_difference(comparison, one) for one in comparison.differences],
    }


def build_evaluate_payload(
    section: Section, questions: Mapping[str, Question], pictures: Mapping[str, str]
) -> bytes:
    """The result as the tab loads it.

    Args:
        section: the run.
        questions: its questions by id, as in the data.
        pictures: cluster -> address of its picture.
    """
    run = section.run.config.run
    verdicts = [one.verdict for one in section.comparison.differences] if section.comparison else []
    conclusions = words.conclusions(section)
    header = {
        **live(section),
        "title": _title(section),
        "settings": _settings(section),
        "complete": section.complete,
        "state": words.state(section),
        "warnings": list(section.warnings),
        "said": [
            {"text": text, "kind": KINDS.get(verdicts[i], "none") if i < len(verdicts) else "none"}
            for i, text in enumerate(conclusions)
        ],
        "methods": [one.name for one in section.run.config.methods],
        "baseline": section.comparison.settings.baseline if section.comparison else "",
        "types": _types(section),
        "tables": [_table(one) for one in tables(section)],
        "failures": [
            without_folder(f"{one.question}: {one.reason}".encode(), section.run.folder).decode()
            for one in section.failures[:MOST_LISTED]
        ],
        "seed": run.seed,
        "asked": _questions(section, questions, pictures),
    }
    return pack(header, {})


def _title(section: Section) -> str:
    config = section.run.config
    model = config.model.model.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
    names = [one.name for one in config.methods]
    how = " against ".join([", ".join(names[1:]), names[0]]) if len(names) > 1 else names[0]
    count = section.answered if section.expected is None else section.expected
    of = "of drawn scenes" if config.run.task == DEMO else "of an upload"
    on = f"{words.count(count)} question{'' if count == 1 else 's'} {of}"
    return f"{how} on {on} · {model}"


def _settings(section: Section) -> str:
    """VAR's settings in one line; the methods of a run differ only in the control."""
    var = [one.var for one in section.run.config.methods if one.var is not None]
    if not var:
        return ""
    first = var[0]
    dims = ", ".join(map(str, first["dims"]))
    text = f"VAR: keep {first['keep']:g}, tau {first['tau']:.4g}, sink dimensions {dims}"
    seeds = [one["seed"] for one in var if one.get("control") == "random"]
    return text + (f"; seed of the control {seeds[0]}" if seeds else "")


def _score(comparison: Comparison, name: str) -> dict[str, Any]:
    one = comparison.estimates[name][0]
    return {"method": name, "how": one.how, **_shown(comparison, one)}


def _shown(comparison: Comparison, one: Estimate) -> dict[str, Any]:
    ends, between = one.interval, words.interval(comparison.metric, one.figure, one.interval)
    if one.how == "bootstrap" and ends.low == ends.high:  # all resamples are equal
        ends, between = Interval(math.nan, math.nan), "too few scenes"
    return {
        "value": _number(one.value),
        **_ends(ends),
        "text": words.value(comparison.metric, one.figure, one.value),
        "between": between,
    }


def _difference(comparison: Comparison, one: Difference) -> dict[str, Any]:
    metric, figure = comparison.metric, one.figure
    return {
        "method": one.method,
        "against": one.against,
        "value": _number(one.difference),
        **_ends(one.interval),
        "text": words.change(metric, figure, one.difference),
        "between": words.changes(metric, figure, one.interval),
        "p": words.p_is(one.adjusted),
        "verdict": one.verdict,
        "kind": KINDS.get(one.verdict, "none"),
        "fixed": one.fixed,
        "broken": one.broken,
        "same": one.same,
    }


def _types(section: Section) -> list[dict[str, Any]]:
    """For each question type: the score of each method and each difference from the baseline."""
    comparison = section.comparison
    if comparison is None:
        return []
    baseline = comparison.settings.baseline
    counts = {
        one.category: one.fixed + one.broken + one.same
        for one in comparison.categories
        if one.against == baseline
    }
    return [
        {
            "type": name,
            "questions": counts.get(name),
            "scores": [_shown(comparison, by[method]) for method in comparison.methods],
            "differences": [
                _difference(comparison, one)
                for one in comparison.categories
                if one.category == name and one.against == baseline
            ],
        }
        for name, by in comparison.by_category.items()
    ]


def _table(table: Table) -> dict[str, Any]:
    return {
        "title": table.title,
        "columns": list(table.columns),
        "rows": [list(row) for row in table.rows],
        "numbers": [table.is_number(i) for i in range(len(table.columns))],
        "note": table.note,
    }


def _questions(
    section: Section, questions: Mapping[str, Question], pictures: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Every question with its answers, in the order of the data."""
    by_question: dict[str, list[AnswerRecord]] = {}
    for record in section.run.records():
        by_question.setdefault(record.question, []).append(record)
    listed = sorted(by_question.values(), key=lambda group: group[0].index)
    return [_one(group, questions.get(group[0].question), pictures) for group in listed]


def _one(
    records: Sequence[AnswerRecord], question: Question | None, pictures: Mapping[str, str]
) -> dict[str, Any]:
    first = records[0]
    return {
        "id": first.question,
        "type": first.category,
        "text": "" if question is None else question.text,
        "truth": _listed(first.truth),
        "picture": pictures.get(first.cluster),
        "answers": [
            {
                "method": one.method,
                "text": one.answer if one.answer is not None else "",
                "score": one.score,
                "error": one.error or "",
            }
            for one in records
        ],
    }


def _listed(truth: Any) -> str:
    return ", ".join(map(str, truth)) if isinstance(truth, list | tuple) else str(truth)


def _ends(interval: Interval) -> dict[str, Any]:
    return {"low": _number(interval.low), "high": _number(interval.high)}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)
