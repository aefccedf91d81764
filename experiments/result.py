"""The result of an experiment: tables, charts as data, a verdict, and provenance.

Everything is made of plain values, so that a file, a page or a terminal can show it. An undefined
number (attention to the last token, which no query sees) is None.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from sinkscope.untrusted import read_json
from sinkscope.utils import number_of, plain_values, write_bytes_atomically

FORMAT = "sinkscope-experiment-1"
Cell = str | float | int | bool | None
Kind = Literal["lines", "bars", "histogram", "heat"]


def number(value: float) -> float | None:
    """A float for JSON: None for NaN and infinity."""
    return float(value) if math.isfinite(value) else None


def numbers(values: Sequence[float]) -> tuple[float | None, ...]:
    """The same for each."""
    return tuple(number(float(value)) for value in values)


@dataclass(frozen=True)
class Table:
    """A table; the first `keys` columns say what a row is about.

    Attributes:
        name: of its CSV file.
        title: above it.
        columns: headings.
        rows: cells.
        keys: how many columns name the row.
        note: below it.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    keys: int = 1
    note: str = ""


@dataclass(frozen=True)
class Series:
    """One line, set of bars or histogram.

    Attributes:
        name: in the legend.
        y: values, one for each x of the chart; of a histogram the counts of its bins.
        low, high: ends of an interval, or None.
        role: determines the colour: a group of tokens, or an arm.
    """

    name: str
    y: tuple[float | None, ...]
    low: tuple[float | None, ...] | None = None
    high: tuple[float | None, ...] | None = None
    role: str = ""


@dataclass(frozen=True)
class Chart:
    """A figure of one quantity, as data (`experiments.figures.draw` draws it).

    Attributes:
        name: of its files.
        title, x_label, y_label: texts.
        kind: lines over x; bars, one per category x; histogram, whose x are the edges of the bins;
            heat, a map whose rows are the series and whose columns are x.
        x: numbers or categories.
        series: what is drawn.
        log: the y axis is logarithmic.
        note: small print.
    """

    name: str
    title: str
    kind: Kind
    x: tuple[float | str, ...]
    series: tuple[Series, ...]
    x_label: str = "layer"
    y_label: str = ""
    log: bool = False
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """The two conditions of a good explanation.

    Attributes:
        causal: (A) taking the factor away takes the sinks away, and controls do not; None: not
            tested here.
        specific: (B) only the sinks stand out on it; None: not tested here.
        text: both in words, with the numbers.
        thresholds: by which it was decided, in words.
    """

    causal: bool | None
    specific: bool | None
    text: tuple[str, ...]
    thresholds: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """positive: both hold; negative: a tested one does not; open: the tested one holds, and the
        other was not tested here."""
        if self.causal and self.specific:
            return "positive"
        return "negative" if False in (self.causal, self.specific) else "open"


@dataclass(frozen=True)
class Findings:
    """What one experiment found, without the model and settings.

    Attributes:
        summary: what was found, in sentences.
        tables, charts: of it.
        verdict: where the experiment has one.
        values: single figures by name, for programs.
        notes: what a reader should know.
    """

    summary: tuple[str, ...]
    tables: tuple[Table, ...]
    charts: tuple[Chart, ...] = ()
    verdict: Verdict | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """A run of an experiment.

    Attributes:
        experiment, question: which.
        settings: of the experiment and of the study, plain.
        model: `ModelInfo`, plain.
        samples: ids of those that were used.
        source: where they come from, in words.
        groups: groups of tokens, sink and reference first, with the number of tokens in all.
        findings: what was found.
        versions: of SinkScope, torch and transformers.
        seconds: it took.
    """

    experiment: str
    question: str
    settings: Mapping[str, Any]
    model: Mapping[str, Any]
    samples: tuple[str, ...]
    source: str
    groups: Mapping[str, int]
    findings: Findings
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def provenance(self) -> str:
        """One line that says what this is of."""
        revision = str(self.model.get("revision", ""))[:12]
        experiment_settings = self.settings.get("experiment", {})
        listed = ", ".join(
            f"{name} {setting_text(value)}" for name, value in experiment_settings.items()
        )
        return (
            f"{self.experiment}{f' ({listed})' if listed else ''}; {self.model.get('id')} "
            f"({revision}, {self.model.get('dtype')}); {number_of(len(self.samples), 'sample')} of "
            f"{self.source}; sinkscope {self.versions.get('sinkscope', '?')}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as JSON returns them."""
        values = asdict(self)
        verdict = self.findings.verdict
        if verdict is not None:
            values["findings"]["verdict"]["word"] = verdict.word
        plain: dict[str, Any] = plain_values({"format": FORMAT, **values})
        return plain

    def save(self, path: Path) -> None:
        """Write a JSON file atomically."""
        data = json.dumps(self.as_dict(), ensure_ascii=False, indent=1, allow_nan=False).encode()
        write_bytes_atomically(path, data)

    @staticmethod
    def open(path: Path) -> Result:
        """Read what `save` wrote; of a folder, its result.json.

        Raises:
            ValueError: there is no such file, or it is not a result of an experiment.
        """
        file = path / "result.json" if path.is_dir() else path
        values = read_json(file, "The result")
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError(f"{file.name} is not a result of an experiment ({FORMAT}).")
        try:
            return _result(values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"The result {file.name} is damaged: {error!r}.") from error


def _result(values: dict[str, Any]) -> Result:
    given = dict(values)
    del given["format"]
    findings_values = dict(given["findings"])
    verdict = findings_values["verdict"]
    if verdict is not None:
        verdict = Verdict(
            verdict["causal"],
            verdict["specific"],
            tuple(verdict["text"]),
            tuple(verdict["thresholds"]),
        )
    findings = Findings(
        summary=tuple(findings_values["summary"]),
        tables=tuple(_table(table) for table in findings_values["tables"]),
        charts=tuple(_chart(chart) for chart in findings_values["charts"]),
        verdict=verdict,
        values=findings_values["values"],
        notes=tuple(findings_values["notes"]),
    )
    return Result(**{**given, "samples": tuple(given["samples"]), "findings": findings})


def _checked(name: object) -> None:
    """A table's or chart's name is its file's name, so it must not lead to another folder."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", name):
        raise ValueError(f"name is {name!r}")


def _table(values: dict[str, Any]) -> Table:
    _checked(values["name"])
    rows = tuple(tuple(row) for row in values["rows"])
    return Table(**{**values, "columns": tuple(values["columns"]), "rows": rows})


def _chart(values: dict[str, Any]) -> Chart:
    _checked(values["name"])
    if values["kind"] not in get_args(Kind):
        raise ValueError(f"kind is {values['kind']!r}")
    series = tuple(_series(one) for one in values["series"])
    return Chart(**{**values, "x": tuple(values["x"]), "series": series})


def _series(values: dict[str, Any]) -> Series:
    attributes: dict[str, Any] = {
        n: tuple(v) if isinstance(v, list) else v for n, v in values.items()
    }
    return Series(**attributes)


def setting_text(value: Any) -> str:
    """A setting's value in words, the same before saving and after loading."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)
