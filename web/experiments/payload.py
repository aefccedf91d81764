"""The part of an experiment's result that the browser receives: one file, packed like a run's.

Its header contains every sentence and table cell as text, which the browser shows unchanged, and
the addresses of figures and files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sinkscope.experiments.compare import is_comparison
from sinkscope.experiments.result import Cell, Chart, Result, Table, Verdict
from sinkscope.web.runs.payload import pack

MOST_ROWS = 40  # rows of a table shown on the page; its file contains all
CONDITIONS = (
    ("A", "causal", "Whether taking the factor away takes the sinks away, and controls do not."),
    ("B", "specific", "Whether only the sink tokens stand out on the factor."),
)
WORDS = {
    "positive": "Both conditions hold.",
    "negative": "A condition that was tested does not hold.",
    "open": "What was tested holds; the other condition is not tested by this experiment.",
}
KINDS = {"lines": "Lines", "bars": "Bars", "histogram": "Histogram", "heat": "Map"}


def build_experiment_payload(
    result: Result, files: Mapping[str, str], sizes: Mapping[str, tuple[int, int]]
) -> bytes:
    """The result as the tab loads it.

    Args:
        result: the experiment's result.
        files: file name -> address; the files of `experiments.saving.save_result`, and a zip.
        sizes: name of a PNG file -> its width and height.
    """
    findings = result.findings
    archives = [name for name in files if name.endswith(".zip")]
    compared = is_comparison(result)
    header = {
        "experiment": result.experiment,
        "compared": compared,
        "label": label_of(result),
        "question": result.question,
        "model": str(result.model.get("id")),
        # When two results are side by side, a reader first needs to know what each is.
        "summary": [*(findings.notes[:2] if compared else ()), *findings.summary],
        "notes": list(findings.notes[2 if compared else 0 :]),
        "verdict": None if findings.verdict is None else _verdict(findings.verdict),
        "tables": [_table(table, files) for table in findings.tables],
        "figures": [
            _figure(chart, files, sizes)
            for chart in findings.charts
            if f"{chart.name}.png" in files
        ],
        "files": [_file(name, files) for name in (*archives, "result.json") if name in files],
        "about": result.provenance(),
        "facts": _facts(result),
    }
    return pack(header, {})


def _verdict(verdict: Verdict) -> dict[str, Any]:
    """The verdict's word, both conditions with measurements and thresholds, and further remarks."""
    texts, limits = list(verdict.text), list(verdict.thresholds)
    conditions = []
    for (key, name, meaning), holds in zip(
        CONDITIONS, (verdict.causal, verdict.specific), strict=True
    ):
        sentences = [text for text in texts if text.startswith(f"{key} ({name})")]
        thresholds = [text for text in limits if text.startswith(f"{key}: ")]
        texts = [text for text in texts if text not in sentences]
        limits = [text for text in limits if text not in thresholds]
        conditions.append(
            {
                "key": key,
                "name": name,
                "meaning": meaning,
                "holds": holds,
                "word": "not tested" if holds is None else "holds" if holds else "does not hold",
                "text": " ".join(_after_answer(text) for text in sentences),
                "threshold": "; ".join(text[3:] for text in thresholds),
            }
        )
    return {
        "word": verdict.word,
        "text": WORDS[verdict.word],
        "conditions": conditions,
        "more": [*texts, *limits],
    }


def _after_answer(text: str) -> str:
    """`A (causal): no. Of the ...` without the part that the page shows as a badge."""
    for answer in ("yes", "no"):
        _, separator, rest = text.partition(f": {answer}. ")
        if separator:
            return rest
    return text


