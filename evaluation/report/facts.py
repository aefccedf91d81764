"""The facts of a run: the lines needed to compare it with another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sinkscope.evaluation.report.gather import Section

# In provenance.json, but private in a report: whose machine it was.
PRIVATE = ("name", "process")


def facts(section: Section) -> list[tuple[str, str]]:
    """Name and value of each fact: task, data, model, settings of each method, versions."""
    run, provenance = section.run.config.run, section.run.provenance
    lines = [
        ("task", run.task),
        ("protocol", section.protocol.name),
        ("judge", run.judge or section.protocol.judge.name),
        ("metric", section.protocol.metric.name),
    ]
    if section.protocol.note:
        lines.append(("about the protocol", section.protocol.note))
    if run.judge_model:
        lines.append(("judge's model", f"{run.judge_model} at {run.judge_url or 'OpenAI'}"))
    lines += [
        ("data", _shown(run.data or "the task's own")),
        ("data revision", _shown(run.data_revision)),
        ("parts", ", ".join(run.parts) or "all"),
        ("limit", _shown(run.limit, "none")),
        ("model", _shown(section.run.config.model.model)),
        ("model revision", _shown(run.model_revision)),
        ("dtype", _shown(section.run.config.model.dtype)),
    ]
    for method in section.run.config.methods:
        settings = "the plain model" if method.var is None else _settings(method.var)
        lines.append((f"method {method.name}", settings))
    if section.comparison is not None:
        chosen = section.comparison.settings
        lines.append(
            (
                "statistics",
                f"{chosen.resamples} resamples, seed {chosen.seed}, alpha {chosen.alpha}",
            )
        )
    lines += [
        (key, _shown(value)) for key, value in _flat(provenance) if value not in (None, "", [])
    ]
    return lines


def _settings(var: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {_shown(value)}" for key, value in var.items())


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    session = before.startswith("session")
    for key, value in values.items():
        name = f"{before}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            flat += _flat(value, f"{name}: ")
        elif key == "methods" or (session and key in PRIVATE):
            continue  # methods are listed above
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            flat += [pair for i, one in enumerate(value, 1) for pair in _flat(one, f"{name} {i}: ")]
        else:
            flat.append((name, value))
    return flat


def _shown(value: object, nothing: str = "not known") -> str:
    if value is None:
        return nothing
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
