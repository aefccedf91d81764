"""How a run was made, in one line: model, VAR's settings, control, same text, decoding.

The page shows it below its header; saved tables, traces and animations carry it too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sinkscope.capture.trace import GenerationTrace
from sinkscope.utils import index_ranges

NUMBERS = (("tau", "VAR tau"), ("keep", "keep"), ("max_sink_share", "max sink share"))


def summary_parts(traces: Sequence[GenerationTrace], same_text: bool | None = None) -> list[str]:
    """How the answers of one run were made, in parts.

    Args:
        traces: one, or the baseline and VAR.
        same_text: VAR followed the baseline's text; None if unknown.
    """
    first = traces[0]
    words = [f"model {first.model.id}"]
    report = next((trace.var for trace in traces if trace.var), None)
    words += ["no VAR"] if report is None else _var_words(report, same_text)
    applied = list(dict.fromkeys(one for trace in traces for one in trace.applied))
    if report is None and applied:
        words[1:] = applied
    settings = first.settings
    if settings.get("decoding") == "checkpoint":
        words.append("decoded as the checkpoint says")
    else:
        warm = settings.get("temperature") or 0
        words.append(f"temperature {_number(warm)}" if warm > 0 else "greedy")
    return words if first.seed is None else [*words, f"seed {first.seed}"]


def summary_line(
    sides: Mapping[str, GenerationTrace] | GenerationTrace, same_text: bool | None = None
) -> str:
    """The same as a line: once for the answers of one run, by label for two runs."""
    traces = [sides] if isinstance(sides, GenerationTrace) else list(sides.values())
    if len(traces) < 2 or _one_run(*traces[:2]):
        return " · ".join(summary_parts(traces, same_text))
    assert isinstance(sides, Mapping)
    return "   |   ".join(f"{name}: {summary_line(trace)}" for name, trace in sides.items())


def with_summary(trace: GenerationTrace, line: str) -> GenerationTrace:
    """The trace with `extra["made"]`, for a file that is read without the run around it."""
    if not line:
        return trace
    return dataclasses.replace(trace, extra={**trace.extra, "made": line})


def _one_run(a: GenerationTrace, b: GenerationTrace) -> bool:
    """Whether the second run is the first one's question with VAR."""
    same = (a.model.id, a.prompt, a.seed, a.settings) == (b.model.id, b.prompt, b.seed, b.settings)
    return same and a.var is None and b.var is not None


def _var_words(report: Mapping[str, Any], same_text: bool | None) -> list[str]:
    settings = report.get("settings") or {}
    words = [
        f"{label} {_number(settings[name])}"
        for name, label in NUMBERS
        if settings.get(name) is not None
    ] or ["VAR"]
    acted = settings.get("layers") or [layer["layer"] for layer in report.get("layers") or ()]
    words.append(f"layers {index_ranges(acted, '–')}" if acted else "no layer")
    if settings.get("heads"):
        words.append(f"heads {', '.join('.'.join(map(str, head)) for head in settings['heads'])}")
    words += [f"{settings['dialect']} dialect"] if settings.get("dialect") else []
    words.append(f"control {settings.get('control') or 'none'}")
    if same_text is not None:
        words.append("same text" if same_text else "own text")
    return words


def _number(value: float) -> str:
    return f"{value:.6g}"