def _table(table: Table, files: Mapping[str, str]) -> dict[str, Any]:
    shown, left = table.rows[:MOST_ROWS], max(0, len(table.rows) - MOST_ROWS)
    columns = _columns(table.columns)
    texts = [any(isinstance(row[i], str) for row in table.rows) for i, _ in columns]
    return {
        "name": table.name,
        "title": table.title,
        "columns": [table.columns[i] for i, _ in columns],
        "texts": texts,
        "keys": table.keys,
        "rows": [[_cell(row[i]) + _ends(row, i, wide) for i, wide in columns] for row in shown],
        "note": table.note,
        "left": f"{left} more rows are in the CSV file." if left else "",
        "csv": _file(f"{table.name}.csv", files),
    }


def _columns(names: Sequence[str]) -> list[tuple[int, bool]]:
    """The columns shown, each with whether the next two are the ends of its interval."""
    columns, i = [], 0
    while i < len(names):
        stem, is_low, _ = (*names, "")[i + 1].partition("_low")
        wide = bool(is_low and names[i].startswith(stem) and f"{stem}_high" in names[i + 2 : i + 3])
        columns.append((i, wide))
        i += 3 if wide else 1
    return columns


def _ends(row: Sequence[Cell], i: int, wide: bool) -> str:
    if not wide or row[i + 1] is None or row[i + 2] is None:
        return ""
    return f" [{_cell(row[i + 1])}, {_cell(row[i + 2])}]"


def _cell(cell: Cell) -> str:
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:.4g}".replace("-", "−")
    return str(cell)


def _figure(
    chart: Chart, files: Mapping[str, str], sizes: Mapping[str, tuple[int, int]]
) -> dict[str, Any]:
    name = f"{chart.name}.png"
    series = ", ".join(one.name for one in chart.series[:8])
    over = f" over {chart.x_label}" if chart.x_label else ""
    return {
        "name": chart.name,
        "title": chart.title,
        "note": chart.note,
        "alt": f"{chart.title}. {KINDS[chart.kind]} of {chart.y_label or 'values'}{over}: "
        f"{series}. {chart.note}".strip(),
        "size": list(sizes.get(name, (0, 0))),
        "png": _file(name, files),
        "pdf": _file(f"{chart.name}.pdf", files),
    }


def _file(name: str, files: Mapping[str, str]) -> dict[str, str] | None:
    return {"name": name, "url": files[name]} if name in files else None


def _facts(result: Result) -> list[list[str]]:
    """What the result was made from, as rows of a name and a text."""
    model = result.model
    groups = ", ".join(f"{name} {count}" for name, count in result.groups.items())
    revision = model.get("revision")
    return [
        ["Model", f"{model.get('id')}{f', revision {revision}' if revision else ''}"],
        ["Runs on", f"{model.get('device')}, {model.get('dtype')}"],
        ["Samples", f"{len(result.samples)} of {result.source}: {', '.join(result.samples)}"],
        ["Tokens", groups],
        *([name, _settings(values)] for name, values in _named(result.settings)),
        ["Versions", ", ".join(f"{name} {version}" for name, version in result.versions.items())],
        ["Took", f"{result.seconds:.1f} s"],
    ]


def label_of(result: Result) -> str:
    """A label that distinguishes a run from others in a list."""
    settings = result.settings.get("experiment", {})
    listed = ", ".join(
        f"{name} {_plain(value)}" for name, value in settings.items() if value is not None
    )
    model = str(result.model.get("id")).rstrip("/").rsplit("/", 1)[-1]
    parts = [result.experiment, listed, model, f"{len(result.samples)} samples"]
    return " · ".join(part if len(part) <= 60 else f"{part[:59]}…" for part in parts if part)


def _named(settings: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    words = {"experiment": "Settings", "study": "Of all experiments"}
    if set(settings) == {"A", "B"}:
        return [
            (f"{side}, {words.get(name, name).lower()}", values)
            for side, both in settings.items()
            for name, values in both.items()
        ]
    return [(words.get(name, name), values) for name, values in settings.items()]


def _settings(values: Mapping[str, Any]) -> str:
    return "; ".join(f"{name} {_plain(value)}" for name, value in values.items()) or "none"


def _plain(value: Any) -> str:
    if value is None:
        return "left out"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
